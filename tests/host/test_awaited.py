"""Whoever is to run after an array waits for all of it, by its first id or its name; and what that costs a tick."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box

from mlbox import errors
from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.schedule import After, Ends, Running, Waiting
from mlbox.core.session import Spec
from mlbox.host import awaited, files, ready
from mlbox.host.handlers import jobs, prune, queue, submit
from mlbox.host.job import Job

Json = dict[str, Any]


@pytest.fixture
def shut(box: Box) -> Box:
    """With a queue from which nothing starts."""
    box.lab("queues: {default: , shut: }")
    box.call(queue, do="pause", queue="shut")
    return box


def behind(box: Box, *after: Json) -> Job:
    spec = JobSpec(command=("true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0)).to_wire()
    job = box.found.job(box.call(submit, spec=spec, after=list(after))["jobs"][0]["id"])
    box.jobs.append(job)
    return job


def why(box: Box, job: Job) -> str:
    box.tick()
    return next(str(row["waits"]) for row in box.call(jobs)["jobs"] if row["id"] == job.id)


def test_it_waits_for_all_and_says_for_how_many(box: Box, tmp_path: Path) -> None:
    script = f'until [ -e "{tmp_path}/$MLBOX_ARRAY_INDEX" ]; do sleep 0.02; done'
    array = box.submit_all("/bin/sh", "-c", script, array=3, name="sweep")
    by_id, by_name = behind(box, {"job": array[0].id}), behind(box, {"job": "sweep", "end": "any"})
    short = f"{array[0].id[:3]}…{array[0].id[-4:]}"
    for number, left in ((0, "3 of 3"), (2, "2 of 3"), (1, "1 of 3")):
        assert {why(box, job) for job in (by_id, by_name)} == {f"waits for {left} of array {short}"}
        (tmp_path / str(number)).touch()
        box.end(array[number])
    assert [box.end(job).name for job in (by_id, by_name)] == ["finished", "finished"]
    box.tick()
    box.assert_nothing_leaks()


def test_one_that_fails_is_the_end_of_whoever_wanted_success(box: Box, tmp_path: Path) -> None:
    script = f'[ $MLBOX_ARRAY_INDEX != 1 ] || exit 3; until [ -e "{tmp_path}/go" ]; do sleep 0.02; done'
    array = box.submit_all("/bin/sh", "-c", script, array=3)
    ok, any_ = behind(box, {"job": array[0].id}), behind(box, {"job": array[0].id, "end": "any"})
    assert box.end(ok).facts["reason"] == "dependency" and "of which 1 job did not succeed" in ok.state().facts["why"]
    assert why(box, any_).startswith("waits for 2 of 3")
    (tmp_path / "go").touch()
    assert box.end(any_).name == "finished"


def test_an_array_is_called_by_its_name_also_when_parts_of_it_have_ended(shut: Box) -> None:
    for _ in range(2):
        old = shut.submit_all("true", array=2, name="sweep")
        for job in old:
            shut.end(job)
    assert [(a.job, a.array) for a in behind(shut, {"job": "sweep"}).spec().after] == [(old[0].id, 2)]
    array = shut.submit_all("true", array=3, name="sweep", queue="shut")
    for job in array[:2]:
        shut.cancel(job)
    after = [{"job": word, "end": "any"} for word in ("sweep", array[0].id.lower(), array[1].id, array[0].id[-6:])]
    meant = [(a.job, a.array) for a in behind(shut, *after).spec().after]
    assert meant == [(array[0].id, 3), (array[0].id, 3), (array[1].id, 0), (array[0].id, 3)]
    shut.submit_all("true", array=2, name="sweep", queue="shut")
    with pytest.raises(errors.NotFound, match="several jobs are called 'sweep'"):
        behind(shut, {"job": "sweep"})


def test_of_an_array_that_is_waited_for_nothing_is_pruned(shut: Box) -> None:
    array = shut.submit_all("true", array=2)
    for job in array:
        shut.end(job)
    shut.submit("true", queue="shut", after=(After(array[0].id),))
    reply = shut.call(prune, older_than=0)
    assert [row["stays"] for row in reply["stay"]] == ["a job waits for it"] * 2 and not reply["removed"]


@pytest.mark.parametrize("gone", ["marked", "removed"])
def test_an_array_of_which_one_is_being_pruned_is_refused(
    gone: str, shut: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = shut.submit_all("true", array=3, queue="shut")
    real = submit.submit

    def meanwhile(*arguments: Any) -> Job:
        if gone == "marked":
            files.make_folder(array[2].pruning.parent)
            array[2].pruning.touch()
        else:
            (array[2].folder / "spec.json").unlink()
        return real(*arguments)

    monkeypatch.setattr(submit, "submit", meanwhile)
    with pytest.raises(errors.NotFound, match="to wait for"):
        shut.submit("true", queue="shut", after=(After(array[0].id),))
    assert sorted(shut.hints()) == [job.id for job in array]


def test_a_mark_is_seen_where_the_share_remembers_that_there_was_none(
    shut: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does, for up to a minute."""
    job = shut.submit("true")
    shut.end(job)
    real, marked = submit.submit, cache(Job.is_going)

    def meanwhile(*arguments: Any) -> Job:
        files.make_folder(job.pruning.parent)
        job.pruning.touch()
        return real(*arguments)

    monkeypatch.setattr(Job, "is_going", lambda self: marked(self))
    monkeypatch.setattr(submit, "submit", meanwhile)
    with pytest.raises(errors.NotFound, match="to wait for"):
        shut.submit("true", queue="shut", after=(After(job.id),))
    assert shut.hints() == []


