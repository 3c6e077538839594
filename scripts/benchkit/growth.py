"""What a tick, a submit and a claim cost in ROOTs that have grown: CPU time, in process, of so many waiting jobs (their
hints, in a queue that is paused, or of jobs that wait for another) and so many ended ones (lines of the archive).

CPU time, because it is what grows with what is there; how long a disk takes, or others have the CPU, does not.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from unittest import mock

from benchkit.measure import Row, at_most, in_turn, tell
from benchkit.peers import pause
from mlbox.core import ids
from mlbox.core.hints import waiting, waiting_to_wire
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.schedule import After, Start
from mlbox.core.session import Spec
from mlbox.host import archive, claim, keeping, lab, ready, store, tick
from mlbox.host.handlers import submit

TICKS = 3  # per run: they take milliseconds
WAITING = (1_000, 10_000, 100_000)
ENDED = (1_000, 10_000, 100_000, 1_000_000)
A_FEW = WAITING[0]  # waiting where the ended grow, for a tick without any leaves at once
_SPREAD = 0.1  # s between two submits of those that wait
_A_DAY = 10_000  # lines of one archive file
_PATIENCE = 60.0  # s of CPU time to fill a ROOT


@dataclass(frozen=True)
class Place:
    """A ROOT with so much in it."""

    name: str
    waiting: int
    ended: int
    found: store.Store

    def tick(self) -> float:
        before = time.process_time()
        tick.run(self.found)
        return time.process_time() - before

    def submit(self) -> float:
        before = time.process_time()
        submit.submit(self.found, _SPEC)
        return time.process_time() - before

    def claim(self) -> float:
        """Of one that was submitted just now, without the process that would run it."""
        made = submit.submit(self.found, _SPEC)
        job = waiting(made.id, self.found.user, _SPEC, made.state())
        with mock.patch.object(keeping, "detach"):
            before = time.process_time()
            claimed = claim.start(self.found, job, Start(made.id, (), 0, 0), None, tick.again)
            taken = time.process_time() - before
        self.found.end(made)
        if not claimed:
            raise RuntimeError(f"{self.name}: a job that waits could not be claimed")
        return taken


_SPEC = JobSpec(command=("true",), work=Spec(runtime="process", name="bench"), resources=Resources(gpus="0"))


def _place(folder: Path, waits: int, ended: int, held: bool = False, array: bool = False) -> Place:
    """`held`: they wait for a job that is not there, in a queue that is not paused; `array`: they are one."""
    found = store.Store(Path(tempfile.mkdtemp(prefix="root-", dir=folder)))
    lab.make_root(found.root)
    found.open_users()
    if not held:
        pause(found.root)
    with mock.patch("os.fsync"):  # one sync for all below
        waits, ended = _fill_line(found, waits, held, array), _fill_archive(found, ended)
    os.sync()
    return Place(found.root.name, waits, ended, found)


def _fill_line(found: store.Store, wanted: int, held: bool, array: bool) -> int:
    """Jobs that wait, as ticks see them: their hints, without what only a claim would look at. How many there are."""
    if not wanted:
        return 0
    model = submit.submit(found, _SPEC)
    first = waiting(model.id, found.user, _SPEC, model.state())
    ready.withdraw(found, first)
    first = replace(first, after=(After(ids.following(model.id)),) if held else (), array=first.id if array else "")
    content, made = json.dumps(waiting_to_wire(first)).encode(), Path()
    deadline = time.process_time() + _PATIENCE
    for number, id_ in enumerate(islice(_in_a_row(first.id) if array else _one_by_one(first.id), wanted)):
        folder = ready.folder(found, replace(first, id=id_))
        if folder != made:
            folder.mkdir(parents=True, exist_ok=True)
            made = folder
        (folder / id_).write_bytes(content.replace(first.id.encode(), id_.encode(), 1))
        if number % 1000 == 999:
            tell(f"putting jobs in line: {_short(number + 1)} of {_short(wanted)}")
            if time.process_time() > deadline:
                return number + 1
    return wanted


def _in_a_row(first: str) -> Iterator[str]:
    """Of an array."""
    while True:
        yield first
        first = ids.following(first)


def _one_by_one(first: str) -> Iterator[str]:
    """Of one job, and of others that were submitted before it."""
    yield first
    now = time.time()
    for number in count(1):
        yield ids.ulid(int(1000 * (now - number * _SPREAD)), secrets.token_bytes(10))


def _fill_archive(found: store.Store, wanted: int) -> int:
    """Lines as they would be after as many jobs. How many there are."""
    model = submit.submit(found, _SPEC)
    line = json.dumps({**archive.summary(model, _SPEC, model.state()), "state": "finished", "exit": 0}).encode() + b"\n"
    ready.withdraw(found, waiting(model.id, found.user, _SPEC, model.state()))
    folder = found.own() / "archive"
    folder.mkdir(parents=True, exist_ok=True)
    now, deadline, made = time.time(), time.process_time() + _PATIENCE, 0
    while made < wanted and time.process_time() < deadline:
        tell(f"filling the archive: {_short(made)} of {_short(wanted)}")
        at = now - 86400 * (1 + made // _A_DAY)
        names = (ids.ulid(int(at * 1000), secrets.token_bytes(10)).encode() for _ in range(min(_A_DAY, wanted - made)))
        name = f"{time.strftime('%Y-%m-%d', time.gmtime(at))}.{found.host}.jsonl"
        (folder / name).write_bytes(b"".join(line.replace(model.id.encode(), id_) for id_ in names))
        made = min(wanted, made + _A_DAY)
    return made


def by_waiting(folder: Path, turns: int) -> tuple[list[Row], list[str]]:
    places = [_place(folder, number, 0) for number in (0, *WAITING)]
    rows, notes = _growth(places, "waiting", places[1], 1.5, turns)
    few, array = places[1], _place(folder, submit.MOST_IN_ARRAY, 0, array=True)
    found = in_turn(turns * TICKS, {place.name: place.tick for place in (few, array)}, "tick")
    what = f"tick, an array of {_short(array.waiting)} waiting"
    row = Row("e", what, "s", found[array.name], found[few.name], f"{_short(few.waiting)} waiting")
    return [*rows, at_most(row, 1.5), *_held(folder, turns)], notes


def _held(folder: Path, turns: int) -> list[Row]:
    """Jobs that can't start are looked through, and never all at once."""
    few, many = (_place(folder, number, 0, held=True) for number in (WAITING[0], WAITING[-1]))
    found = in_turn(turns * TICKS, {place.name: place.tick for place in (few, many)}, "tick")
    what, beside = f"tick, {_short(many.waiting)} waiting for another", f"{_short(few.waiting)} waiting for another"
    return [at_most(Row("e", what, "s", found[many.name], found[few.name], beside), 1.5)]


