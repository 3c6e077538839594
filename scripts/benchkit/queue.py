"""Part e: the queue beside nq, task-spooler and Slurm on this machine, and what it costs when it has grown.

latency   from before the submit until the job, which notes the time, runs
rates     N jobs of `true`: submits a second; and jobs a second, from the first submit until the last has ended
cost      of a tick, a submit and a claim, in process, in ROOTs of so many waiting jobs (their hints, in a queue that
          is paused, or of jobs that wait for another) and so many ended ones (lines of the archive)
idle      what cron runs every minute, where nothing waits, beside `python3 -c pass`

All run as many jobs at once as there are CPUs, but nq, which runs one. Everything lies in one folder of /tmp.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable
from unittest import mock

from benchkit import packages
from benchkit.laptop import PYTHON, PYZ, environment, free_port
from benchkit.measure import Row, at_most, in_turn, note, seconds, tell
from mlbox.core import ids
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.schedule import After, Start
from mlbox.core.session import Spec
from mlbox.host import archive, claim, here, keeping, lab, ready, store, tick
from mlbox.host.handlers import submit

RUNS = 10
JOBS = 100  # of each rate
TICKS = 3  # per run: they take milliseconds
WAITING = (1_000, 10_000, 100_000)
ENDED = (1_000, 10_000, 100_000, 1_000_000)
A_FEW = WAITING[0]  # waiting where the ended grow, for a tick without any leaves at once
_SPREAD = 100  # ms between two submits of those that wait
_A_DAY = 10_000  # lines of one archive file
_PATIENCE = 60.0  # s to fill a ROOT
_PACKAGES = {"nq": "nq", "tsp": "task-spooler", "sbatch": "slurm-wlm", "munged": "munge"}
_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_TRUE = ("true",)
_PASS, _BARE = "python3 -c pass", "python3 -I -S -c pass"


def run(runs: int | None) -> tuple[list[Row], list[str]]:
    turns = runs or RUNS
    with _folder() as folder, contextlib.ExitStack() as stack:
        ours = stack.enter_context(contextlib.closing(Mlbox(folder)))
        peers, notes = _peers(folder, stack)
        put(ours, _TRUE)  # the first one plants, and makes folders
        parts: list[tuple[list[Row], list[str]]] = [
            (_latency(ours, peers, turns), notes),
            _hurried(ours, peers, turns),
            _rates(ours, peers, max(1, min(3, turns // 4))),
            (_idle(ours, turns), []),
            _by_waiting(folder, turns),
            _by_ended(folder, turns),
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
        with _undisturbed():
            for root in folder.glob("root*"):
                mark = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
                for path in Path(f"/tmp/mlbox-{os.getuid()}").glob(f"*-{mark}.*"):
                    path.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _until(true: Callable[[], bool], what: str, pause: float = 0.02, patience: float = 600.0) -> None:
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {patience:.0f} s")
        time.sleep(pause)


# ---- queues ------------------------------------------------------------------------------------------


class Queue:
    """One to put commands into."""

    name = ""
    pause = 0.02  # s between two looks at whether it is empty: what a look costs, the jobs lack
    arrays = False
    env: Mapping[str, str]

    def argv(self, command: Sequence[str], array: int = 0) -> tuple[str, ...]:
        raise NotImplementedError

    def empty(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Mlbox(Queue):
    """The one file, host `local`, with a HOME and a ROOT of its own."""

    name, arrays = "mlbox", True

    def __init__(self, folder: Path) -> None:
        self.home, self.root = folder / "home", folder / "root"
        self.home.mkdir(mode=0o700)
        self.env = environment(HOME=str(self.home), XDG_RUNTIME_DIR=str(self.home))
        self._place = store.Store(self.root)
        subprocess.run(
            (PYTHON, str(PYZ), "init", "local", "--root", str(self.root)), env=self.env, stdin=subprocess.DEVNULL,
            capture_output=True, check=True, timeout=120,
        )  # fmt: skip

    def argv(self, command: Sequence[str], array: int = 0) -> tuple[str, ...]:
        many = ("--array", str(array)) if array else ()
        where = ("--host", "local", "--root", str(self.root))
        what = ("--gpus", "0", "--runtime", "process", "--no-code")
        return (PYTHON, str(PYZ), "submit", *where, *what, *many, "--", *command)

    def empty(self) -> bool:
        """A job is among those that wait until it is among those that live."""
        lines = (self._place.own() / "ready").glob("*/*")
        return not any(lines) and not any(self._place.live.iterdir())

    @property
    def planted(self) -> Path:
        """What cron would run."""
        return next((self.home / ".cache/mlbox").glob("mlbox-*.pyz"))

    def close(self) -> None:
        """Nothing new starts; what runs is waited for, and ended when it takes long."""
        with _undisturbed():
            if self.root.exists():
                _pause(self.root)
            with contextlib.suppress(RuntimeError):
                _until(lambda: not self._processes(), "mlbox's processes", patience=30)
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _processes(self) -> list[int]:
        mark = os.fsencode(self.home)
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


class Nq(Queue):
    name = "nq"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "nq"
        self.env = environment(NQDIR=str(self._folder))

    def argv(self, command: Sequence[str], array: int = 0) -> tuple[str, ...]:
        return ("nq", "-c", "-q", *command)

    def empty(self) -> bool:
        return not self._folder.exists() or subprocess.run(("nq", "-t"), env=self.env).returncode == 0

    def close(self) -> None:
        with _undisturbed(), contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(("nq", "-w"), env=self.env, timeout=60)


class TaskSpooler(Queue):
    name = "task-spooler"

    def __init__(self, folder: Path) -> None:
        (folder / "tsp").mkdir(mode=0o700)
        at = {"TS_SOCKET": str(folder / "tsp/s"), "TMPDIR": str(folder / "tsp")}
        self.env = environment(TS_SLOTS=str(_CPUS), **at)

    def argv(self, command: Sequence[str], array: int = 0) -> tuple[str, ...]:
        return ("tsp", *command)

    def empty(self) -> bool:
        lines = subprocess.run(("tsp",), env=self.env, capture_output=True, text=True, check=True).stdout.splitlines()
        return all(line.split()[1] == "finished" for line in lines[1:])

    def close(self) -> None:
        subprocess.run(("tsp", "-K"), env=self.env, capture_output=True)


_SLURM = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName=bench NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=bench Default=YES State=UP
"""


