"""Ended jobs are removed, and only these; whatever dies on the way, nobody is in its way and the next one goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box, until

from mlbox import errors
from mlbox.core import ids
from mlbox.core.hints import waiting as waiting_hint
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.core.schedule import After, Waiting
from mlbox.core.session import Spec
from mlbox.host import archive, files, pruning, ready, uses, view
from mlbox.host.handlers import jobs, logs, move, prune, queue, retry, show, submit
from mlbox.host.job import Job

Json = dict[str, Any]
DAY = 86400.0


@pytest.fixture(autouse=True)
def caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays."""
    monkeypatch.setattr(prune, "pause", lambda seconds: None)


def ended(box: Box, days: float = 40, state: str = "finished", **spec: Any) -> Job:
    """As it is on disk so long after its end."""
    at = time.time() - days * DAY
    job = box.found.job(ids.ulid(int(at * 1000), os.urandom(10)))
    made = JobSpec(command=("true",), work=Spec(name=spec.pop("name", "old"), runtime="process"), **spec)
    box.found.own_place()
    box.found.create(job, made, queued=True)
    job.append("submitted", {"at": at, "queue": "default"})
    if state != "submitted":
        job.append("claimed", {"at": at, "host": "gpu9", "boot": "x", "gpus": [], "attempt": 1})
        files.make_folder(job.attempt(1) / "work/deep", 0o700)
        (job.attempt(1) / "output.log").write_text("said\n")
        (job.attempt(1) / "work/deep/model.bin").write_bytes(b"x" * 100_000)
        if state != "claimed":
            assert job.append(state, {"at": at}, 1)
            archive_row(box, job, at)
    return job


def archive_row(box: Box, job: Job, at: float) -> None:
    folder = box.found.own() / "archive"
    files.make_folder(folder)
    with (folder / f"{time.strftime('%Y-%m-%d', time.gmtime(at))}.gpu9.jsonl").open("a") as file:
        file.write(json.dumps(archive.summary(job, job.spec(), job.state())) + "\n")


def waiting(box: Box, *after: Job, **spec: Any) -> Job:
    """In a queue from which nothing starts."""
    box.lab("queues: {default: , shut: }")
    box.call(queue, do="pause", queue="shut")
    job = box.submit("true", queue="shut", name="waits", after=tuple(After(j.id, "any") for j in after), **spec)
    assert job.state().waiting
    return job


def names(rows: list[Json]) -> list[str]:
    return [row["id"] for row in rows]


def listed(box: Box) -> list[str]:
    return names(box.call(jobs, ended=100)["jobs"])


def marks(box: Box) -> list[str]:
    return [*filter(ids.is_ulid, view.names(box.found.own() / "pruning"))]


# ---- what goes, and what stays -----------------------------------------------------------------------------


def test_what_ended_long_ago_goes_with_all_that_it_has(box: Box) -> None:
    old, failed, young = ended(box, 40), ended(box, 31, "failed"), ended(box, 29)
    reply = box.call(prune)
    assert names(reply["removed"]) == [old.id, failed.id] and reply["stay"] == []
    assert all(row["size"] >= 100_000 for row in reply["removed"])
    assert not old.folder.exists() and not failed.folder.exists() and marks(box) == []
    assert listed(box) == [young.id] and box.call(logs, job=young.id)["state"] == "finished"
    assert box.call(prune)["removed"] == []
    assert names(box.call(prune, older_than=28 * DAY)["removed"]) == [young.id]


def test_its_lines_of_the_archive_go_when_a_day_has_none_that_is_there(box: Box) -> None:
    ended(box, 40)
    needed = ended(box, 50)
    ended(box, 50)
    waiting(box, needed)
    today = ended(box, 0.0)
    box.call(prune, older_than=0)
    assert not today.folder.exists() and listed(box)[0] == needed.id and len(listed(box)) == 2
    days = {time.strftime("%Y-%m-%d", time.gmtime(time.time() - days * DAY)) for days in (50, 0)}
    assert {name[:10] for name in view.names(box.found.own() / "archive")} == days


def test_one_that_can_t_be_looked_at_now_is_listed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ended(box)

    def is_there(self: Job) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Job, "is_there", is_there)
    assert listed(box) == [job.id]


def test_a_session_goes_too(box: Box) -> None:
    job = ended(box)
    document = json.loads((job.folder / "spec.json").read_text())
    (job.folder / "spec.json").write_text(json.dumps({**document, "command": []}))
    assert [row["kind"] for row in box.call(prune)["removed"]] == ["session"]


