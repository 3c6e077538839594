"""What became of those that others wait for: jobs, and whole arrays, of which a tick reads a bounded part.

    users/<user>/on/<host>/awaited.json    hint, of this user's ticks: {first job of an array: [ended, of these bad]},
                                           each a bit for a job, in hexadecimal

What has ended is final: of an array it is read once, and remembered. What runs is known by its hint. Those that wait
stand in the order of their ids, but for a few: behind so many of them none is looked for, for they say only how many
are left. Losing the file costs the reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from mlbox.core import ids
from mlbox.core.log import TERMINAL
from mlbox.core.schedule import After, Ends, Running, Waiting
from mlbox.host import files, store
from mlbox.host.job import Job

Json = dict[str, Any]
READ = 1000  # logs of arrays' jobs, in one tick
WAITING = 16  # jobs of one array
_KEPT = 64  # arrays


class Awaited:
    """`states` and `arrays`, as the scheduler needs them, of what it was told. Whom it was told of first is read first,
    and remembered first."""

    def __init__(self, found: store.Store, users: list[str], running: Iterable[Running]) -> None:
        self.states: dict[str, str] = {}
        self.arrays: dict[tuple[str, int], Ends] = {}
        self._met = Json()
        self._known: Json | None = None  # not read where no array is awaited
        self._found, self._users, self._left = found, users, READ
        self._running = {(run.owner, run.id) for run in running}

    @property
    def memory(self) -> Json | None:
        """What is to be kept for the next, where it was needed."""
        return None if self._known is None else dict(islice({**self._met, **self._known}.items(), _KEPT))

    def add(self, job: Waiting) -> None:
        """Whom it waits for."""
        for after in job.after:
            if after.array and (after.job, after.array) not in self.arrays:
                self.arrays[after.job, after.array] = self._array(after)
            elif not after.array and after.job not in self.states:
                self.states[after.job] = state_of(self._found, self._users, after.job)

    def _array(self, after: After) -> Ends:
        if self._known is None:
            self._known = remembered(self._found)
        ended, bad = _bits(self._known.pop(after.job, None) or self._met.get(after.job))
        every, waiting = (1 << after.array) - 1, 0
        unknown = every & ~ended
        owner = owner_of(self._found, self._users, after.job) if unknown else ""
        while unknown and owner and self._left and waiting < WAITING:
            bit = unknown & -unknown
            unknown &= ~bit
            id_ = ids.following(after.job, bit.bit_length() - 1)
            if (owner, id_) in self._running:
                continue
            self._left -= 1
            state = _state(self._found.job(id_, owner))
            ended |= bit if state in TERMINAL else 0
            bad |= bit if state in TERMINAL and state != "finished" else 0
            waiting += state not in TERMINAL
        self._met[after.job] = [f"{ended:x}", f"{bad:x}"]
        return Ends(_count(ended & every), _count(bad & every))


def remembered(found: store.Store) -> Json:
    document = files.read_json(path(found))
    return document if isinstance(document, dict) else {}


def path(found: store.Store) -> Path:
    return found.on() / "awaited.json"


def _bits(value: Any) -> tuple[int, int]:
    try:
        ended, bad = (int(word, 16) for word in value)
    except (TypeError, ValueError):
        return 0, 0
    return ended, bad


def _count(bits: int) -> int:
    return bin(bits).count("1")


def owner_of(found: store.Store, users: Iterable[str], job: str) -> str:
    """Empty where there is no such job."""
    return next((user for user in users if found.job(job, user).is_there()), "")


def state_of(found: store.Store, users: Iterable[str], job: str) -> str:
    """Of anybody's job; empty where there is none, or none that may be read (another user's session)."""
    return next((s for user in users if (s := _state(found.job(job, user)))), "")


def _state(job: Job) -> str:
    try:
        return job.state().name
    except OSError as error:
        if error.errno not in files.ABSENT:
            raise
        return ""
