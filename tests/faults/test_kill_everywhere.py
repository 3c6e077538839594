"""SIGKILL, and EIO, ENOSPC and ESTALE, at every filesystem call of submit, claim, finish, cancel, move, retry,
prune, fence and sweep.

Each trial has a ROOT of its own, a job (`/bin/true`, runtime process, nothing stubbed), and a process that dies or
fails at its n-th call; n goes from 1 until the process gets through. Then fresh processes tick until the job has
ended, and the invariants of the queue are checked: an acknowledged job ends, no attempt is claimed twice, nothing is
left over. What is counted: tests/kit/calls.py.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from calls import ERRORS, Calls
from queuebox import Box, until

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.schedule import After
from mlbox.core.session import Spec
from mlbox.host import here, keeping, ready, sweep, tick
from mlbox.host.handlers import host, move, prune, queue, retry, show, submit
from mlbox.host.job import Job

TRUE = JobSpec(command=("/bin/true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0))
PATIENCE = 60.0  # s for all recoveries of one test


@dataclass
class Trial:
    box: Box
    at: int
    code: int = 0
    acknowledged: list[str] = field(default_factory=list)
    through: bool = False
    names: list[str] = field(default_factory=list)


def child(act: Callable[[], object]) -> int:
    """Run it in a process of its own; how that ended."""
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        code = 1
        try:
            act()
            code = 0
        except Exception:
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Every call takes minutes: `make faults`. The gate takes each seventh, which still meets every function.
EVERY = int(os.environ.get("MLBOX_FAULTS_EVERY", "1"))


def victim(trial: Trial, act: Callable[[Calls, Callable[[str], None]], None]) -> None:
    """`act` in a process that dies, or fails, at its n-th call; what it acknowledged, and whether it got so far."""
    read, write = os.pipe()
    calls = Calls(trial.at, trial.code)

    def run() -> None:
        def say(word: str) -> None:
            os.writev(write, [word.encode() + b"\n"])

        try:
            act(calls, say)
        finally:
            say(f"count {calls.count}")
            say("names " + ",".join(calls.names))

    child(run)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        lines = file.read().decode().split("\n")
    counts = [int(line.split()[1]) for line in lines if line.startswith("count ")]
    trial.names = next((line[6:].split(",") for line in lines if line.startswith("names ")), [])
    trial.acknowledged += [line.split()[1] for line in lines if line.startswith("ack ")]
    trial.through = bool(counts) and counts[0] < trial.at


def trials(folder: Path, codes: tuple[int, ...]) -> Iterator[Trial]:
    """With one more call survived each (or EVERY more); `codes` in turn (0 kills). Ends when one got through."""
    at = 1 - EVERY
    while True:
        at += EVERY
        trial = Trial(Box(folder / str(at)), at, codes[at % len(codes)])
        yield trial
        if trial.through:
            return
        assert at < 1500, "it never gets through"


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


@pytest.fixture
def roots() -> Iterator[Path]:
    """In memory where there is such a place: fsync costs nothing there, and the order of calls is the same."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


@pytest.fixture(params=[(0,), ERRORS], ids=["killed", "errors"])
def codes(request: pytest.FixtureRequest) -> tuple[int, ...]:
    found: tuple[int, ...] = request.param
    return found


def test_submit(roots: Path, codes: tuple[int, ...]) -> None:
    done = []
    for trial in trials(roots, codes):
        box = trial.box

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            job = submit.submit(box.found, TRUE)  # noqa: B023
            say(f"ack {job.id}")

        victim(trial, act)
        done.append(trial)
    assert len(done) * EVERY > 40, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    assert done[-1].acknowledged
    print(f"submit: {len(done) - 1} calls")


def test_claim(roots: Path, codes: tuple[int, ...]) -> None:
    """A tick, from its lock to its published inventory, under a limit; its keeper goes on undisturbed."""
    done = []
    for trial in trials(roots, codes):
        box = trial.box
        box.lab("queues: {default: {max_running: 1}}\n")
        trial.acknowledged.append(waiting_job(box).id)

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            tick.run(box.found)  # noqa: B023

        victim(trial, act)
        done.append(trial)
    assert len(done) * EVERY > 80, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    print(f"claim: {len(done) - 1} calls")


def detached(roots: Path, codes: tuple[int, ...], which: int, least: int) -> None:
    """One job to its end, in trials that count the calls of a process that is detached for it: the keeper, which the
    tick forks, or (`which` = 1) the runner, which the keeper forks."""
    done = []
    for trial in trials(roots, codes):
        job = waiting_job(trial.box)
        trial.acknowledged.append(job.id)
        count = trial.box.root.with_suffix(".count")

        def act(calls: Calls, say: Callable[[str], None], box: Box = trial.box, count: Path = count) -> None:
            real, seen = keeping.detach, [0]

            def detach(body: Callable[[], None], log: Path | None, keep: Iterable[int]) -> None:
                def counted() -> None:
                    calls.begin()
                    try:
                        body()
                    finally:
                        descriptor = os.open(count, os.O_WRONLY | os.O_CREAT)
                        os.writev(descriptor, [str(calls.count).encode()])

                seen[0] += 1
                real(counted if seen[0] == which + 1 else body, log, keep)

            keeping.detach = detach
            tick.run(box.found)

        victim(trial, act)
        until(lambda: not keeping.lives(job))  # noqa: B023
        trial.through = count.exists() and int(count.read_text() or trial.at) < trial.at
        done.append(trial)
    assert len(done) * EVERY > least, "calls have escaped"
    recover(done)
    check(done, may_fail=codes != (0,))
    print(f"{len(done) - 1} calls")


