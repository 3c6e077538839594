"""SIGKILL, and EIO, ENOSPC and ESTALE, at every call that touches a file of claim, start, end, archive and sweep; and a
disk that is full, or broken, from there on. See tests/kit/trials.py."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Callable

from calls import Calls
from queuebox import Box
from trials import Fault, Trial, check, recover, trials, victim, waiting_job

from mlbox.host import here, keeping, sweep, tick

_AWHILE = 40  # calls for which a detached process meets what lasts: it waits for the share as long as it takes


def ended(done: list[Trial], name: str, least: int, *, may_fail: bool = False) -> None:
    assert len(done) > 1 and done[-1].at > least, "calls have escaped"
    recover(done)
    check(done, may_fail=may_fail)
    print(f"{name}: {done[-1].at - 1} calls, {len(done)} trials")


def test_claim(roots: Path, fault: Fault) -> None:
    """A tick, from its lock to its published inventory, under a limit; its keeper goes on undisturbed."""
    done = []
    for trial in trials(roots, fault):
        found = trial.box.found
        trial.box.lab("queues: {default: {max_running: 1}}\n")
        trial.acknowledged.append(waiting_job(trial.box).id)

        def act(calls: Calls) -> None:
            calls.begin()
            tick.run(found)  # noqa: B023

        victim(trial, act)
        done.append(trial)
    ended(done, "claim", 200)


def detached(roots: Path, fault: Fault, which: int, least: int, most: int = 1 << 30) -> None:
    """One job to its end, in trials that count the calls of a process that is detached for it: the keeper, which the
    tick forks, or (`which` = 1) the runner, which the keeper forks."""
    done = []
    for trial in trials(roots, fault, most):
        job = waiting_job(trial.box)
        trial.acknowledged.append(job.id)
        trial.lasting = min(trial.lasting, _AWHILE)
        read, said = os.pipe()

        def act(calls: Calls, box: Box = trial.box, said: int = said) -> None:
            real, seen = keeping.detach, [0]

            def detach(body: Callable[[], None], log: Path | None, keep: Iterable[int]) -> None:
                def counted() -> None:
                    calls.begin()
                    try:
                        body()
                    finally:
                        calls.end()
                        os.write(said, ",".join(calls.names).encode())

                seen[0] += 1
                real(counted if seen[0] == which + 1 else body, log, (*keep, said))

            keeping.detach = detach
            tick.run(box.found)

        victim(trial, act)
        os.close(said)
        with os.fdopen(read) as file:
            words = file.read()  # its end is theirs
        trial.names = words.split(",") if words else []
        trial.through = 0 < len(trial.names) < trial.at
        done.append(trial)
    ended(done, f"process {which}", least, may_fail=fault.codes != (0,))


def test_keeper_from_claim_to_archive(roots: Path, fault: Fault) -> None:
    """The keeper itself: preparation, start, end, hints, archive, and the tick behind it."""
    detached(roots, fault, 0, 250)


def test_runner(roots: Path, fault: Fault) -> None:
    """The command is started, its output kept, its end noted for the keeper; a runner that is gone is a loss."""
    detached(roots, fault, 1, 15, 4)


def test_sweep_of_a_lost_job(roots: Path, fault: Fault) -> None:
    """The recovery itself is killed: of a job whose keeper and runner are dead."""
    done = []
    for trial in trials(roots, fault):
        box = trial.box
        job = waiting_job(box)
        trial.acknowledged.append(job.id)
        box.found.mark_live(job, {})
        box.found.reserve(job)
        facts = {"host": box.found.host, "boot": here.this_writer().boot, "attempt": 1, "gpus": []}
        assert job.append("claimed", facts)

        def act(calls: Calls) -> None:
            calls.begin()
            sweep.sweep(box.found)  # noqa: B023

        victim(trial, act)
        done.append(trial)
    ended(done, "sweep", 100)
