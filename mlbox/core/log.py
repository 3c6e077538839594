"""What a job's event log says: which event may follow which, and what they amount to. Pure.

    submitted ─> claimed ─> started ─> finished | failed | cancelled      the end, and final
                    └───────────┴────> lost | preempted | retry ─> claimed (the next attempt)

`moved` changes a waiting job's queue or place; `cancel_requested` and `preempt_requested` are words to the keeper
of a running one. These three leave the state as it is. Sessions use the same log, and are never tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

WAITING = frozenset(["submitted", "lost", "preempted", "retry"])
RUNNING = frozenset(["claimed", "started"])
TERMINAL = frozenset(["finished", "failed", "cancelled"])
_SAID = {"claimed": "starting", "started": "running"}
_REQUESTS = frozenset(["cancel_requested", "preempt_requested"])
_ASIDE = _REQUESTS | {"moved"}  # leave the state as it is
_ENDS_ATTEMPT = TERMINAL | (WAITING - {"submitted"})
# Events whose number is a fact, by the fold: so those count that an older mlbox wrote.
_COUNTED = {"moved": "moves", "retry": "retried"}
_OF_AN_END = ("why", "reason", "exit", "signal", "not_before")  # facts that the next attempt starts without


@dataclass(frozen=True)
class State:
    """The fold of a log: where the job is, and the facts that its events carried (the latest of each name)."""

    name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    requested: str = ""  # of this attempt: cancel_requested or preempt_requested

    @property
    def live(self) -> bool:
        return bool(self.name) and self.name not in TERMINAL

    @property
    def waiting(self) -> bool:
        return self.name in WAITING

    @property
    def running(self) -> bool:
        return self.name in RUNNING

    @property
    def attempt(self) -> int:
        """The number of the latest attempt, from 1; 0 before the first."""
        return number(self.facts.get("attempt"))

    @property
    def moves(self) -> int:
        """How often it was moved in line: of two that say where it stands, the one that knows more moves is right."""
        return number(self.facts.get("moves"))


def said(state: str) -> str:
    """A state in the word that people have for it."""
    return "waiting" if state in WAITING else _SAID.get(state, state)


def may_follow(state: str, event: str) -> bool:
    if not state:
        return event == "submitted"
    if state in WAITING:
        return event in {"claimed", "cancelled", "failed", "moved"}
    if state == "claimed":
        return event == "started" or event in _ENDS_ATTEMPT or event in _REQUESTS
    return state == "started" and (event in _ENDS_ATTEMPT or event in _REQUESTS)


def fold(events: Iterable[Mapping[str, Any]]) -> State:
    """Events in the order of their slots; one that is not legal where it stands changes nothing."""
    state = State()
    for event in events:
        name = event.get("event")
        if isinstance(name, str) and may_follow(state.name, name):
            state = _after(state, name, {key: value for key, value in event.items() if key != "event"})
    return state


def _after(state: State, name: str, facts: Json) -> State:
    if name in _COUNTED:
        facts = {**facts, _COUNTED[name]: number(state.facts.get(_COUNTED[name])) + 1}
    if name in _ASIDE:
        return State(state.name, {**state.facts, **facts}, name if name in _REQUESTS else state.requested)
    kept = {key: value for key, value in state.facts.items() if name != "claimed" or key not in _OF_AN_END}
    return State(name, {**kept, **facts}, state.requested if name in RUNNING and name != "claimed" else "")


def follow(events: Iterable[Mapping[str, Any]], event: Json, attempt: int = 0) -> Json | None:
    """`event` if it is legal after these; None if it is not, or `attempt` (0: none is meant) no longer runs."""
    state = fold(events)
    if attempt and not (state.running and state.attempt == attempt):
        return None  # the fence: a host that comes back from the dead finds its attempt lost, or a later claim
    if not attempt and state.running and state.attempt and event.get("event") in _ENDS_ATTEMPT:
        return None  # it was to end a job that waits, and a claim was faster
    if event.get("event") == "claimed" and event.get("moves", state.moves) != state.moves:
        return None  # it was moved since, perhaps to where it may not start
    return event if may_follow(state.name, str(event.get("event"))) else None


def number(value: Any) -> int:
    """A fact that should be one: what a log of another version has there instead counts as none."""
    return value if type(value) is int else 0


def moment(value: Any) -> float:
    """The same of a time (s since 1970, or since a boot); one beyond all bounds breaks sums."""
    return float(value) if type(value) in (int, float) and -1e12 < value < 1e12 else 0.0
