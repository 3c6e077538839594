"""The event log of a session: what may follow what, and what a log amounts to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core.session import STATES, TERMINAL, State, fold, may_follow

LEGAL = {
    ("", "submitted"),
    ("submitted", "claimed"),
    ("submitted", "failed"),
    ("claimed", "started"),
    ("claimed", "failed"),
    ("claimed", "finished"),
    ("claimed", "lost"),
    ("started", "finished"),
    ("started", "failed"),
    ("started", "lost"),
}


@pytest.mark.parametrize("state", ["", *STATES, "unheard-of"])
@pytest.mark.parametrize("event", ["", *STATES, "unheard-of"])
def test_may_follow(state: str, event: str) -> None:
    assert may_follow(state, event) == ((state, event) in LEGAL)


@pytest.mark.parametrize(
    ("names", "state", "slots", "live"),
    [
        ([], "", 0, False),
        (["submitted"], "submitted", 1, True),
        (["submitted", "claimed", "started"], "started", 3, True),
        (["submitted", "claimed", "started", "finished"], "finished", 4, False),
        (["submitted", "failed"], "failed", 2, False),
        (["submitted", "claimed", "lost"], "lost", 3, False),
        (["started"], "", 1, False),
        (["submitted", "submitted", "claimed"], "claimed", 3, True),
        (["submitted", "claimed", "lost", "started", "finished"], "lost", 5, False),
        (["submitted", "nonsense", "claimed"], "claimed", 3, True),
    ],
    ids=lambda v: "-".join(v) or "empty" if isinstance(v, list) else "",
)
def test_fold(names: list[str], state: str, slots: int, live: bool) -> None:
    found = fold({"event": name} for name in names)
    assert (found.name, found.slots, found.live) == (state, slots, live)


def test_facts_of_legal_events_only_and_the_latest_wins() -> None:
    log = [
        {"event": "submitted", "at": 1, "by": "ada"},
        {"event": "started", "at": 2, "evil": True},
        {"event": "claimed", "at": 3, "gpus": ["GPU-1"]},
        {"event": "failed", "at": 4, "why": "x"},
        {"event": "finished", "at": 5, "why": "y"},
    ]
    assert fold(log).facts == {"at": 4, "by": "ada", "gpus": ["GPU-1"], "why": "x"}


_EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(["", "odd", *STATES]) | st.integers()}, optional={"at": st.integers(), "why": st.text()}
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
    assert after.slots == len(log) + len(more)
    if before.name in TERMINAL:
        assert (after.name, after.facts) == (before.name, before.facts)


@given(_LOGS)
def test_each_step_is_legal(log: list[dict[str, Any]]) -> None:
    state = State()
    for size in range(1, len(log) + 1):
        after = fold(log[:size])
        assert after.name == state.name or (state.name, after.name) in LEGAL
        state = after
