"""Trials of what a process does to a ROOT: each has a ROOT of its own, a job (`/bin/true`, runtime process, nothing
stubbed), and a process that dies or fails at its n-th call; n goes from 1 until the process gets through. Then fresh
processes tick until the job has ended, and the invariants of the queue are checked: an acknowledged job ends, no
attempt is claimed twice, nothing is left over. What is counted: tests/kit/calls.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calls import ERRORS, Calls
from queuebox import Box

from mlbox import errors
from mlbox.core import wire
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.session import Spec
from mlbox.host import serve, sweep, tick
from mlbox.host.handlers import submit
from mlbox.host.job import Job

Json = dict[str, Any]
Act = Callable[[Calls], object]
TRUE = JobSpec(command=("/bin/true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0))
PATIENCE = 600.0  # s for all recoveries of one test
# 1: every call meets every fault (`make faults`). The gate takes each n-th, with the three errors in turn, and a disk
# that is full, or broken, at each fourth of these.
EVERY = int(os.environ.get("MLBOX_FAULTS_EVERY", "1"))


@dataclass(frozen=True)
class Fault:
    """`codes`: the errors, in turn; 0 kills. `lasting`: at how many calls, the first one and those that write."""

    codes: tuple[int, ...]
    lasting: int = 1

    @property
    def step(self) -> int:
        return EVERY if self.lasting == 1 or EVERY == 1 else 4 * EVERY


_FOR_GOOD = 1 << 30
_ERRORS = {errno.errorcode[code]: Fault((code,)) for code in ERRORS} if EVERY == 1 else {"errors": Fault(ERRORS)}
_LASTING = {"full": Fault((errno.ENOSPC,), _FOR_GOOD), "broken": Fault((errno.EIO,), _FOR_GOOD)}
FAULTS = {"killed": Fault((0,)), **_ERRORS, **_LASTING}


@dataclass
class Trial:
    box: Box
    at: int
    code: int
    lasting: int = 1
    acknowledged: list[str] = field(default_factory=list)
    refused: bool = False  # what was asked for was answered by an error, and nothing is to be left of it
    through: bool = False
    names: list[str] = field(default_factory=list)


def trials(folder: Path, fault: Fault, most: int = 1 << 30) -> Iterator[Trial]:
    """With one more call survived each (or `step` more, and `most`). Ends when one got through."""
    for number in range(5000):
        at = 1 + number * min(fault.step, most)
        trial = Trial(Box(folder / str(at)), at, fault.codes[number % len(fault.codes)], fault.lasting)
        yield trial
        if trial.through:
            return
    raise AssertionError("it never gets through")


def child(act: Callable[[], object], output: int = -1) -> int:
    """Run it in a process of its own, which says what it says to the descriptor `output`; how that ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            output = os.open(os.devnull, os.O_WRONLY) if output < 0 else output
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
            act()
            code = 0
        except (errors.MlboxError, OSError):
            code = 3
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def victim(trial: Trial, act: Act) -> bytes:
    """`act` in a process that dies, or fails, at its n-th call; what it said. An error ends it, and not as a bug."""
    read, write = os.pipe()
    calls = Calls(trial.at, trial.code, trial.lasting)

    def run() -> None:
        try:
            act(calls)
        finally:
            os.writev(1, [f"\ncount {calls.count}\nnames {','.join(calls.names)}\n".encode()])

    child(run, write)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    lines = said.decode().split("\n")
    counts = [int(line.split()[1]) for line in lines if line.startswith("count ")]
    trial.names = next((line[6:].split(",") for line in lines if line.startswith("names ")), [])
    trial.through = bool(counts) and counts[0] < trial.at
    assert b"Traceback" not in said, (trial.at, trial.code, said.decode())
    return said


def asked(trial: Trial, verb: str, **arguments: Any) -> Json:
    """A request as a laptop makes it, to a process that dies, or fails; the reply. Empty where none came; an error is a
    clear one."""
    request = wire.Request(verb, {**arguments, "root": str(trial.box.root)})

    def act(calls: Calls) -> None:
        read, write = os.pipe()
        os.write(write, request.encode())
        os.close(write)
        os.dup2(read, 0)
        calls.begin()
        serve.main()

    messages = list(wire.MessageReader(request.nonce).feed(victim(trial, act)))
    ended = [message for message in messages if "progress" not in message]
    assert len(ended) == 1 or (not trial.code and not ended), (trial.at, messages)
    error = ended[0].get("error") if ended else None
    if error:
        assert error["hint"] and not error["message"].startswith("a bug"), (trial.at, trial.code, error)
        trial.refused = "in line" not in error["message"]
    return dict(ended[0].get("reply", {})) if ended else {}


def waiting_job(box: Box) -> Job:
    job = submit.submit(box.found, TRUE)
    box.jobs.append(job)
    return job


def jobs_of(box: Box) -> list[Job]:
    folder = box.found.own() / "jobs"
    return [box.found.job(path.name) for path in folder.glob("*/*")] if folder.is_dir() else []


def recover(all_: list[Trial]) -> None:
    """Ticks in fresh processes until nothing is left to do."""
    deadline = time.monotonic() + PATIENCE
    left = list(all_)
    while left:
        for trial in left:
            assert child(lambda: tick.run(trial.box.found)) == 0  # noqa: B023 (called at once)
        settle = time.monotonic() + 0.5
        while (left := [t for t in left if not is_settled(t)]) and time.monotonic() < settle:
            time.sleep(0.05)
        assert time.monotonic() < deadline, [(t.at, [j.events() for j in jobs_of(t.box)]) for t in left][:3]


def is_settled(trial: Trial) -> bool:
    found = trial.box.found
    hints = [p for folder in (found.live, found.making) for p in (folder.iterdir() if folder.is_dir() else ())]
    return not hints and not any(job.state().live for job in jobs_of(trial.box)) and not trial.box.hints()


def check(all_: list[Trial], *, may_fail: bool) -> None:
    for trial in all_:
        box = trial.box
        # An idle tick sweeps nothing, and one in ten minutes is none.
        assert child(lambda: (sweep.sweep(box.found), tick.run(box.found))) == 0  # noqa: B023 (called at once)
        made = {job.id: job for job in jobs_of(box)}
        assert set(trial.acknowledged) <= set(made), (trial.at, "an acknowledged job is gone")
        box.jobs = list(made.values())
        for job in box.jobs:
            state = job.state()
            good = {"finished", "cancelled"} | ({"failed"} if may_fail else set())
            assert state.name in good, (trial.at, trial.names[-1:], job.events(), box.keeper_log(job))
            claims = box.claims(job)
            assert claims == list(range(1, len(claims) + 1)), (trial.at, claims)
            assert box.archived().get(job.id) == state.name, (trial.at, "not in the archive", box.archived())
        with contextlib.suppress(FileNotFoundError):
            box.assert_nothing_leaks()
