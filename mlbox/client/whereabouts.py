"""Where a session runs, as its tunnels have to know it (client/holder.py): where they lead, or where it is now."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Union

from mlbox import errors
from mlbox.client import sessions, ssh_config, state
from mlbox.client.reach import Reach
from mlbox.client.remote import Host, of_session
from mlbox.client.tunnels import Link
from mlbox.client.tunnels.events import Backoff

# s between two looks around the lab while its host is away: a host that does not let us in bans who asks more often.
_FIRST, _LAST = 60.0, 300.0


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

    def now(self, away: bool, config: state.Config) -> Place:
        """Where it runs now, this place or another one: its host is asked, unless that is `away`, and of a session that
        moves then the lab's others. Raises Ended, and what a call raises."""
        if not (away and self.reach.moves):
            try:
                return self._at(self.host)
            except errors.Ended:
                raise
            except errors.MlboxError:
                if not self.reach.moves:
                    raise
        lab = replace(config, root=self.reach.root)
        return self._at(sessions.elsewhere(self.reach.id, self.host.transport.host, lab))

    def _at(self, host: Host) -> Place:
        session = sessions.reveal(host, self.reach.id)
        if self.reach.moves and session.get("owner"):
            raise errors.NotFound(f"session {self.reach.id} there is {session['owner']}'s")
        reach = sessions.reach(host, session)
        if reach.start() == self.reach.start():
            return self
        sessions.enter(host, session)
        return Place(host, reach)


Found = Union[Place, errors.MlboxError]


class Looking:
    """For a session, one look at a time, in a thread. `hear`: what came of it, and whether its host was away."""

    def __init__(self, config: state.Config, hear: Callable[[Found, bool], None]) -> None:
        self._config, self._hear = config, hear
        self._backoff, self._due = Backoff(_FIRST, _LAST), 0.0
        self._thread = threading.Thread()

    def begin(self, place: Place, away: bool) -> None:
        """Nothing, while one is under way, or the next one is not due: without its host none is urgent."""
        if self._thread.is_alive() or (away and time.monotonic() < self._due):
            return
        if away:
            self._due = time.monotonic() + self._backoff.delay()
        self._thread = threading.Thread(target=self._look, args=(place, away), daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """It is found: the next look will be a first one."""
        self._due = 0.0
        self._backoff.reset()

    def wait(self, patience: float) -> None:
        """For the look that is under way."""
        if self._thread.is_alive():
            self._thread.join(patience)

    def _look(self, place: Place, away: bool) -> None:
        found: Found
        try:
            found = place.now(away, self._config)
        except errors.MlboxError as error:
            found = error
        self._hear(found, away)
