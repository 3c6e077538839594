"""A waiting job is always found again: no hint of one goes, however old what a tick sees of its log."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from memory import Direct, Share
from queuebox import Box, until

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.log import fold, follow
from mlbox.core.schedule import Start
from mlbox.core.slots import Writer
from mlbox.host import claim, files, here, slots, sweep, tick
from mlbox.host.handlers import queue
from mlbox.host.job import Job

ELSEWHERE = Writer("gpu9", "boot", 1, "1")
SUBMITTED, CLAIMED = {"event": "submitted"}, {"event": "claimed", "host": "gpu9", "attempt": 1}
LOGS: dict[str, tuple[dict[str, Any], ...]] = {
    "waits": (SUBMITTED,),
    "waits again": (SUBMITTED, CLAIMED, {"event": "lost"}),
    "waits for the third time": (SUBMITTED, CLAIMED, {"event": "lost"}, {**CLAIMED, "attempt": 2}, {"event": "retry"}),
    "runs": (SUBMITTED, CLAIMED),
    "has ended": (SUBMITTED, CLAIMED, {"event": "finished"}),
}


class Behind(Direct):
    """What was changed in the last `age` steps is not seen yet."""

    def __init__(self, share: Share, age: int) -> None:
        super().__init__(share)
        self.age = age


def append(share: Share, event: dict[str, Any]) -> None:
    def decide(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        state = fold(events)
        return follow(events, event, state.attempt if state.running else 0)

    assert isinstance(slots.Log(Path("ev"), Direct(share)).append(decide, ELSEWHERE), slots.Won)


@pytest.mark.parametrize("has_old_listings", [True, False], ids=["as sshfs", "as NFS"])
@pytest.mark.parametrize("log", LOGS)
def test_the_hint_of_a_job_goes_with_its_end_only(
    box: Box, monkeypatch: pytest.MonkeyPatch, log: str, has_old_listings: bool
) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    share = Share()
    share.has_old_listings = has_old_listings
    for event in LOGS[log]:
        append(share, event)
    place = waiting(job.id, job.owner, job.spec(), job.state())
    for age in reversed(range(len(share.past))):
        monkeypatch.setattr(Job, "log", lambda made, age=age: slots.Log(Path("ev"), Behind(share, age)))
        claim.stale(box.found, job, place)
        assert box.hints() == [job.id] or (log == "has ended" and job.state().name == "finished")
    assert box.hints() == ([] if log == "has ended" else [job.id])


def test_a_log_that_reads_as_empty_is_waited_for(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host has submitted it, and this one's client shows the folder as it was before."""
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    with monkeypatch.context() as behind:
        behind.setattr(Job, "events", lambda made: [])
        with pytest.raises(errors.MlboxError, match="nothing is to be seen in its log"):
            claim.start(
                box.found,
                waiting(job.id, job.owner, job.spec(), job.state()),
                Start(job.id, (), 0, 0),
                None,
                tick.again,
            )
        (box.root / "paused/default").unlink()
        report = box.tick()
        assert report.started == () and "nothing is to be seen" in (report.waits or {})[job.id]
    assert job.spec().command == ("true",)
    assert box.tick().started == (job.id,)
    assert box.end(job).name == "finished"
    again = box.submit("true")
    box.end(again)
    box.assert_nothing_leaks()


@contextmanager
def unseen(job: Job) -> Iterator[None]:
    """Its log is as empty as a mount that has just come back may show it."""
    kept = job.folder / "ev.kept"
    (job.folder / "ev").rename(kept)
    (job.folder / "ev").mkdir()
    yield
    (job.folder / "ev").rmdir()
    kept.rename(job.folder / "ev")


def test_an_end_waits_for_a_log_that_reads_as_empty(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"while ! test -e {tmp_path}/go; do sleep 0.05; done")
    box.started(job)
    with unseen(job):
        (tmp_path / "go").touch()
        until(lambda: "not on record yet" in box.keeper_log(job))
        assert box.is_live(job)
    assert box.end(job).name == "finished"
    box.assert_nothing_leaks()


def test_a_sweep_ends_nothing_whose_log_reads_as_empty(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"while ! test -e {tmp_path}/go; do sleep 0.05; done")
    box.started(job)
    box.kill_keeper(job)
    with unseen(job):
        box.tick()
        assert box.is_live(job) and job.boot_folder.exists()
    box.tick()
    (tmp_path / "go").touch()
    assert box.end(job).name == "finished"
    box.assert_nothing_leaks()


def test_a_sweep_after_a_move_that_was_cut_short_forgets_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    box.found.mark_making(job, moved=True)
    monkeypatch.setattr(here, "is_dead", lambda writer: True)
    with unseen(job):
        sweep.sweep(box.found)
    assert job.spec().command == ("true",) and box.found.left_in_making() == [job]
    sweep.sweep(box.found)
    assert box.hints() == [job.id] and box.found.left_in_making() == []
    shutil.rmtree(job.folder)
    box.found.mark_making(job, moved=True)
    sweep.sweep(box.found)
    assert box.found.left_in_making() == [] and not job.folder.exists()


def test_a_job_that_was_removed_is_not_waited_for(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    shutil.rmtree(job.folder)
    (box.root / "paused/default").unlink()
    assert box.tick().started == ()
    assert box.hints() == [] and not job.folder.exists()


@pytest.mark.parametrize("looks", [1, 2, 99])
def test_a_log_that_is_stale_just_now_is_looked_up_anew(box: Box, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """Another host is removing it: it is stale before it is gone. One that stays stale is no job without a log."""
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    real, left = slots.Files.names, [looks]

    def names(self: slots.Files) -> set[str]:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(self)

    monkeypatch.setattr(slots.Files, "names", names)
    if looks == 99:
        with pytest.raises(OSError, match="Stale file handle"):
            job.state()
    else:
        assert job.state().name == "submitted"


@pytest.mark.parametrize("looks", range(7))
def test_a_folder_that_another_host_makes_meanwhile_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """Between any two looks it comes into view."""
    old = iter(range(looks))
    is_dir, lexists = Path.is_dir, os.path.lexists
    monkeypatch.setattr(Path, "is_dir", lambda path: next(old, None) is None and is_dir(path))
    monkeypatch.setattr(os.path, "lexists", lambda path: next(old, None) is None and lexists(path))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "made").mkdir()
    files.make_folder(tmp_path / "made")
