"""A job's spec, its place in line, and what its end amounts to."""

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

from mlbox.core import job as jobs
from mlbox.core.job import JobSpec, Outcome, running_from_wire, verdict, waiting, waiting_from_wire, waiting_to_wire
from mlbox.core.log import State, fold
from mlbox.core.resources import Resources
from mlbox.core.schedule import After, Running, Waiting
from mlbox.core.session import Spec
from mlbox.errors import Usage

ID, OTHER = "01ARYZ6S41TSV4RRFFQ69G5FAV", "01ARYZ6S41TSV4RRFFQ69G5FAW"
TRUE = JobSpec(command=("true",))

# ---- the spec ------------------------------------------------------------------------------------


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
        ({"retry_on": ("exit", "bad luck")}, "nothing ends by 'bad luck'"),
        ({"on_host_loss": "panic"}, "hold or requeue"),
        ({"max_losses": 0}, "after 0 losses"),
        ({"after": (After(ID),) * 101}, "at most 100"),
        ({"after": (After("../../x"),)}, "not a job's id"),
        ({"after": (After(ID, "never"),)}, "ok or any"),
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
    ],
)  # fmt: skip
def test_what_it_can_be_crosses_the_wire(fields: dict[str, Any]) -> None:
    spec = replace(TRUE, **fields)
    assert JobSpec.from_wire(json.loads(json.dumps(spec.to_wire()))) == spec


def test_a_session_is_a_job_without_a_command() -> None:
    assert JobSpec().session and not TRUE.session


def test_no_secret_is_left_and_all_come_back() -> None:
    work = Spec(env={"KEY": "s3cret"}, packages=("x @ https://me:pw@host/x.whl",), requirements="-i https://t0k@host/")
    spec = replace(TRUE, work=work)
    public = spec.without_secrets()
    assert not any(word in json.dumps(public.to_wire()) for word in ("s3cret", "pw", "t0k"))
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


# ---- hints: anybody's ----------------------------------------------------------------------------

PLACE = Waiting(
    ID, "ada", "night", Resources(gpus="2"), 5, -3, (After(OTHER, "any"),), OTHER, 2, 1764000000.0, "job"
)  # fmt: skip


def test_a_place_in_line_is_the_spec_s_and_then_the_log_s() -> None:
    spec = replace(TRUE, queue="night", priority=2, after=(After(OTHER),), array=OTHER, array_limit=3)
    submitted: list[dict[str, Any]] = [{"event": "submitted"}]
    expected = Waiting(ID, "ada", "night", Resources(), 2, 0, (After(OTHER),), OTHER, 3, 0.0, "job")
    assert waiting(ID, "ada", spec, fold(submitted)) == expected
    moved = [*submitted, {"event": "moved", "queue": "day", "priority": -1, "rank": 4}]
    assert waiting(ID, "ada", spec, fold(moved)) == replace(expected, queue="day", priority=-1, rank=4)
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
        {"resources": {"gpus": "a,b"}}, {"resources": {"cpus": -1}}, {"resources": {"cpus": 10**9}}, {"after": "x"},
        {"after": [{"job": "not-an-id"}]}, {"after": [{"job": ID, "end": "x"}]}, {"after": [{"job": ID}] * 101},
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


# ---- how an attempt ended ------------------------------------------------------------------------

NOW = 1764000000.0
FIRST = State("started", {"attempt": 1})
CANCELLED = State("started", {"attempt": 1, "by": "ada"}, "cancel_requested")
PREEMPTED = State("started", {"attempt": 1, "for": "it made room"}, "preempt_requested")
OK, BAD, TERM = Outcome(), Outcome(exit=3), Outcome(signal=15, stopped=True)
OOM, LATE, LOST = Outcome(signal=9, oom=True), Outcome(signal=15, stopped=True, timeout=True), Outcome(lost="rebooted")
THRICE = replace(TRUE, retries=2)
HOLD, REQUEUE = replace(TRUE, on_host_loss="hold"), replace(TRUE, on_host_loss="requeue")


