"""SIGKILL, and EIO, ENOSPC and ESTALE, at every call that touches a file of submit, cancel, move, retry, prune and
fence, as their requests come to a host; and a disk that is full, or broken, from there on. See tests/kit/trials.py.

An error is a clear reply. What was acknowledged runs; what was refused does not, or the error says that it may.
"""

from __future__ import annotations

import base64
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box
from trials import TRUE, Fault, Trial, asked, check, child, jobs_of, recover, trials, waiting_job

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.schedule import After
from mlbox.host import code, ready, tick
from mlbox.host.handlers import host, prune, queue, show, submit
from mlbox.host.job import Job
from mlbox.host.store import Store

CODE = base64.b64encode(code.pack({"train.py": b"print(1)"})).decode()


def ended(done: list[Trial], name: str, least: int, *, anew: bool = False) -> None:
    """`anew`: what was asked for is a new job, and one that was refused is none."""
    assert len(done) > 1 and done[-1].at > least, "calls have escaped"
    recover(done)
    check(done, may_fail=False)
    if anew:
        refused = [trial for trial in done if trial.refused]
        assert not [(t.at, t.names[-2:]) for t in refused if "finished" in [job.state().name for job in jobs_of(t.box)]]
    print(f"{name}: {done[-1].at - 1} calls, {len(done)} trials")


def test_submit(roots: Path, fault: Fault) -> None:
    done = []
    for trial in trials(roots, fault):
        reply = asked(trial, "submit", spec=TRUE.to_wire(), code=CODE)
        trial.acknowledged += [job["id"] for job in reply.get("jobs", ())]
        done.append(trial)
    ended(done, "submit", 200, anew=True)
    assert done[-1].acknowledged


def test_cancel(roots: Path, fault: Fault) -> None:
    done = []
    for trial in trials(roots, fault):
        job = waiting_job(trial.box)
        trial.acknowledged.append(job.id)
        if asked(trial, "cancel", job=job.id):
            assert job.state().name == "cancelled", (trial.at, job.events())
        done.append(trial)
    ended(done, "cancel", 100)


def test_move(roots: Path, fault: Fault) -> None:
    """From a queue that starts nothing, so nobody looks for it there any more."""
    done = []
    for trial in trials(roots, fault):
        box = trial.box
        box.lab("queues: {default: {}, other: {}}\n")
        box.call(queue, do="pause", queue="default")
        job = waiting_job(box)
        trial.acknowledged.append(job.id)
        if asked(trial, "move", job=job.id, queue="other"):
            assert job.state().facts.get("moves") == 1, (trial.at, job.events())
        if not job.state().facts.get("moves"):  # it was not moved
            assert job.state().waiting and box.hints() == [job.id]
            box.call(queue, do="resume", queue="default")
        done.append(trial)
    ended(done, "move", 200)


def test_retry(roots: Path, fault: Fault) -> None:
    done = []
    for trial in trials(roots, fault):
        job = waiting_job(trial.box)
        trial.box.cancel(job)
        reply = asked(trial, "retry", job=job.id)
        trial.acknowledged += [reply["id"]] if reply else []
        done.append(trial)
    ended(done, "retry", 200, anew=True)


def test_fence(roots: Path, fault: Fault) -> None:
    """A person says once more what was cut short."""
    done = []
    for trial in trials(roots, fault):
        box = trial.box
        job = waiting_job(box)
        trial.acknowledged.append(job.id)
        live = box.found.on("gone") / "live"
        live.mkdir(parents=True)
        (live / job.id).write_text("{}")
        assert job.append("claimed", {"host": "gone", "boot": "x", "attempt": 1, "gpus": []})
        ready.withdraw(box.found, waiting(job.id, job.owner, TRUE, job.state()))
        asked(trial, "host", do="fence", name="gone")
        box.call(host, do="fence", name="gone")
        done.append(trial)
    ended(done, "fence", 100)


def test_prune(roots: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an ended job with its output, and one that another waits for. The first is there whole or not at all; the next
    pruning goes on with what is left of it."""
    monkeypatch.setattr(prune, "pause", lambda seconds: None)
    done = []
    for trial in trials(roots, fault):
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
        asked(trial, "prune", older_than=0)
        assert child(lambda: tick.run(box.found)) == 0  # noqa: B023 (called at once)
        assert box.call(show, job=needed.id)["job"]["state"] == "cancelled"
        if is_there(box, old):
            assert (old.state().name, box.output(old)) == ("cancelled", "said"), (trial.at, trial.names[-1:])
        box.call(prune, older_than=0)
        assert not old.folder.exists(), (trial.at, trial.names[-1:])
        assert [path.name for path in (box.found.own() / "pruning").iterdir()] == [".lock"]
        assert {job.id for job in jobs_of(box)} == {needed.id, waits.id}
        trial.acknowledged += [needed.id, waits.id]
        box.call(queue, do="resume", queue="shut")
        done.append(trial)
    ended(done, "prune", 100)


def is_there(box: Box, job: Job) -> bool:
    try:
        return bool(box.call(show, job=job.id))
    except errors.NotFound:
        return False


@pytest.mark.parametrize("verb", ["submit", "move", "retry"])
def test_a_tick_that_fails_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """It is said, beside the job that is in line; an error would have it submitted once more."""
    trial = Trial(Box(tmp_path / "root"), 1 << 30, 0)
    job = waiting_job(trial.box)
    if verb == "retry":
        trial.box.cancel(job)

    def full(found: Store) -> tick.Report:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "waits.json")

    monkeypatch.setattr(tick, "_pass", full)
    asks: dict[str, Any] = {
        "submit": {"spec": TRUE.to_wire()},
        "move": {"job": job.id, "where": "top"},
        "retry": {"job": job.id},
    }
    reply = asked(trial, verb, **asks[verb])
    assert "No space left" in reply["trouble"] and not reply["started"]
    made = reply["jobs"][0]["id"] if verb == "submit" else reply["id"]
    assert trial.box.found.job(made).state().waiting and made in trial.box.hints()
