"""A job behind very many that wait: it is found by what it is called, and `jobs` shows it."""

from __future__ import annotations

from typing import Any

import pytest
from queuebox import Box, hint

from mlbox import errors
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.session import Spec
from mlbox.host import lookup, ready
from mlbox.host.handlers import cancel, jobs, move, queue, show, submit
from mlbox.host.job import Job

MANY = 40  # of one array: more than may be opened, and than a folder of the line holds


@pytest.fixture(params=["0", "Z"])
def sweep(box: Box, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Of 32 and 8 jobs in a folder, or of 1, 32 and 7."""
    ulid = submit._ulid
    monkeypatch.setattr(submit, "_ulid", lambda: ulid()[:-1] + request.param)
    monkeypatch.setattr(ready, "_LEAF", 25)
    monkeypatch.setattr(lookup, "_OPENED", 10)
    box.call(queue, do="pause", queue="default")
    return box.submit_all("true", array=MANY, name="sweep")


def test_it_is_found_by_its_name_and_by_an_end_of_its_id(box: Box, sweep: list[Job]) -> None:
    report = box.submit("true", name="report")
    assert box.call(show, job="report")["job"]["id"] == report.id
    assert box.call(show, job=report.id[-6:])["job"]["id"] == report.id
    assert box.call(show, job=sweep[-1].id[-9:])["job"]["id"] == sweep[-1].id
    assert box.call(move, job="report", where="top")["id"] == report.id
    spec = JobSpec(command=("true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0)).to_wire()
    behind = box.found.job(box.call(submit, spec=spec, after=[{"job": "report"}])["jobs"][0]["id"])
    box.jobs.append(behind)
    assert behind.spec().after[0].job == report.id
    assert box.call(submit, spec={**spec, "work": report.spec().work.to_wire()}, if_absent=True)["there"] == "submitted"
    assert box.call(cancel, job="report")["id"] == report.id


def test_the_array_is_still_one(box: Box, sweep: list[Job]) -> None:
    with pytest.raises(errors.NotFound, match="several jobs are called 'sweep'"):
        box.call(show, job="sweep")
    assert lookup.job(box.found, "sweep", whole=True).id == sweep[0].id
    assert len(lookup.array(box.found, "sweep")) == MANY


def test_of_few_that_wait_alone_all_names_are_read_and_of_very_many_those_of_the_first(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_OPENED", 2)
    box.call(queue, do="pause", queue="default")
    for name in ("a", "b", "c"):
        box.submit("true", name=name)
    assert box.call(show, job="b")["job"]["name"] == "b"
    with pytest.raises(errors.NotFound, match="no job 'c'") as refused:
        box.call(show, job="c")
    assert refused.value.hint == "by its id: so many wait that only the first 2 were looked at by name"
    assert box.call(show, job=box.jobs[2].id[-6:])["job"]["name"] == "c"


def test_it_is_shown_and_of_the_array_only_the_first(box: Box, sweep: list[Job]) -> None:
    box.submit("true", name="report")
    told = box.call(jobs)["jobs"]
    assert [(row["name"], row["more"]) for row in told] == [*[("sweep", 0)] * 19, ("sweep", MANY - 20), ("report", 0)]


def test_what_is_not_shown_is_counted(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_WAITING", 2)
    box.call(queue, do="pause", queue="default")
    made: list[Any] = [box.submit("true", name=name) for name in "abcd"]
    told = box.call(jobs)["jobs"]
    assert [(row["id"], row["more"]) for row in told] == [(made[0].id, 0), (made[1].id, 2)]


def test_a_place_in_line_without_a_job_is_not_shown(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    hint(box.found, JobSpec(command=("true",)))
    made = box.submit("true")
    assert [row["id"] for row in box.call(jobs)["jobs"]] == [made.id]