class Slurm(Queue):
    """munged, slurmctld and slurmd of this benchmark's own, as they come but for their places."""

    name, pause, arrays = "sbatch", 0.1, True

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "slurm"
        for path in (self._folder, self._folder / "state", self._folder / "spool"):
            path.mkdir(mode=0o700)
        self._conf, self._job = self._folder / "slurm.conf", self._folder / "job"
        self._job.write_text('#!/bin/sh\nexec "$@"\n')
        names = {"host": here.host_name(), "user": here.user_name(), "folder": self._folder, "cpus": _CPUS}
        self._conf.write_text(_SLURM.format(controller=free_port(), node=free_port(), **names))
        self.env = environment(SLURM_CONF=str(self._conf))
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        key, log = self._folder / "key", (self._folder / "log").open("wb")
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        places = {"key-file": "key", "socket": "munge", "pid-file": "pid", "log-file": "munge.log", "seed-file": "seed"}
        munge = tuple(f"--{option}={self._folder / name}" for option, name in places.items())
        with log:
            # --force: its socket is in a folder that is closed to others, as are the others here.
            for argv in (
                ("munged", "-F", "--force", *munge),
                ("slurmctld", "-D"),
                ("slurmd", "-D", "-N", "bench"),
            ):
                self._daemons.append(
                    subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     cwd=self._folder, start_new_session=True)
                )  # fmt: skip
                if argv[0] == "munged":
                    _until((self._folder / "munge").exists, "munged", patience=10)
        _until(lambda: self._said("sinfo", "-h", "-o", "%T") == "idle", "Slurm's node", 0.2, 40)

    def _said(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else "?"

    def argv(self, command: Sequence[str], array: int = 0) -> tuple[str, ...]:
        many = (f"--array=0-{array - 1}",) if array else ()
        return ("sbatch", "-Q", "-D", str(self._folder), "-o", "%j.out", *many, str(self._job), *command)

    def empty(self) -> bool:
        return self._said("squeue", "-h", "-o", "%i") == ""

    def hurry(self) -> None:
        """Without the delay by which it spares its scheduler: with it, a hundred jobs take minutes."""
        with self._conf.open("a") as file:
            file.write("SchedulerParameters=batch_sched_delay=0,sched_min_interval=0\n")
        subprocess.run(("scontrol", "reconfigure"), env=self.env, capture_output=True, check=True, timeout=60)
        self.name = f"{self.name}, no delay"

    def close(self) -> None:
        with _undisturbed():
            if len(self._daemons) == 3:
                self._said("scancel", "-u", here.user_name())
                with contextlib.suppress(RuntimeError, subprocess.SubprocessError):
                    _until(self.empty, "Slurm's jobs", self.pause, 20)
            for daemon in reversed(self._daemons):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def _peers(folder: Path, stack: contextlib.ExitStack) -> tuple[list[Queue], list[str]]:
    """Those that can be had; they end with the stack."""
    why = packages.install(_PACKAGES)
    peers: list[Queue] = []
    notes = []
    kinds: Mapping[str, Callable[[Path], Queue]] = {"nq": Nq, "tsp": TaskSpooler, "sbatch": Slurm}
    for program, kind in kinds.items():
        if not shutil.which(program):
            notes.append(f"e: {_PACKAGES[program]} is left out: {why}")
            continue
        tell(f"starting {_PACKAGES[program]}")
        try:
            peers.append(stack.enter_context(contextlib.closing(kind(folder))))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            notes.append(f"e: {_PACKAGES[program]} is left out: {error}")
    for line in notes:
        note(line)
    return peers, notes


def put(queue: Queue, command: Sequence[str], array: int = 0) -> float:
    """Submit, and wait until all is done. Seconds that the submit took."""
    taken = seconds(queue.argv(command, array), queue.env)
    _until(queue.empty, queue.name, queue.pause)
    return taken


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
        _until(mark.exists, f"a job of {queue.name}'s", patience=60)
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
        notes.append(f"e: {what} of {JOBS} jobs: {said} ({_CPUS} at once, but nq one)")
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
    _until(queue.empty, queue.name, queue.pause)
    return JOBS / (submitted - before), JOBS / (time.perf_counter() - before)


def _at_once(queue: Queue) -> tuple[float, float]:
    before = time.perf_counter()
    return JOBS / put(queue, _TRUE, JOBS), JOBS / (time.perf_counter() - before)


def _idle(ours: Mlbox, turns: int) -> list[Row]:
    """As cron calls it, in a ROOT where nothing has been for less than ten minutes."""
    beat = ours.root / f"users/{here.user_name()}/on/{here.host_name()}/host.json"
    ticked = (PYTHON, "-I", "-S", str(ours.planted), "tick", "--root", str(ours.root))
    seconds(ticked, ours.env)
    before = beat.stat().st_mtime_ns
    argvs = {"tick": ticked, _PASS: (PYTHON, "-c", "pass"), _BARE: (PYTHON, "-I", "-S", "-c", "pass")}
    subjects = {name: partial(seconds, argv, ours.env) for name, argv in argvs.items()}
    found = in_turn(turns * TICKS, subjects, "idle tick")
    if beat.stat().st_mtime_ns != before:
        raise RuntimeError("the idle tick had something to do")
    rows = [Row("e", "tick of cron's, idle", "s", found["tick"], found[name], name) for name in (_PASS, _BARE)]
    return [at_most(rows[0], 3.0), rows[1]]


# ---- cost and growth ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A ROOT with so much in it."""

    name: str
    waiting: int
    ended: int
    found: store.Store

    def tick(self) -> float:
        before = time.perf_counter()
        tick.run(self.found)
        return time.perf_counter() - before

    def submit(self) -> float:
        before = time.perf_counter()
        submit.submit(self.found, _SPEC)
        return time.perf_counter() - before

    def claim(self) -> float:
        """Of one that was submitted just now, without the process that would run it."""
        made = submit.submit(self.found, _SPEC)
        job = waiting(made.id, self.found.user, _SPEC, made.state())
        with mock.patch.object(keeping, "detach"):
            before = time.perf_counter()
            claimed = claim.start(self.found, job, Start(made.id, (), 0, 0), None, tick.again)
            taken = time.perf_counter() - before
        self.found.end(made)
        if not claimed:
            raise RuntimeError(f"{self.name}: a job that waits could not be claimed")
        return taken


_SPEC = JobSpec(command=_TRUE, work=Spec(runtime="process", name="bench"), resources=Resources(gpus="0"))


def _place(folder: Path, waits: int, ended: int, spread: int = _SPREAD, held: bool = False) -> Place:
    """`held`: they wait for a job that is not there, in a queue that is not paused."""
    found = store.Store(Path(tempfile.mkdtemp(prefix="root-", dir=folder)))
    lab.found(found.root)
    found.open_users()
    if not held:
        _pause(found.root)
    with mock.patch("os.fsync"):  # one sync for all below
        waits, ended = _fill_line(found, waits, spread, held), _fill_archive(found, ended)
    os.sync()
    return Place(found.root.name, waits, ended, found)


def _pause(root: Path) -> None:
    (root / "paused").mkdir(exist_ok=True)
    (root / "paused/default").write_text(json.dumps({"by": "bench"}))


def _fill_line(found: store.Store, wanted: int, spread: int, held: bool) -> int:
    """Jobs that wait, as ticks see them: their hints, without what only a claim would look at. How many there are."""
    if not wanted:
        return 0
    model = submit.submit(found, _SPEC)
    first = waiting(model.id, found.user, _SPEC, model.state())
    if held:
        ready.withdraw(found, first)
        first = replace(first, after=(After(ids.following(model.id)),))
        ready.publish(found, first)
    now, deadline = int(time.time() * 1000), time.monotonic() + _PATIENCE
    for number in range(1, wanted):
        if number % 1000 == 0:
            tell(f"putting jobs in line: {_short(number)} of {_short(wanted)}")
            if time.monotonic() > deadline:
                return number
        ready.publish(found, replace(first, id=ids.ulid(now - number * spread, secrets.token_bytes(10))))
    return wanted


def _fill_archive(found: store.Store, wanted: int) -> int:
    """Lines as they would be after as many jobs. How many there are."""
    model = submit.submit(found, _SPEC)
    line = json.dumps({**archive.summary(model, _SPEC, model.state()), "state": "finished", "exit": 0}).encode() + b"\n"
    ready.withdraw(found, waiting(model.id, found.user, _SPEC, model.state()))
    folder = found.own() / "archive"
    folder.mkdir(parents=True, exist_ok=True)
    now, deadline, made = time.time(), time.monotonic() + _PATIENCE, 0
    while made < wanted and time.monotonic() < deadline:
        tell(f"filling the archive: {_short(made)} of {_short(wanted)}")
        at = now - 86400 * (1 + made // _A_DAY)
        names = (ids.ulid(int(at * 1000), secrets.token_bytes(10)).encode() for _ in range(min(_A_DAY, wanted - made)))
        name = f"{time.strftime('%Y-%m-%d', time.gmtime(at))}.{found.host}.jsonl"
        (folder / name).write_bytes(b"".join(line.replace(model.id.encode(), id_) for id_ in names))
        made = min(wanted, made + _A_DAY)
    return made


def _by_waiting(folder: Path, turns: int) -> tuple[list[Row], list[str]]:
    places = [_place(folder, count, 0) for count in (0, *WAITING)]
    rows, notes = _growth(places, "waiting", places[1], 1.5, turns)
    few, array = places[1], _place(folder, submit.MOST_IN_ARRAY, 0, spread=0)  # all of one moment
    found = in_turn(turns * TICKS, {place.name: place.tick for place in (few, array)}, "tick")
    what = f"tick, an array of {_short(array.waiting)} waiting"
    row = Row("e", what, "s", found[array.name], found[few.name], f"{_short(few.waiting)} waiting")
    return [*rows, at_most(row, 1.5), *_held(folder, turns)], notes


def _held(folder: Path, turns: int) -> list[Row]:
    """Jobs that can't start are looked through, and never all at once."""
    few, many = (_place(folder, count, 0, held=True) for count in (WAITING[0], WAITING[-1]))
    found = in_turn(turns * TICKS, {place.name: place.tick for place in (few, many)}, "tick")
    what, beside = f"tick, {_short(many.waiting)} waiting for another", f"{_short(few.waiting)} waiting for another"
    return [at_most(Row("e", what, "s", found[many.name], found[few.name], beside), 1.5)]


def _by_ended(folder: Path, turns: int) -> tuple[list[Row], list[str]]:
    places = [_place(folder, A_FEW, count) for count in (0, *ENDED)]
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
    middle = {count: statistics.median(samples) for count, samples in found.items()}
    said = ", ".join(f"{_short(count)}: {value * 1000:.2f} ms" for count, value in middle.items())
    least, most = min(filter(None, middle)), max(middle)
    return f"e: {what} by {of}: {said}; from {_short(least)} to {_short(most)} it grows as n^{exponent(middle):.3f}"


def exponent(found: Mapping[int, float]) -> float:
    """b of a * n**b, by least squares on the logarithms; none of nothing has no logarithm."""
    points = [(math.log(count), math.log(value)) for count, value in found.items() if count]
    x, y = (statistics.mean(side) for side in zip(*points))
    return float(sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points))


def _short(count: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size and count % size == 0:
            return f"{count // size}{letter}"
    return str(count)
