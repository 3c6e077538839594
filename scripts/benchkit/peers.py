"""What jobs are put into: mlbox, and its peers nq, task-spooler and Slurm, each of this benchmark's own.

All run as many jobs at once as there are CPUs, but nq, which runs one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable

from benchkit import packages
from benchkit.laptop import PYTHON, PYZ, environment, free_port
from benchkit.measure import note, seconds, tell
from mlbox.host import here, store

_PACKAGES = {"nq": "nq", "tsp": "task-spooler", "sbatch": "slurm-wlm", "munged": "munge"}
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until(true: Callable[[], bool], what: str, pause: float = 0.02, patience: float = 600.0) -> None:
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {patience:.0f} s")
        time.sleep(pause)


def pause(root: Path) -> None:
    """Its ticks start nothing."""
    (root / "paused").mkdir(exist_ok=True)
    (root / "paused/default").write_text(json.dumps({"by": "bench"}))


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
        path = f"{Path(PYTHON).parent}:{os.environ['PATH']}"  # the same Python at both ends, without a version manager
        self.env = environment(HOME=str(self.home), XDG_RUNTIME_DIR=str(self.home), PATH=path)
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
        with undisturbed():
            if self.root.exists():
                pause(self.root)
            with contextlib.suppress(RuntimeError):
                until(lambda: not self._processes(), "mlbox's processes", patience=30)
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
        with undisturbed(), contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(("nq", "-w"), env=self.env, timeout=60)


class TaskSpooler(Queue):
    name = "task-spooler"

    def __init__(self, folder: Path) -> None:
        (folder / "tsp").mkdir(mode=0o700)
        at = {"TS_SOCKET": str(folder / "tsp/s"), "TMPDIR": str(folder / "tsp")}
        self.env = environment(TS_SLOTS=str(CPUS), **at)

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
        names = {"host": here.host_name(), "user": here.user_name(), "folder": self._folder, "cpus": CPUS}
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
                    until((self._folder / "munge").exists, "munged", patience=10)
        until(lambda: self._said("sinfo", "-h", "-o", "%T") == "idle", "Slurm's node", 0.2, 40)

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
        with undisturbed():
            if len(self._daemons) == 3:
                self._said("scancel", "-u", here.user_name())
                with contextlib.suppress(RuntimeError, subprocess.SubprocessError):
                    until(self.empty, "Slurm's jobs", self.pause, 20)
            for daemon in reversed(self._daemons):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def started(folder: Path, stack: contextlib.ExitStack) -> tuple[list[Queue], list[str]]:
    """Those that can be had; they end with the stack."""
    why = packages.install(_PACKAGES)
    found: list[Queue] = []
    notes = []
    kinds: Mapping[str, Callable[[Path], Queue]] = {"nq": Nq, "tsp": TaskSpooler, "sbatch": Slurm}
    for program, kind in kinds.items():
        if not shutil.which(program):
            notes.append(f"e: {_PACKAGES[program]} is left out: {why}")
            continue
        tell(f"starting {_PACKAGES[program]}")
        try:
            found.append(stack.enter_context(contextlib.closing(kind(folder))))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            notes.append(f"e: {_PACKAGES[program]} is left out: {error}")
    for line in notes:
        note(line)
    return found, notes


def put(queue: Queue, command: Sequence[str], array: int = 0) -> float:
    """Submit, and wait until all is done. Seconds that the submit took."""
    taken = seconds(queue.argv(command, array), queue.env)
    until(queue.empty, queue.name, queue.pause)
    return taken
