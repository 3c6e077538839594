"""A job as it is submitted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mlbox.core.job import JobSpec
from mlbox.core.schedule import After
from mlbox.core.session import Spec
from mlbox.errors import Usage

ID, OTHER = "01ARYZ6S41TSV4RRFFQ69G5FAV", "01ARYZ6S41TSV4RRFFQ69G5FAW"
TRUE = JobSpec(command=("true",))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": ("x" * 40_000,)}, "too long"),
        ({"command": ("true", "a\0b")}, "zero byte"),
        ({"queue": ""}, "queue's name"),
        ({"queue": "../etc"}, "queue's name"),
        ({"queue": "a b"}, "queue's name"),
        ({"queue": "x" * 41}, "queue's name"),
        ({"priority": 1001}, "priority is"),
        ({"priority": -1001}, "priority is"),
        ({"retries": -1}, "retries"),
        ({"retries": 1001}, "retries"),
        ({"backoff": 86401}, "back-off"),
        ({"grace": 3601}, "grace"),
        ({"array_limit": -1}, "array's limit"),
        ({"array_index": 10_001}, "array's index"),
        ({"output_limit": -1}, "output's limit"),
        ({"output_limit": 2 << 20}, "output's limit can't be 2T"),
        ({"retry_on": ("exit", "bad luck")}, "nothing ends by 'bad luck'"),
        ({"on_host_loss": "panic"}, "hold or requeue"),
        ({"max_losses": 0}, "after 0 losses"),
        ({"after": (After(ID),) * 101}, "at most 100"),
        ({"after": (After("../../x"),)}, "not a job's id"),
        ({"after": (After(ID, "never"),)}, "ok or any"),
        ({"after": (After(ID, array=-1),)}, "that an array has can't be -1"),
        ({"after": (After(ID, array=10_001),)}, "that an array has can't be 10001"),
        ({"array": "first"}, "what mlbox made"),
        ({"code": "abc"}, "what mlbox made"),
        ({"code": "a" * 64, "folder": "~/x"}, "either in the code"),
    ],
)
def test_what_a_job_can_t_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Usage, match=words):
        replace(TRUE, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": -1000}, {"priority": 1000}, {"retries": 1000}, {"queue": "a-1"}, {"after": (After(ID, "any"),)},
        {"retry_on": ()}, {"code": "0" * 64}, {"folder": "~/work"}, {"array": ID, "array_index": 9999}, {"grace": 0},
        {"after": (After(ID, "ok", 40), After(ID))},
    ],
)  # fmt: skip
def test_what_it_can_be_crosses_the_wire(fields: dict[str, Any]) -> None:
    spec = replace(TRUE, **fields)
    assert JobSpec.from_wire(json.loads(json.dumps(spec.to_wire()))) == spec


def test_one_job_that_is_waited_for_is_stored_as_an_older_mlbox_reads_it() -> None:
    wire = replace(TRUE, after=(After(ID), After(ID, "any", 2))).to_wire()
    assert [*wire["after"]] == [{"job": ID, "end": "ok"}, {"job": ID, "end": "any", "array": 2}]


def test_a_session_is_a_job_without_a_command() -> None:
    assert JobSpec().session and not TRUE.session


def test_no_secret_is_left_and_all_come_back() -> None:
    work = Spec(env={"KEY": "s3cret"}, packages=("x @ https://me:pw@host/x.whl",), requirements="-i https://t0k@host/")
    work = replace(work, init_script="export WANDB_API_KEY=k3y")
    spec = replace(TRUE, work=work)
    public = spec.without_secrets()
    assert not any(word in json.dumps(public.to_wire()) for word in ("s3cret", "pw", "t0k", "k3y"))
    assert public.with_secrets(json.loads(json.dumps(spec.secrets()))) == spec
    assert public.with_secrets({"env": {"A": "b"}, "name": "someone-else", "queue": "x"}).name == ""


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "must map"),
        ({"command": "rm -rf /"}, "must be a list"),
        ({"command": ["a", 1]}, "list of texts"),
        ({"priority": "5"}, "must be a number"),
        ({"priority": True}, "must be a number"),
        ({"priority": 1.0}, "must be a number"),
        ({"queue": 5}, "must be text"),
        ({"queue": None}, "must be text"),
        ({"work": []}, "must map"),
        ({"work": {"name": 7}}, "must be text"),
        ({"resources": "all"}, "must map"),
        ({"resources": {"gpus": 1}}, "must be text"),
        ({"resources": {"color": "red"}}, "no 'color'"),
        ({"after": {"job": ID}}, "must be a list"),
        ({"after": [ID]}, "needs a job"),
        ({"after": [{"job": ID, "x": 1}]}, "needs a job"),
        ({"after": [{"job": [ID]}]}, "not a job's id"),
        ({"after": [{"job": ID, "array": True}]}, "array must be a number"),
        ({"provenance": {"commit": 1}}, "names to text"),
        ({"provenance": ["x"]}, "must map"),
        ({"colour": "red"}, "no 'colour'"),
    ],
)
def test_a_hostile_spec_is_refused(document: Any, words: str) -> None:
    with pytest.raises(Usage, match=words):
        JobSpec.from_wire(document)


def test_what_a_newer_mlbox_stored_is_read() -> None:
    stored = {**TRUE.to_wire(), "colour": "red", "work": {**TRUE.work.to_wire(), "theme": "dark"}}
    assert JobSpec.from_wire(stored, strict=False) == TRUE
    with pytest.raises(Usage):
        JobSpec.from_wire(stored)
