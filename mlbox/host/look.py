"""How a tick reads a line that may be long: never more than so much, and yet nobody stays hidden.

    from its head, until `LOOK` jobs could start if there were room, or `BLOCK` were read
    then, where more is behind: those found in earlier looks, and the next `BLOCK` from where the last look ended

    users/<user>/on/<host>/look.json    hint, of this user's ticks: {queue: {"at": place, "known": [place, …]}}

Jobs that wait for others, a time, their array or another host count for nothing, and of an array that can't start
one is read and not all. What was found is kept, so that a big job far behind is not passed over in between. Losing
the file costs the look from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from mlbox.core import ids
from mlbox.core.schedule import Waiting
from mlbox.host import files, ready, store

Json = dict[str, Any]
LOOK, BLOCK = 64, 256
_MOST_PARTS, _MOST_PART = 5, 26  # of a place in line (host/ready.py)
Place = tuple[str, ...]


def remembered(found: store.Store, user: str) -> Json:
    document = files.read_json(found.on(user=user) / "look.json")
    return document if isinstance(document, dict) else {}


class Look:
    """At one user's jobs in one queue; `jobs` are all that it read, and `whole` is whether no more were behind them."""

    def __init__(
        self,
        found: store.Store,
        user: str,
        queue: str,
        could: Callable[[Waiting], bool],
        now: float,
        unable: Collection[tuple[str, str]] = (),
    ) -> None:
        """`unable`: HostFacts.unable."""
        self._found, self._user, self._queue, self._could, self._now = found, user, queue, could, now
        self._unable = unable
        self.jobs: dict[str, Waiting] = {}
        self.whole = False
        self._able: list[Place] = []

    def read(self, memory: Any, onward: bool) -> Json:
        """What to remember. Not `onward`: of another user's line, which that one's own ticks look through."""
        end = self._walk(ready.places(self._found, self._user, self._queue))
        self.whole = not end
        if not end or self._full():
            return {}
        memory = memory if isinstance(memory, dict) else {}
        at, before = _place(memory.get("at")), len(self._able)
        known = memory.get("known")
        self._walk(filter(None, map(_place, known[:LOOK] if isinstance(known, list) else ())))
        if onward:
            at = self._walk(ready.places(self._found, self._user, self._queue, max(at, end)))
        return {"at": "/".join(at), "known": ["/".join(place) for place in self._able[before:]]}

    def _full(self) -> bool:
        return len(self._able) >= LOOK

    def _walk(self, places: Iterable[Place]) -> Place:
        """Where it stopped; empty where it came to the end."""
        read, passed = 0, Place()
        for place in places:
            if place[-1] in self.jobs or place[:-1] == passed:
                continue
            read += 1
            job = ready.at(self._found, self._user, self._queue, place)
            if job is not None:
                self.jobs[job.id] = job
                if self._could(job):
                    self._able.append(place)
                elif job.array and job.not_before <= self._now and (self._user, job.id) not in self._unable:
                    passed = place[:-1]  # the others of the array wait for the same
            if self._full() or read >= BLOCK:
                return place
        return Place()


def _place(value: Any) -> Place:
    """Of anybody's file: it names what lies below a line, or nothing."""
    parts = tuple(value.split("/")) if isinstance(value, str) and len(value) < 200 else ("",)
    good = len(parts) <= _MOST_PARTS and all(p and p[0] != "." and len(p) <= _MOST_PART for p in parts)
    return parts if good and ids.is_ulid(parts[-1]) else ()


def path(found: store.Store) -> Path:
    return found.on() / "look.json"