# ---- what is read of it -------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = Job.state
    monkeypatch.setattr(Job, "state", lambda self: seen.append(self.id) or real(self))  # type: ignore[func-returns-value]
    return seen


def logs(box: Box, *states: str) -> list[Job]:
    """An array's, and no hint."""
    first = ids.ulid(int(time.time() * 1000), os.urandom(10))
    made = [box.found.job(ids.following(first, number)) for number in range(len(states))]
    box.found.own_place()
    for job, state in zip(made, states):
        box.found.create(job, JobSpec(command=("true",), array=first), queued=True)
        job.append("submitted", {})
        if state != "submitted":
            job.append("claimed", {"attempt": 1})
            job.append(state, {}, 1)
    return made


def look(box: Box, array: list[Job], *running: Running, array_of: int = 0) -> Ends:
    """As a tick does, which remembers."""
    after = After(array[0].id, "any", array_of or len(array))
    looking = awaited.Awaited(box.found, [box.found.user], running)
    looking.add(Waiting("a job", box.found.user, after=(after,)))
    files.make_folder(box.found.on())
    files.write_whole(awaited.path(box.found), json.dumps(looking.memory).encode())
    return looking.arrays[after.job, after.array]


def test_what_has_ended_is_read_once(box: Box, reads: list[str]) -> None:
    array = logs(box, "finished", "failed", "submitted", "cancelled")
    assert look(box, array) == Ends(3, 2) and sorted(reads) == [job.id for job in array]
    reads.clear()
    assert look(box, array) == Ends(3, 2) and reads == [array[2].id]
    array[2].append("cancelled", {})
    assert look(box, array) == Ends(4, 3)
    reads.clear()
    assert look(box, array) == Ends(4, 3) and reads == []
    assert look(box, array, array_of=1) == Ends(1) and reads == []


def test_what_runs_is_not_read(box: Box, reads: list[str]) -> None:
    array = logs(box, "finished", "finished")
    run = Running(array[0].id, box.found.user, "gpu9")
    assert look(box, array, run, replace(run, id=array[1].id, owner="eve")) == Ends(1)
    assert reads == [array[1].id], "nobody says of another's job that it runs"
    assert look(box, array) == Ends(2)


def test_of_those_that_wait_a_few_are_read(box: Box, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited, "WAITING", 2)
    array = logs(box, "submitted", "finished", "submitted", "finished")
    assert look(box, array) == Ends(1) and reads == [job.id for job in array[:3]]
    array[0].append("cancelled", {})
    assert look(box, array) == Ends(3, 1)


def test_what_is_too_much_for_one_tick_the_next_ones_read(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited, "READ", 2)
    array = logs(box, *["finished"] * 5)
    assert [look(box, array) for _ in range(3)] == [Ends(2), Ends(4), Ends(5)]


@pytest.mark.parametrize("memory", ["[]", "{", '{"X": 5}', '{"X": ["g", "1"]}', '{"X": ["1"]}', '{"X": ["1", 1]}'])
def test_a_memory_that_makes_no_sense_is_none(memory: str, box: Box) -> None:
    array = logs(box, "submitted", "finished")
    files.make_folder(box.found.on())
    awaited.path(box.found).write_text(memory.replace("X", array[0].id))
    assert look(box, array) == Ends(1)


def test_of_many_arrays_those_that_were_last_waited_for_are_remembered(
    box: Box, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaited, "_KEPT", 2)
    arrays = [logs(box, "finished") for _ in range(3)]
    for array in (*arrays[:2], arrays[0], arrays[2]):
        look(box, array)
    reads.clear()
    for array in arrays:
        assert look(box, array) == Ends(1)
    assert arrays[1][0].id in reads and arrays[0][0].id not in reads


def test_a_tick_remembers(box: Box, reads: list[str]) -> None:
    array = logs(box, "finished", "submitted")
    behind(box, {"job": array[0].id})
    box.tick()
    reads.clear()
    box.tick()
    assert array[1].id in reads and array[0].id not in reads


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's place")
def test_what_others_wait_for_hides_nothing_of_one_s_own(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come first by their names, and wait for more arrays than one tick reads, or remembers."""
    monkeypatch.setattr(awaited, "READ", 20)
    monkeypatch.setattr(awaited, "_KEPT", 3)
    theirs = box.found.on(user="nobody")
    files.make_folder(theirs)
    os.chown(theirs.parents[1], 65534, 65534)
    files.write_whole(theirs / "host.json", json.dumps({"at": time.time()}).encode())
    waiting = [logs(box, *["submitted"] * 20)[0] for _ in range(4)]
    for first in waiting:
        ready.publish(box.found, Waiting(first.id, "nobody", after=(After(first.id, array=20),)))
    job = behind(box, {"job": logs(box, *["finished"] * 50)[0].id})
    assert why(box, job).startswith("waits for 10 of 50")  # the first tick was the submission's
    box.tick()
    assert box.end(job).name == "finished"
