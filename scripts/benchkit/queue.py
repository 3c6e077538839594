"""Part e: the queue beside nq, task-spooler and Slurm on this machine, and what it costs when it has grown.

latency   from before the submit until the job, which notes the time, runs
rates     N jobs of `true`: submits a second; and jobs a second, from the first submit until the last has ended
cost      of a tick, a submit and a claim, with so many that wait and so many that have ended (growth.py)
processor what a submit costs of it, and what cron runs every minute where nothing waits, beside `python3 -c pass`

Everything lies in one folder of /tmp.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchkit import growth
from benchkit.laptop import PYTHON
from benchkit.measure import Row, Subject, at_most, cpu_seconds, in_turn, seconds, tell
from benchkit.peers import CPUS, Mlbox, Queue, Slurm, put, started, undisturbed, until
from mlbox.host import here

RUNS = 10
JOBS = 50  # of each rate
_TRUE = ("true",)
_PASS, _BARE = "python3 -c pass", "python3 -I -S -c pass"


def run(runs: int | None) -> tuple[list[Row], list[str]]:
    turns = runs or RUNS
    with _folder() as folder, contextlib.ExitStack() as stack:
        ours = stack.enter_context(contextlib.closing(Mlbox(folder)))
        peers, notes = started(folder, stack)
        put(ours, _TRUE)  # the first one plants, and makes folders
        parts: list[tuple[list[Row], list[str]]] = [
            (_latency(ours, peers, turns), notes),
            _hurried(ours, peers, turns),
            _rates(ours, peers, max(1, min(3, turns // 4))),
            ([*_submit(ours, turns), *_idle(ours, turns)], []),
            growth.by_waiting(folder, turns),
            growth.by_ended(folder, turns),
        ]
        tell("cleaning up")
    return [row for rows, _ in parts for row in rows], [line for _, lines in parts for line in lines]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """For all that is made here, also of ROOTs' places outside of them; gone in the end, whatever comes."""
    folder = Path(tempfile.mkdtemp(prefix="mb-", dir="/tmp"))  # sockets need short names
    try:
        yield folder
    finally:
        with undisturbed():
            for root in folder.glob("root*"):
                mark = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
                for path in Path(f"/tmp/mlbox-{os.getuid()}").glob(f"*-{mark}.*"):
                    path.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


# ---- latency and rates -------------------------------------------------------------------------------


def _latency(ours: Queue, peers: Sequence[Queue], turns: int) -> list[Row]:
    queues = {queue.name: partial(_began, queue) for queue in (ours, *peers)}
    found = in_turn(turns, queues, "submit to running")
    rows = [Row("e", "submit to running", "s", found["mlbox"], found[peer.name], peer.name) for peer in peers]
    return [at_most(row, 1.0) if row.base_name == Slurm.name else row for row in rows]


def _hurried(ours: Queue, peers: Sequence[Queue], turns: int) -> tuple[list[Row], list[str]]:
    """Slurm once more, and from here on, as one can set it."""
    rows, notes = [], []
    for slurm in peers:
        if isinstance(slurm, Slurm):
            slurm.hurry()
            found = in_turn(turns, {q.name: partial(_began, q) for q in (ours, slurm)}, "submit to running")
            rows.append(Row("e", "submit to running", "s", found["mlbox"], found[slurm.name], slurm.name))
            notes.append(f"e: {slurm.name}: SchedulerParameters=batch_sched_delay=0,sched_min_interval=0")
    return rows, notes


def _began(queue: Queue) -> float:
    """One job from before its submit to the time that it notes."""
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as folder:
        mark = Path(folder) / "began"
        before = time.time()
        put(queue, ("sh", "-c", 'date +%s.%N >"$0.part" && mv "$0.part" "$0"', str(mark)))
        until(mark.exists, f"a job of {queue.name}'s", patience=60)
        return float(mark.read_text()) - before


def _rates(ours: Queue, peers: Sequence[Queue], turns: int) -> tuple[list[Row], list[str]]:
    ways = {queue.name: partial(_each, queue) for queue in (ours, *peers)}
    ways.update({f"{queue.name}, array": partial(_at_once, queue) for queue in (ours, *peers) if queue.arrays})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(turns):
        for name, way in ways.items():
            tell(f"{JOBS} jobs: {number + 1} of {turns}, {name}")
            found[name].append(way())
    rows, notes = [], []
    for at, what in enumerate(("submits/s", "drained/s")):
        rate = {name: [pair[at] for pair in pairs] for name, pairs in found.items()}
        said = "; ".join(f"{name} {statistics.median(values):.1f}" for name, values in rate.items())
        notes.append(f"e: {what} of {JOBS} jobs: {said} ({CPUS} at once, but nq one)")
        for name in ("mlbox", "mlbox, array"):
            for peer in peers:
                base = f"{peer.name}, array" if "array" in name and peer.arrays else peer.name
                words = f"{what}, {'an array' if 'array' in name else 'a command each'}"
                rows.append(Row("e", words, "count", rate[name], rate[base], base))
    return rows, notes


def _each(queue: Queue) -> tuple[float, float]:
    """Submits a second, drained jobs a second."""
    before = time.perf_counter()
    for _ in range(JOBS):
        seconds(queue.argv(_TRUE), queue.env)
    submitted = time.perf_counter()
    until(queue.empty, queue.name, queue.pause)
    return JOBS / (submitted - before), JOBS / (time.perf_counter() - before)


def _at_once(queue: Queue) -> tuple[float, float]:
    before = time.perf_counter()
    return JOBS / put(queue, _TRUE, JOBS), JOBS / (time.perf_counter() - before)


def _submit(ours: Mlbox, turns: int) -> list[Row]:
    """Of the processes that the command waits for: its own and the host's part; not of what keeps the job."""

    def one() -> float:
        taken = cpu_seconds(ours.argv(_TRUE), ours.env)
        until(ours.empty, ours.name, ours.pause)
        return taken

    subjects: dict[str, Subject] = {"submit": one, **_starts(ours)}
    found = in_turn(turns, subjects, "a submit's CPU time")
    return [Row("e", "submit, CPU time", "s", found["submit"], found[name], name) for name in (_PASS, _BARE)]


def _starts(ours: Mlbox) -> dict[str, Subject]:
    """Of Python alone: with the site-packages that a laptop's part meets, and as the host's part starts."""
    argvs = {_PASS: (PYTHON, "-c", "pass"), _BARE: (PYTHON, "-I", "-S", "-c", "pass")}
    return {name: partial(cpu_seconds, argv, ours.env) for name, argv in argvs.items()}


def _idle(ours: Mlbox, turns: int) -> list[Row]:
    """As cron calls it, in a ROOT where nothing has been for less than ten minutes."""
    beat = ours.root / f"users/{here.user_name()}/on/{here.host_name()}/host.json"
    ticked = (PYTHON, "-I", "-S", str(ours.planted), "tick", "--root", str(ours.root))
    seconds(ticked, ours.env)
    before = beat.stat().st_mtime_ns
    subjects: dict[str, Subject] = {"tick": partial(cpu_seconds, ticked, ours.env), **_starts(ours)}
    found = in_turn(turns * growth.TICKS, subjects, "idle tick")
    if beat.stat().st_mtime_ns != before:
        raise RuntimeError("the idle tick had something to do")
    rows = [Row("e", "idle tick, CPU time", "s", found["tick"], found[name], name) for name in (_PASS, _BARE)]
    return [at_most(rows[0], 3.0), rows[1]]
