"""A job's event log: what may follow what, what a log amounts to, and which attempt an event is about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core.log import RUNNING, TERMINAL, WAITING, State, fold, follow, may_follow

STATES = sorted(WAITING | RUNNING | TERMINAL)
ENDS = {"finished", "failed", "cancelled", "lost", "preempted", "retry"}
REQUESTS = {"cancel_requested", "preempt_requested"}
EVENTS = sorted({"", "submitted", "claimed", "started", "moved", "unheard-of", *ENDS, *REQUESTS})
FROM_WAITING = {"claimed", "cancelled", "failed", "moved"}
LEGAL = {
    ("", "submitted"),
    *((state, event) for state in ("submitted", "lost", "preempted", "retry") for event in FROM_WAITING),
    *(("claimed", event) for event in {"started", *ENDS, *REQUESTS}),
    *(("started", event) for event in ENDS | REQUESTS),
}


def test_a_state_is_of_one_kind() -> None:
    assert len(STATES) == sum(map(len, (WAITING, RUNNING, TERMINAL))) == 9


@pytest.mark.parametrize("state", ["", *STATES, "unheard-of", "moved", "cancel_requested"])
@pytest.mark.parametrize("event", EVENTS)
def test_may_follow(state: str, event: str) -> None:
    assert may_follow(state, event) == ((state, event) in LEGAL)


def names(*events: str) -> list[dict[str, Any]]:
    return [{"event": name} for name in events]


@pytest.mark.parametrize(
    ("events", "state", "live"),
    [
        ("", "", False),
        ("submitted", "submitted", True),
        ("submitted claimed started", "started", True),
        ("submitted claimed started finished", "finished", False),
        ("submitted failed", "failed", False),
        ("submitted cancelled", "cancelled", False),
        ("submitted claimed lost", "lost", True),
        ("submitted claimed started preempted claimed", "claimed", True),
        ("submitted claimed retry claimed started finished", "finished", False),
        ("submitted moved moved", "submitted", True),
        ("submitted claimed moved", "claimed", True),
        ("started", "", False),
        ("submitted submitted claimed", "claimed", True),
        ("submitted claimed lost started finished", "lost", True),
        ("submitted claimed started claimed", "started", True),
        ("submitted cancelled claimed started", "cancelled", False),
        ("submitted cancel_requested claimed", "claimed", True),
        ("submitted nonsense claimed", "claimed", True),
    ],
)
def test_fold(events: str, state: str, live: bool) -> None:
    found = fold(names(*events.split()))
    assert (found.name, found.live) == (state, live)
    assert found.waiting == (state in WAITING) and found.running == (state in RUNNING)


def test_facts_of_legal_events_only_and_the_latest_wins() -> None:
    log = [
        {"event": "submitted", "at": 1, "by": "ada"},
        {"event": "started", "at": 2, "evil": True},
        {"event": "claimed", "at": 3, "gpus": ["GPU-1"]},
        {"event": "failed", "at": 4, "why": "x"},
        {"event": "finished", "at": 5, "why": "y"},
    ]
    assert fold(log).facts == {"at": 4, "by": "ada", "gpus": ["GPU-1"], "why": "x"}


@pytest.mark.parametrize("event", [None, 3, ["submitted"], {"event": "submitted"}])
def test_an_event_whose_name_is_no_text_changes_nothing(event: Any) -> None:
    assert fold([{"event": event}, {"event": "submitted"}]).name == "submitted"


# ---- attempts and requests -----------------------------------------------------------------------


def test_a_new_attempt_starts_without_the_facts_of_the_last_one_s_end() -> None:
    end = {"exit": 3, "signal": 9, "why": "x", "reason": "exit", "not_before": 5.0}
    start: list[dict[str, Any]] = [{"event": "submitted", "by": "ada"}, {"event": "claimed", "attempt": 1}]
    log: list[dict[str, Any]] = [*start, {"event": "retry", **end}]
    assert fold(log).facts == {"by": "ada", "attempt": 1, "retried": 1, **end}
    assert fold([*log, {"event": "claimed", "attempt": 2}]).facts == {"by": "ada", "attempt": 2, "retried": 1}


@pytest.mark.parametrize("request_", sorted(REQUESTS))
def test_a_request_is_of_one_attempt(request_: str) -> None:
    log = names("submitted", "claimed", request_)
    assert (fold(log).name, fold(log).requested) == ("claimed", request_)
    assert fold([*log, *names("started")]).requested == request_
    for end in sorted(ENDS):
        assert fold([*log, *names(end)]).requested == ""
    assert fold([*log, *names("lost", "claimed")]).requested == ""


def test_the_last_request_counts() -> None:
    assert fold(names("submitted", "claimed", "preempt_requested", "cancel_requested")).requested == "cancel_requested"


def test_a_move_changes_facts_and_no_state() -> None:
    log: list[dict[str, Any]] = [{"event": "submitted", "queue": "a", "priority": 0}]
    log += [{"event": "moved", "queue": "b", "rank": -1}]
    assert fold(log) == State("submitted", {"queue": "b", "priority": 0, "rank": -1, "moves": 1})
    assert fold([*log, {"event": "claimed"}, {"event": "moved", "queue": "c"}]).facts["queue"] == "b"


def test_a_claim_is_of_the_place_that_it_was_chosen_at() -> None:
    log: list[dict[str, Any]] = [{"event": "submitted"}, {"event": "moved", "queue": "b"}]
    assert fold(log).moves == 1 and fold([*log, {"event": "moved"}]).moves == 2
    assert follow(log, {"event": "claimed", "moves": 1}) and follow(log, {"event": "claimed"})
    assert follow(log, {"event": "claimed", "moves": 0}) is None
    assert follow([*log, {"event": "moved"}], {"event": "claimed", "moves": 1}) is None


@pytest.mark.parametrize(("number", "attempt"), [(1, 1), (7, 7), ("7", 0), (True, 0), (None, 0), (1.5, 0)])
def test_the_attempt_s_number(number: Any, attempt: int) -> None:
    assert fold([{"event": "submitted"}, {"event": "claimed", "attempt": number}]).attempt == attempt


def test_follow_is_fenced_by_the_attempt() -> None:
    first: list[dict[str, Any]] = [{"event": "submitted"}, {"event": "claimed", "attempt": 1}]
    second = [*first, {"event": "lost"}, {"event": "claimed", "attempt": 2}]
    finished = {"event": "finished", "exit": 0}
    assert follow(first, finished, 1) == finished
    assert follow(second, finished, 2) == finished
    assert follow(second, finished, 1) is None
    assert follow(second, finished) is None  # meant for a job that waits
    assert follow([*first, {"event": "lost"}], {"event": "cancelled"}) == {"event": "cancelled"}
    assert follow([*first, {"event": "lost"}], {"event": "failed"}, 1) is None
    assert follow([*first, {"event": "lost"}], {"event": "failed"}) == {"event": "failed"}
    assert follow([*second, finished], finished, 2) is None
    assert follow([], {"event": "submitted"}) == {"event": "submitted"}
    assert follow([], {}) is None


_EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(EVENTS) | st.integers()},
    optional={"at": st.integers(), "why": st.text(), "attempt": st.integers(1, 3)},
)
_LOGS = st.lists(_EVENTS, max_size=12)


@given(_LOGS)
def test_fold_is_pure(log: list[dict[str, Any]]) -> None:
    copies = [dict(event) for event in log]
    assert fold(log) == fold(iter(copies))
    assert log == copies


@given(_LOGS, _LOGS)
def test_a_terminal_state_is_final(log: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    before, after = fold(log), fold([*log, *more])
    if before.name in TERMINAL:
        assert after == before


@given(_LOGS)
def test_each_step_is_legal(log: list[dict[str, Any]]) -> None:
    state = State()
    for size in range(1, len(log) + 1):
        after = fold(log[:size])
        assert after.name == state.name or (state.name, after.name) in LEGAL
        state = after


@given(_LOGS, _EVENTS, st.integers(0, 3))
def test_what_follow_lets_through_is_taken_by_the_fold(log: list[dict[str, Any]], event: Any, attempt: int) -> None:
    before = fold(log)
    if follow(log, event, attempt) is None:
        runs = before.running and before.attempt == attempt
        outrun = not attempt and before.running and event["event"] in ENDS
        assert not may_follow(before.name, str(event["event"])) or (attempt and not runs) or outrun
    else:
        assert fold([*log, event]) != before or event["event"] in {"moved", before.requested}