def by_ended(folder: Path, turns: int) -> tuple[list[Row], list[str]]:
    places = [_place(folder, A_FEW, number) for number in (0, *ENDED)]
    return _growth(places, "ended", places[0], 1.25, turns)


def _growth(places: Sequence[Place], of: str, base: Place, aim: float, turns: int) -> tuple[list[Row], list[str]]:
    """The last of the places beside `base`; `aim` is the tick's. How many there are is what could be made in time."""
    sizes = {place.name: int(getattr(place, of)) for place in places}
    names = {name: f"{_short(size)} {of}" for name, size in sizes.items()}
    last, rows, notes = places[-1], [], []
    for what in ("tick", "submit", "claim"):
        found = in_turn(turns * TICKS, {place.name: getattr(place, what) for place in places}, what)
        row = Row("e", f"{what}, {names[last.name]}", "s", found[last.name], found[base.name], names[base.name])
        rows.append(at_most(row, aim) if what == "tick" else row)
        notes.append(_grown(what, of, {sizes[name]: samples for name, samples in found.items()}))
    return rows, notes


def _grown(what: str, of: str, found: Mapping[int, Sequence[float]]) -> str:
    middle = {number: statistics.median(samples) for number, samples in found.items()}
    said = ", ".join(f"{_short(number)}: {value * 1000:.2f} ms" for number, value in middle.items())
    least, most = min(filter(None, middle)), max(middle)
    return f"e: {what} by {of}: {said}; from {_short(least)} to {_short(most)} it grows as n^{exponent(middle):.3f}"


def exponent(found: Mapping[int, float]) -> float:
    """b of a * n**b, by least squares on the logarithms; none of nothing has no logarithm."""
    points = [(math.log(number), math.log(value)) for number, value in found.items() if number]
    x, y = (statistics.mean(side) for side in zip(*points))
    return float(sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points))


def _short(number: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{letter}"
    return str(number)