@pytest.mark.parametrize(
    ("spec", "state", "outcome", "event", "reason"),
    [
        (TRUE, FIRST, OK, "finished", ""),
        (TRUE, FIRST, BAD, "failed", "exit"),
        (TRUE, FIRST, Outcome(signal=11), "failed", "signal"),
        (TRUE, FIRST, OOM, "failed", "oom"),
        (TRUE, FIRST, LATE, "failed", "timeout"),
        (TRUE, FIRST, Outcome(error="no image"), "failed", "start"),
        (TRUE, FIRST, LOST, "lost", "lost"),
        (REQUEUE, FIRST, LOST, "lost", "lost"),
        (HOLD, FIRST, LOST, "failed", "lost"),
        (TRUE, State("started", {"attempt": 7, "losses": 1}), LOST, "lost", "lost"),
        (TRUE, State("started", {"attempt": 7, "losses": 2}), LOST, "failed", "lost"),
        (replace(TRUE, max_losses=1), FIRST, LOST, "failed", "lost"),
        (replace(TRUE, retries=9), State("started", {"attempt": 3, "losses": 2}), LOST, "failed", "lost"),
        (TRUE, State("started", {"attempt": 7, "losses": "?"}), LOST, "lost", "lost"),
        (replace(HOLD, retries=1), FIRST, LOST, "retry", "lost"),
        (replace(HOLD, retries=1, retry_on=("oom",)), FIRST, LOST, "failed", "lost"),
        (TRUE, FIRST, TERM, "lost", "lost"),  # SIGTERM that nobody of the lab sent: the host goes down
        (TRUE, CANCELLED, TERM, "cancelled", "lost"),
        (TRUE, CANCELLED, OK, "cancelled", ""),
        (THRICE, CANCELLED, BAD, "cancelled", "exit"),
        (HOLD, CANCELLED, LOST, "cancelled", "lost"),
        (TRUE, PREEMPTED, TERM, "preempted", "lost"),
        (HOLD, PREEMPTED, LOST, "preempted", "lost"),
        (THRICE, FIRST, OK, "finished", ""),
        (THRICE, FIRST, BAD, "retry", "exit"),
        (THRICE, FIRST, Outcome(signal=11), "retry", "signal"),
        (THRICE, FIRST, OOM, "retry", "oom"),
        (THRICE, FIRST, LATE, "retry", "timeout"),
        (THRICE, FIRST, Outcome(error="no image"), "failed", "start"),
        (THRICE, State("started", {"attempt": 2}), BAD, "retry", "exit"),
        (THRICE, State("started", {"attempt": 3}), BAD, "failed", "exit"),
        (replace(THRICE, retry_on=("oom", "signal")), FIRST, BAD, "failed", "exit"),
        (replace(THRICE, retry_on=("oom", "signal")), FIRST, OOM, "retry", "oom"),
        (replace(THRICE, retry_on=()), FIRST, OOM, "failed", "oom"),
        (TRUE, State("claimed", {"attempt": 1}), OK, "finished", ""),
    ],
)
def test_verdict(spec: JobSpec, state: State, outcome: Outcome, event: str, reason: str) -> None:
    found = verdict(spec, state, outcome, NOW)
    assert (found["event"], found["reason"], found["at"]) == (event, reason, NOW)
    assert found["why"] and ("not_before" in found) == (event in ("retry", "lost"))
    assert json.loads(json.dumps(found)) == found


def test_a_cancellation_names_who_and_a_preemption_for_whom() -> None:
    assert verdict(TRUE, CANCELLED, TERM, NOW)["why"] == "cancelled by ada"
    assert verdict(TRUE, PREEMPTED, TERM, NOW)["why"] == "it made room"


def test_exit_code_and_signal_are_kept() -> None:
    assert verdict(TRUE, FIRST, BAD, NOW)["exit"] == 3
    assert verdict(TRUE, FIRST, OOM, NOW)["signal"] == 9
    assert "exit" not in verdict(TRUE, FIRST, LOST, NOW)


def test_the_back_off_doubles_up_to_an_hour() -> None:
    spec = replace(TRUE, retries=1000, backoff=10)
    waits = [verdict(spec, State("started", {"attempt": n}), BAD, NOW)["not_before"] - NOW for n in range(1, 1001)]
    assert waits[:4] == [10, 20, 40, 80]
    assert max(waits) == waits[-1] == 3600 and waits == sorted(waits)
    longer = replace(spec, backoff=86400)
    assert verdict(longer, FIRST, BAD, NOW)["not_before"] - NOW in (3600, 86400)
    assert verdict(replace(spec, backoff=0), FIRST, BAD, NOW)["not_before"] == NOW


def test_losses_are_counted_back_off_and_end() -> None:
    """The first is tried again at once, the next ones later and later, the last one not at all."""
    spec, waits = replace(TRUE, max_losses=5, backoff=10), []
    log: list[dict[str, Any]] = [{"event": "submitted"}]
    for attempt in range(1, 6):
        log.append({"event": "claimed", "attempt": attempt})
        log.append(verdict(spec, fold(log), LOST, NOW))
        waits.append(log[-1].get("not_before", NOW) - NOW)
    assert [event["event"] for event in log[2::2]] == ["lost"] * 4 + ["failed"]
    assert waits == [0, 10, 20, 40, 0]
    assert log[-1]["why"] == "rebooted; loss 5 of at most 5" and fold(log).facts["reason"] == "lost"


@given(
    st.builds(
        Outcome, exit=st.integers(0, 255), signal=st.integers(0, 64), oom=st.booleans(), timeout=st.booleans(),
        stopped=st.booleans(), lost=st.sampled_from(["", "x"]), error=st.sampled_from(["", "y"]),
    ),
    st.sampled_from([TRUE, THRICE, HOLD, REQUEUE]), st.sampled_from(["", "cancel_requested", "preempt_requested"]),
    st.sampled_from(["claimed", "started"]),
)  # fmt: skip
def test_whatever_happened_the_verdict_ends_the_attempt(
    outcome: Outcome, spec: JobSpec, requested: str, name: str
) -> None:
    """An attempt's end is legal after every running state, and a cancellation ends the job."""
    event = verdict(spec, State(name, {"attempt": 1}, requested), outcome, NOW)
    log: list[dict[str, Any]] = [{"event": "submitted"}, {"event": "claimed", "attempt": 1}, event]
    after = fold(log)
    assert after.name == event["event"] and not after.running
    if requested == "cancel_requested":
        assert not after.live


def test_reasons_are_those_that_a_retry_can_name() -> None:
    outcomes = (BAD, Outcome(signal=11), OOM, LATE, LOST)
    assert {verdict(TRUE, FIRST, outcome, NOW)["reason"] for outcome in outcomes} == set(jobs.REASONS)
