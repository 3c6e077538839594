"""A job's place in line and what it holds, as anybody's hint says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core.hints import running_from_wire, waiting, waiting_from_wire, waiting_to_wire
from mlbox.core.job import JobSpec
from mlbox.core.log import State, fold
from mlbox.core.resources import Resources
from mlbox.core.schedule import After, Running, Waiting
from mlbox.errors import Usage

ID, OTHER = "01ARYZ6S41TSV4RRFFQ69G5FAV", "01ARYZ6S41TSV4RRFFQ69G5FAW"
TRUE = JobSpec(command=("true",))


PLACE = Waiting(
    ID, "ada", "night", Resources(gpus="2"), 5, -3, (After(OTHER, "any", 3), After(OTHER)), OTHER, 2,
    1764000000.0, "job"
)  # fmt: skip


def test_a_place_in_line_is_the_spec_s_and_then_the_log_s() -> None:
    spec = replace(TRUE, queue="night", priority=2, after=(After(OTHER),), array=OTHER, array_limit=3)
    submitted: list[dict[str, Any]] = [{"event": "submitted"}]
    expected = Waiting(ID, "ada", "night", Resources(), 2, 0, (After(OTHER),), OTHER, 3, 0.0, "job")
    assert waiting(ID, "ada", spec, fold(submitted)) == expected
    moved = [*submitted, {"event": "moved", "queue": "day", "priority": -1, "rank": 4}]
    assert waiting(ID, "ada", spec, fold(moved)) == replace(expected, queue="day", priority=-1, rank=4, moves=1)
    again = [*submitted, {"event": "claimed", "attempt": 1}, {"event": "retry", "not_before": 7}]
    assert waiting(ID, "ada", spec, fold(again)).not_before == 7.0
    assert waiting(ID, "ada", JobSpec(), State()).kind == "session"


def test_a_waiting_hint_comes_back_and_says_nothing_of_who_and_which() -> None:
    document = json.loads(json.dumps(waiting_to_wire(PLACE)))
    assert waiting_from_wire(ID, "ada", document) == PLACE
    forged = waiting_from_wire(OTHER, "eve", {**document, "id": ID, "owner": "ada"})
    assert (forged.id, forged.owner) == (OTHER, "eve")
    assert waiting_from_wire(ID, "ada", {}) == Waiting(ID, "ada")
    assert waiting_from_wire(ID, "ada", {**document, "from the future": 1}) == PLACE


@pytest.mark.parametrize(
    "change",
    [
        {"queue": 5}, {"queue": "../x"}, {"queue": ""}, {"priority": "9"}, {"priority": True}, {"priority": 10**9},
        {"priority": -(10**9)}, {"rank": 10**6}, {"rank": -(10**6)}, {"rank": None}, {"resources": []},
        {"resources": {"gpus": "a:b"}}, {"resources": {"cpus": -1}}, {"resources": {"cpus": 10**9}}, {"after": "x"},
        {"after": [{"job": "not-an-id"}]}, {"after": [{"job": ID, "end": "x"}]}, {"after": [{"job": ID}] * 101},
        {"after": [{"job": ID, "array": 10**9}]}, {"after": [{"job": ID, "array": "2"}]},
        {"array": "x"}, {"array_limit": -1}, {"array_limit": 10**6}, {"not_before": math.inf},
        {"not_before": math.nan}, {"not_before": "x"}, {"not_before": 10**400}, {"kind": "\x1b[2J"}, {"kind": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_waiting_hint_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Usage):
        waiting_from_wire(ID, "eve", {**waiting_to_wire(PLACE), **change})


RUN = Running(ID, "ada", "gpu1", "night", ("GPU-1",), 1024, 2, 512, 3, 1764000000.0, 60, OTHER, True, "session")


def test_a_running_hint_comes_back() -> None:
    document = json.loads(json.dumps(asdict(RUN)))
    assert running_from_wire(ID, "ada", "gpu1", document) == RUN
    forged = running_from_wire(OTHER, "eve", "gpu2", document)
    assert (forged.id, forged.owner, forged.host) == (OTHER, "eve", "gpu2")
    assert running_from_wire(ID, "ada", "gpu1", {"started": 5}).started == 5


@pytest.mark.parametrize(
    "change",
    [
        {"gpus": "GPU-1"}, {"gpus": 3}, {"share": -1}, {"cpus": -100}, {"memory": -(10**9)}, {"cpus": 10**30},
        {"cpus": "2"}, {"started": "now"}, {"started": math.nan}, {"started": math.inf}, {"started": 10**400},
        {"time_limit": -5}, {"priority": 10**9}, {"queue": "\x1b]0;x\x07"}, {"kind": "root"}, {"ending": 1},
        {"array": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_running_hint_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Usage):
        running_from_wire(ID, "eve", "gpu1", {**asdict(RUN), **change})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_READERS: list[tuple[Callable[[Any], object], type]] = [
    (lambda document: waiting_from_wire(ID, "eve", document), Waiting),
    (lambda document: running_from_wire(ID, "eve", "gpu1", document), Running),
    (lambda document: JobSpec.from_wire(document, strict=False), JobSpec),
]


@pytest.mark.parametrize(("read", "kind"), _READERS, ids=["waiting", "running", "spec"])
@given(st.data())
def test_any_json_is_read_or_refused(read: Callable[[Any], object], kind: Any, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(kind.__dataclass_fields__)) | st.text(max_size=8)
    document = data.draw(st.dictionaries(names, _JSON, max_size=5))
    with suppress(Usage):
        assert isinstance(read(document), kind)