def test_keeper_from_claim_to_archive(roots: Path, codes: tuple[int, ...]) -> None:
    """The keeper itself: preparation, start, end, hints, archive, and the tick behind it."""
    detached(roots, codes, 0, 100)


def test_runner(roots: Path, codes: tuple[int, ...]) -> None:
    """The command is started, its output kept, its end noted for the keeper; a runner that is gone is a loss."""
    detached(roots, codes, 1, 10)


def test_cancel(roots: Path, codes: tuple[int, ...]) -> None:
    done = []
    for trial in trials(roots, codes):
        box = trial.box
        job = waiting_job(box)
        trial.acknowledged.append(job.id)

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            box.cancel(job)  # noqa: B023

        victim(trial, act)
        done.append(trial)
    assert len(done) * EVERY > 40, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    print(f"cancel: {len(done) - 1} calls")


def test_move(roots: Path, codes: tuple[int, ...]) -> None:
    """From a queue that starts nothing, so nobody looks for it there any more."""
    done = []
    for trial in trials(roots, codes):
        box = trial.box
        box.lab("queues: {default: {}, other: {}}\n")
        box.call(queue, do="pause", queue="default")
        job = waiting_job(box)
        trial.acknowledged.append(job.id)

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            box.call(move, job=job.id, queue="other")  # noqa: B023

        victim(trial, act)
        if not job.state().facts.get("moves"):  # it was not moved
            assert job.state().waiting and box.hints() == [job.id]
            box.call(queue, do="resume", queue="default")
        done.append(trial)
    assert len(done) * EVERY > 80, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    print(f"move: {len(done) - 1} calls")


def test_retry(roots: Path, codes: tuple[int, ...]) -> None:
    done = []
    for trial in trials(roots, codes):
        box = trial.box
        job = waiting_job(box)
        box.cancel(job)

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            say(f"ack {box.call(retry, job=job.id)['id']}")  # noqa: B023

        victim(trial, act)
        done.append(trial)
    assert len(done) * EVERY > 80, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    print(f"retry: {len(done) - 1} calls")


def test_prune(roots: Path, codes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an ended job with its output, and one that another waits for. The first is there whole or not at all; the next
    pruning goes on with what is left of it."""
    monkeypatch.setattr(prune, "pause", lambda seconds: None)
    done = []
    for trial in trials(roots, codes):
        box = trial.box
        box.lab("queues: {default: , shut: }\n")
        box.call(queue, do="pause", queue="shut")
        old, needed = waiting_job(box), waiting_job(box)
        for job in old, needed:
            box.cancel(job)
            job.attempt(1).mkdir()
            (job.attempt(1) / "output.log").write_text("said")
        waits = submit.submit(box.found, replace(TRUE, queue="shut", after=(After(needed.id, "any"),)))
        box.jobs.append(waits)

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            box.call(prune, older_than=0)  # noqa: B023

        victim(trial, act)
        assert child(lambda: tick.run(box.found)) == 0  # noqa: B023
        assert box.call(show, job=needed.id)["job"]["state"] == "cancelled"
        if is_there(box, old):
            assert (old.state().name, box.output(old)) == ("cancelled", "said"), (trial.at, trial.names[-1:])
        box.call(prune, older_than=0)
        assert not old.folder.exists(), (trial.at, trial.names[-1:])
        assert list((box.found.own() / "pruning").iterdir()) == []
        assert {job.id for job in jobs_of(box)} == {needed.id, waits.id}
        trial.acknowledged += [needed.id, waits.id]
        box.call(queue, do="resume", queue="shut")
        done.append(trial)
    assert len(done) * EVERY > 60, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    print(f"prune: {len(done) - 1} calls")


def is_there(box: Box, job: Job) -> bool:
    try:
        return bool(box.call(show, job=job.id))
    except errors.NotFound:
        return False


def test_fence(roots: Path, codes: tuple[int, ...]) -> None:
    """A person says once more what was cut short."""
    done = []
    for trial in trials(roots, codes):
        box = trial.box
        job = waiting_job(box)
        trial.acknowledged.append(job.id)
        live = box.found.on("gone") / "live"
        live.mkdir(parents=True)
        (live / job.id).write_text("{}")
        assert job.append("claimed", {"host": "gone", "boot": "x", "attempt": 1, "gpus": []})
        ready.withdraw(box.found, waiting(job.id, job.owner, TRUE, job.state()))

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            box.call(host, do="fence", name="gone")  # noqa: B023

        victim(trial, act)
        box.call(host, do="fence", name="gone")
        done.append(trial)
    assert len(done) * EVERY > 40, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    print(f"fence: {len(done) - 1} calls")


def test_sweep_of_a_lost_job(roots: Path, codes: tuple[int, ...]) -> None:
    """The recovery itself is killed: of a job whose keeper and runner are dead."""
    done = []
    for trial in trials(roots, codes):
        box = trial.box
        job = waiting_job(box)
        trial.acknowledged.append(job.id)
        box.found.mark_live(job, {})
        box.found.reserve(job)
        facts = {"host": box.found.host, "boot": here.this_writer().boot, "attempt": 1, "gpus": []}
        assert job.append("claimed", facts)

        def act(calls: Calls, say: Callable[[str], None]) -> None:
            calls.begin()
            sweep.sweep(box.found)  # noqa: B023

        victim(trial, act)
        done.append(trial)
    assert len(done) * EVERY > 40, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    print(f"sweep: {len(done) - 1} calls")
