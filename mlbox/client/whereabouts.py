"""Where a session runs, as its tunnels have to know it (client/holder.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mlbox.client import sessions, ssh_config, state
from mlbox.client.reach import Reach
from mlbox.client.remote import Host, of_session
from mlbox.client.tunnels import Link


@dataclass(frozen=True)
class Place:
    """A session's host, and what it takes to reach the session there."""

    host: Host
    reach: Reach

    @classmethod
    def of(cls, reach: Reach, config: state.Config) -> Place:
        facts = {"id": reach.id, "host": reach.host, "root": reach.root, "via": reach.via}
        return cls(of_session(facts, config), reach)

    def link(self, folder: Path, generation: int) -> Link:
        return self.host.transport.link(self.reach.forwards(), folder, generation)

    def announce_port(self, port: int) -> None:
        """Let `ssh -p PORT` know the session's own host key. Raises MlboxError, OSError."""
        facts, transport = self.reach.services["ssh"], self.host.transport
        keys, agent = transport.identity_files(), transport.agent()
        ssh_config.add(self.reach.id, port, str(facts["user"]), str(facts["host_key"]), keys, agent)

    def as_now(self) -> Place:
        """By the word of its host: the same one, or another start of the session. Raises NotFound where it does not run
        there, and what a call raises."""
        session = sessions.reveal(self.host, self.reach.id)
        reach = sessions.reach(self.host, session)
        if reach.start() == self.reach.start():
            return self
        sessions.enter(self.host, session)
        return replace(self, reach=reach)
