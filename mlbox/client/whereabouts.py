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

# s between two looks around the lab: a host that does not let us in bans who asks more often.
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
        user, key = str(facts["user"]), str(facts["host_key"])
        ssh_config.add(self.reach.id, port, user, key, keys, agent, self.reach.owner)

    def now(self, config: state.Config, here: bool, around: bool) -> Place:
        """Where it runs now, this place or another one. `here`: its host is asked; `around`: and where that does not
        know, the lab's others. Raises Ended, and what a call raises."""
        told: errors.MlboxError | None = None
        if here:
            try:
                return self._at(self.host)
            except errors.Ended:
                raise
            except errors.MlboxError as error:
                if not around:
                    raise
                told = error
        lab = replace(config, root=self.reach.root)
        try:
            # One that was asked is asked again as any other: it may be where the session is met, and not where it runs.
            than = "" if here else self.host.transport.host
            return self._at(sessions.elsewhere(self.reach.id, than, lab, self.reach.lab))
        except errors.Ended:
            raise
        except errors.NotFound as error:
            raise told or error from None  # its own host says best why it is nowhere

    def _at(self, host: Host) -> Place:
        session = sessions.reveal(host, self.reach.id, self.reach.lab)
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
        """Nothing, while one is under way. Its host is asked each time, unless it is `away`; the others, where it may
        have moved to, ever more rarely, for it may be in line for long."""
        around = place.reach.moves and time.monotonic() >= self._due
        if self._thread.is_alive() or (away and not around):
            return
        if around:
            self._due = time.monotonic() + self._backoff.delay()
        self._thread = threading.Thread(target=self._look, args=(place, away, around), daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """It is found: the next look will be a first one."""
        self._due = 0.0
        self._backoff.reset()

    def wait(self, patience: float) -> None:
        """For the look that is under way."""
        if self._thread.is_alive():
            self._thread.join(patience)

    def _look(self, place: Place, away: bool, around: bool) -> None:
        found: Found
        try:
            found = place.now(self._config, not away, around)
        except errors.MlboxError as error:
            found = error
        self._hear(found, away)