def test_nobody_finds_it_any_more(box: Box) -> None:
    job = ended(box, 0.0, name="train")
    box.call(prune, older_than=0)
    for word in job.id, "train", job.id[:8]:
        for ask in show, logs, retry, move:
            with pytest.raises(errors.NotFound, match="there is no job"):
                box.call(ask, job=word)
    with pytest.raises(errors.NotFound, match="there is no job"):
        box.submit("true", after=(After(job.id),))


@pytest.mark.parametrize("state", ["submitted", "claimed", "lost", "retry", "preempted"])
def test_what_has_not_ended_stays(box: Box, state: str) -> None:
    """By its log alone: its hints may be lost."""
    job = ended(box, 400, state)
    assert box.call(prune, older_than=0) == {"host": box.found.host, "removed": [], "stay": []}
    assert job.state().name == state and job.is_there()


@pytest.mark.parametrize("hint", ["live", "making"])
def test_one_whose_end_is_still_being_put_down_stays(box: Box, hint: str) -> None:
    job = ended(box)
    path = box.found.on("gpu9") / hint / job.id
    files.make_folder(path.parent)
    path.write_text("{}")
    [stays] = box.call(prune)["stay"]
    assert (stays["id"], stays["stays"]) == (job.id, "its end is still being put down") and job.is_there()
    path.unlink()
    assert names(box.call(prune)["removed"]) == [job.id]


def test_one_that_is_in_line_still_stays(box: Box) -> None:
    """Whoever ended it died before its hint was withdrawn: a tick still comes by."""
    job = ended(box)
    hint = waiting_hint(job.id, box.found.user, job.spec(), job.state())
    ready.publish(box.found, hint)
    assert names(box.call(prune)["stay"]) == [job.id]
    ready.withdraw(box.found, hint)
    assert names(box.call(prune)["removed"]) == [job.id]


def test_one_that_a_job_waits_for_stays(box: Box) -> None:
    needed, other = ended(box), ended(box)
    job = waiting(box, needed)
    reply = box.call(prune)
    assert names(reply["removed"]) == [other.id]
    assert [(row["id"], row["stays"]) for row in reply["stay"]] == [(needed.id, "a job waits for it")]
    assert marks(box) == [] and needed.state().name == "finished"
    box.cancel(job)
    assert names(box.call(prune)["removed"]) == [needed.id]


def test_one_that_a_colleagues_job_waits_for_stays(box: Box) -> None:
    old = ended(box)
    job = Waiting(ids.ulid(1, os.urandom(10)), "colleague", after=(After(old.id),))
    ready.publish(box.found, job)
    assert names(box.call(prune)["stay"]) == [old.id]
    ready.withdraw(box.found, job)
    assert names(box.call(prune)["removed"]) == [old.id]


def test_one_that_a_running_job_would_wait_for_again_stays(box: Box) -> None:
    needed = ended(box)
    job = box.sh("sleep 60", after=(After(needed.id),))
    box.started(job)
    assert names(box.call(prune)["stay"]) == [needed.id]
    box.cancel(job)
    box.end(job)
    assert names(box.call(prune)["removed"]) == [needed.id]


def test_of_an_array_nothing_goes_before_all_have_ended(box: Box) -> None:
    """`cancel NAME` finds a whole array by counting on from its first job."""
    first = ids.ulid(int((time.time() - 40 * DAY) * 1000), bytes(10))
    states = ("finished", "submitted")
    members = [ended(box, 40, state, array=first, array_index=n) for n, state in enumerate(states)]
    [stays] = box.call(prune)["stay"]
    assert (stays["id"], stays["stays"]) == (members[0].id, "its array has not ended")
    members[1].append("cancelled", {"at": time.time() - 39 * DAY})
    removed = box.call(prune)["removed"]
    assert sorted((row["array"], row["array_index"]) for row in removed) == [(first, 0), (first, 1)]


def test_of_an_array_nothing_goes_while_a_job_can_t_be_read(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ids.ulid(int((time.time() - 40 * DAY) * 1000), bytes(10))
    member, broken, other = ended(box, 40, array=first), ended(box, 41), ended(box, 42)
    real = Job.state

    def state(self: Job) -> State:
        if self.id == broken.id:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self)

    monkeypatch.setattr(Job, "state", state)
    reply = box.call(prune)
    assert (names(reply["removed"]), names(reply["stay"])) == ([other.id], [member.id])


