"""What the end of an attempt amounts to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core import job as jobs
from mlbox.core.job import JobSpec
from mlbox.core.log import State, fold, number
from mlbox.core.verdict import Outcome, elsewhere, verdict

ID, OTHER = "01ARYZ6S41TSV4RRFFQ69G5FAV", "01ARYZ6S41TSV4RRFFQ69G5FAW"
TRUE = JobSpec(command=("true",))


NOW = 1764000000.0
FIRST = State("started", {"attempt": 1})
CANCELLED = State("started", {"attempt": 1, "by": "ada"}, "cancel_requested")
PREEMPTED = State("started", {"attempt": 1, "for": "it made room"}, "preempt_requested")
OK, BAD, TERM = Outcome(), Outcome(exit=3), Outcome(signal=15, stopped=True)
OOM, LATE, LOST = Outcome(signal=9, oom=True), Outcome(signal=15, stopped=True, timeout=True), Outcome(lost="rebooted")
UNREADY, UNSTARTED = Outcome(unready="no GPUs there"), Outcome(unstarted="no such flag")
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
        (TRUE, FIRST, UNREADY, "lost", "unready"),
        (replace(HOLD, max_losses=1), State("claimed", {"attempt": 7, "losses": 9}), UNREADY, "lost", "unready"),
        (TRUE, CANCELLED, UNREADY, "cancelled", "unready"),
        (HOLD, FIRST, UNSTARTED, "lost", "start"),
        (THRICE, State("started", {"attempt": 7, "losses": 2}), UNSTARTED, "failed", "start"),
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
        (TRUE, PREEMPTED, replace(OK, stopped=True), "preempted", "lost"),
        (TRUE, PREEMPTED, BAD, "preempted", "exit"),
        (TRUE, PREEMPTED, OK, "finished", ""),
        (THRICE, FIRST, OK, "finished", ""),
        (THRICE, FIRST, BAD, "retry", "exit"),
        (THRICE, FIRST, Outcome(signal=11), "retry", "signal"),
        (THRICE, FIRST, OOM, "retry", "oom"),
        (THRICE, FIRST, LATE, "retry", "timeout"),
        (THRICE, FIRST, Outcome(error="no image"), "failed", "start"),
        (THRICE, State("started", {"attempt": 9, "retried": 1}), BAD, "retry", "exit"),
        (THRICE, State("started", {"attempt": 9, "retried": 2}), BAD, "failed", "exit"),
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


@pytest.mark.parametrize(("code", "why"), [(3, "exit code 3"), (127, "exit code 127 (no such command)")])
def test_an_exit_code_that_has_a_meaning_says_it(code: int, why: str) -> None:
    assert verdict(TRUE, FIRST, Outcome(exit=code), NOW)["why"] == why


def test_exit_code_and_signal_are_kept() -> None:
    assert verdict(TRUE, FIRST, BAD, NOW)["exit"] == 3
    assert verdict(TRUE, FIRST, OOM, NOW)["signal"] == 9
    assert "exit" not in verdict(TRUE, FIRST, LOST, NOW)


def test_the_back_off_doubles_up_to_an_hour() -> None:
    spec = replace(TRUE, retries=1000, backoff=10)
    waits = [verdict(spec, State("started", {"retried": n - 1}), BAD, NOW)["not_before"] - NOW for n in range(1, 1001)]
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


def test_what_did_not_start_is_left_to_other_hosts_for_a_while() -> None:
    claimed = State("claimed", {"attempt": 1, "host": "gpu1"})
    for outcome, losses, left in ((UNREADY, "", 60), (UNSTARTED, "; loss 1 of at most 3", 300)):
        log: list[dict[str, Any]] = [{"event": "submitted"}, {"event": "claimed", **claimed.facts}]
        lost = fold([*log, verdict(TRUE, claimed, outcome, NOW)])
        assert number(lost.facts.get("losses")) == bool(losses) and str(lost.facts["why"]).endswith(losses)
        assert elsewhere(lost, "gpu1", NOW + left - 9) == (lost.facts["why"], 9)
        assert not elsewhere(lost, "gpu2", NOW + left - 9)
        assert not elsewhere(lost, "gpu1", NOW + left) and not elsewhere(lost, "gpu1", NOW - 86400)
    assert not elsewhere(fold([*log, verdict(TRUE, claimed, LOST, NOW)]), "gpu1", NOW + 1)


def test_neither_who_made_room_nor_who_was_lost_has_used_up_a_retry() -> None:
    log: list[dict[str, Any]] = [{"event": "submitted"}]
    for attempt, end in enumerate(("preempted", "lost", "", "preempted", ""), 1):
        log.append({"event": "claimed", "attempt": attempt})
        log.append({"event": end} if end else verdict(replace(TRUE, retries=1), fold(log), BAD, NOW))
    assert [event["event"] for event in log[2::2]] == ["preempted", "lost", "retry", "preempted", "failed"]


@given(
    st.builds(
        Outcome, exit=st.integers(0, 255), signal=st.integers(0, 64), oom=st.booleans(), timeout=st.booleans(),
        stopped=st.booleans(), lost=st.sampled_from(["", "x"]), unready=st.sampled_from(["", "z"]),
        unstarted=st.sampled_from(["", "u"]), error=st.sampled_from(["", "y"]),
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