def test_what_was_closed_by_a_program_goes_too(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ended(box)
    (job.attempt(1) / "work/deep").chmod(0o500)
    (job.attempt(1) / "work").chmod(0)
    real = shutil.rmtree

    def rmtree(path: Path, **how: Any) -> None:
        """As whoever is not root finds it."""
        if all(os.stat(job.attempt(1) / name).st_mode & 0o700 == 0o700 for name in ("work", "work/deep")):
            real(path, **how)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert names(box.call(prune)["removed"]) == [job.id] and not job.folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a folder away")
def test_what_a_containers_root_made_is_said_before_anything_goes(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    job, free = ended(box), ended(box)
    os.chown(job.attempt(1) / "work/deep", 1234, 1234)
    os.chown(free.attempt(1) / "work/deep", 1234, 1234)
    (free.attempt(1) / "work/deep/model.bin").unlink()  # an empty one can be removed by whoever has the one above
    (free.attempt(1) / "work/link").symlink_to(job.attempt(1) / "work/deep")
    monkeypatch.setattr(pruning, "_is_root", lambda: False)
    reply = box.call(prune)
    assert [row["stays"] for row in reply["stay"]] == [f"a container's root made {job.attempt(1)}/work/deep"]
    assert names(reply["removed"]) == [free.id] and job.is_there() and box.call(show, job=job.id)


def test_one_pruning_at_a_time(box: Box) -> None:
    """The second one's end would take the marks of what the first is about to remove: a job could be put behind one."""
    first, second = ended(box, days=41), ended(box)

    def say(done: int, of: int) -> None:
        with pytest.raises(errors.Refused, match="another mlbox jobs prune of yours is at work"):
            box.call(prune, older_than=100 * DAY)
        assert second.is_going()

    assert [one.job.id for one in pruning.prune(box.found, 0.0, say)] == [first.id, second.id]
    assert not first.folder.exists() and not second.folder.exists() and marks(box) == []


def test_where_the_share_knows_no_locks_what_lost_its_mark_stays(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "_locked", lambda descriptor, wait: None)
    both = ended(box), ended(box)

    def say(done: int, of: int) -> None:
        box.call(prune, older_than=100 * DAY)

    assert {one.stays for one in pruning.prune(box.found, 0.0, say)} == {"another pruning was at work"}
    assert all(box.call(show, job=job.id) for job in both) and marks(box) == []


def test_so_many_ended_ones_as_are_asked_for_are_shown_after_a_pruning(box: Box) -> None:
    kept = [ended(box, 0.4), ended(box, 0.3)]
    ended(box, 0.2), ended(box, 0.1)
    needed = waiting(box, *kept)
    box.call(prune, older_than=0)
    assert names(box.call(jobs, ended=2)["jobs"]) == [*(job.id for job in kept), needed.id]


def test_ended_ones_of_a_queue_are_shown_behind_any_number_of_others(box: Box) -> None:
    box.lab("queues: {default: , night: }")
    of_night = box.end(box.submit("true", queue="night"))
    for _ in range(2):
        ended(box, -0.01)  # since then
    [row] = box.call(jobs, ended=1, queue="night")["jobs"]
    assert (row["queue"], row["state"]) == ("night", of_night.name)


def test_a_dry_run_says_the_same_and_changes_nothing(box: Box) -> None:
    gone, needed = ended(box), ended(box)
    waiting(box, needed)
    told = box.call(prune, dry_run=True)
    assert gone.is_there() and not (box.found.own() / "pruning").exists()
    assert told == box.call(prune)


def test_an_age_is_checked(box: Box) -> None:
    for age in -1, "30d", None:
        with pytest.raises(errors.Usage):
            box.call(prune, older_than=age)


# ---- others at the same time -------------------------------------------------------------------------------


def test_one_that_is_submitted_to_run_after_it_meanwhile(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was in line before the look at those that wait: the old one stays."""
    old, real = ended(box), pruning._awaited
    seen: list[Job] = []

    def awaited(*arguments: Any) -> set[str]:
        monkeypatch.setattr(Job, "is_going", lambda self: False)  # it had looked before the mark was there
        seen.append(waiting(box, old))
        return real(*arguments)

    monkeypatch.setattr(pruning, "_awaited", awaited)
    assert names(box.call(prune)["stay"]) == [old.id] and old.is_there()
    assert seen[0].state().waiting


def test_one_that_is_submitted_too_late_is_refused(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it looks whom it is to wait for, the old one was marked: it is taken back."""
    old, real = ended(box), submit._check_dependencies
    box.lab("queues: {default: , shut: }")
    box.call(queue, do="pause", queue="shut")
    lines: list[list[str]] = []

    def check(*arguments: Any) -> None:
        lines.append(box.hints())
        assert names(box.call(prune)["stay"]) == [old.id]
        files.make_folder(old.pruning.parent)
        old.pruning.touch()
        real(*arguments)

    monkeypatch.setattr(submit, "_check_dependencies", check)
    with pytest.raises(errors.NotFound, match="to wait for"):
        box.submit_all("true", queue="shut", array=2, after=(After(old.id),))
    assert [len(line) for line in lines] == [2] and box.hints() == []
    assert view.names(box.found.making) == []


@pytest.mark.parametrize("ask", [show, logs])
def test_whoever_looks_at_it_just_then_is_told_that_there_is_none(
    ask: Any, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, real = ended(box), Job.spec if ask is show else Job.is_there

    def last(self: Job, *arguments: Any) -> Any:
        found = real(self, *arguments)
        monkeypatch.undo()
        monkeypatch.setattr(prune, "pause", lambda seconds: None)
        assert names(box.call(prune)["removed"]) == [job.id]
        return found

    monkeypatch.setattr(Job, real.__name__, last)
    with pytest.raises(errors.NotFound, match=f"there is no job {job.id}"):
        box.call(ask, job=job.id)


def test_a_caller_that_goes_away_leaves_the_rest_as_it_was(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sorted((ended(box) for _ in range(3)), key=lambda job: job.id)
    left = iter([None])

    def pause(seconds: float) -> None:
        if next(left, "") == "":
            raise errors.MlboxError("the caller has gone")

    monkeypatch.setattr(prune, "pause", pause)
    with pytest.raises(errors.MlboxError, match="has gone"):
        box.call(prune)
    assert [job.folder.exists() for job in made] == [False, True, True] and marks(box) == []
    assert listed(box) == names([{"id": job.id} for job in made[1:]])


# ---- what a crash leaves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [("spec.json",), ("spec.json", "ev/000001"), ("spec.json", "ev", "attempts")])
def test_the_next_one_goes_on_with_it_however_old(box: Box, gone: tuple[str, ...]) -> None:
    job = ended(box)
    files.make_folder(job.pruning.parent)
    job.pruning.touch()
    for name in gone:
        path = job.folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    box.tick()
    assert listed(box) == []
    assert names(box.call(prune, older_than=400 * DAY)["removed"]) == [job.id]
    assert not job.folder.exists() and marks(box) == []


def test_a_mark_without_a_job_goes(box: Box) -> None:
    job = box.found.job(ids.ulid(int(time.time() * 1000), os.urandom(10)))
    files.make_folder(job.pruning.parent)
    job.pruning.touch()
    assert box.call(prune)["removed"][0]["size"] == 0 and marks(box) == []


def test_what_is_marked_and_whole_is_not_older_for_that(box: Box) -> None:
    job = ended(box, 10)
    files.make_folder(job.pruning.parent)
    job.pruning.touch()
    assert box.call(prune)["removed"] == [] and job.is_there() and marks(box) == []


def test_one_that_can_t_be_removed_is_said_and_the_others_go(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, free = ended(box, 50), ended(box, 40)
    monkeypatch.setattr(pruning, "_AGAIN", (0.0, 0.0))
    real: Callable[..., None] = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: None if path == stuck.folder else real(path))
    reply = box.call(prune)
    assert names(reply["removed"]) == [free.id]
    assert [row["stays"] for row in reply["stay"]] == ["it can't be removed: Directory not empty"]
    assert marks(box) == [stuck.id] and listed(box) == []
    assert stuck.state().name == "" and not stuck.state().live  # not what its log was in the midst of it
    monkeypatch.setattr(shutil, "rmtree", real)
    assert names(box.call(prune)["removed"]) == [stuck.id] and marks(box) == []


def test_jobs_that_ran_here(box: Box) -> None:
    made = box.submit_all("true", array=3)
    for job in made:
        box.end(job)
    until(lambda: not box.keepers())
    assert len(box.call(prune, older_than=0)["removed"]) == 3
    box.tick()
    assert listed(box) == [] and not any(Path(job.folder).exists() for job in made)
    box.jobs.clear()
