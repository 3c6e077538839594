"""The append protocol as a model, without a line of mlbox/core/slots.py: what that machine must amount to.

N processes want the one claim of an empty log. Files are slots, each TORN or (owner, voids), and intents, each
(slot, process). Any process may crash at any step; its host then removes its intents. A person may fence each
process once, which removes the intents of one that sleeps. GUARDS are what keeps two from acting; without any
one of them, the search finds two that do.

The model is simpler than the machine where the outcome is the same: it removes an intent together with the step
before, refuses without waiting for a torn slot to be settled, and settles its own claim by a second one, not a mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Optional

TORN = None
GUARDS = frozenset(["reread", "look", "confirm"])
Slot = Optional[tuple[int, tuple[int, ...]]]


class Process(NamedTuple):
    step: str = "fold"
    slot: int = 0
    voids: tuple[int, ...] = ()
    alive: bool = True


class State(NamedTuple):
    processes: tuple[Process, ...]
    slots: tuple[Slot, ...] = ()
    intents: frozenset[tuple[int, int]] = frozenset()
    acted: frozenset[int] = frozenset()
    fenced: frozenset[int] = frozenset()


def start(processes: int) -> State:
    return State((Process(),) * processes)


def fold(slots: tuple[Slot, ...]) -> tuple[list[int], tuple[int, ...]]:
    """The owners of valid claims in order, and the torn slots that nothing has made void."""
    void: set[int] = set()
    for number in range(len(slots), 0, -1):
        slot = slots[number - 1]
        if slot is not TORN and number not in void:
            void.update(slot[1])
    left = [(number, slot) for number, slot in enumerate(slots, 1) if number not in void]
    return [slot[0] for _, slot in left if slot], tuple(number for number, slot in left if slot is TORN)


@dataclass(frozen=True)
class Model:
    """Logs of at most `longest` slots; a process that would need one more sleeps for ever."""

    longest: int
    guards: frozenset[str] = GUARDS

    def moves(self, state: State) -> Iterator[State]:
        for me, process in enumerate(state.processes):
            mine = frozenset(intent for intent in state.intents if intent[1] == me)
            if mine and not process.alive:
                yield state._replace(intents=state.intents - mine)
            if process.alive and process.step != "done":
                yield _put(state, me, process._replace(alive=False))
                if mine and me not in state.fenced:
                    yield state._replace(intents=state.intents - mine, fenced=state.fenced | {me})
                after = getattr(self, f"_{process.step}")(state, me, process)
                if after:
                    yield after

    def _fold(self, state: State, me: int, process: Process) -> State | None:
        owners, torn = fold(state.slots)
        if owners and owners[0] != me:
            return _put(state, me, process._replace(step="done"))
        if len(state.slots) == self.longest or any(number in torn for number, _ in state.intents):
            return None
        return _put(state, me, Process("publish", len(state.slots) + 1, torn))

    def _publish(self, state: State, me: int, process: Process) -> State:
        return _put(state._replace(intents=state.intents | {(process.slot, me)}), me, process._replace(step="create"))

    def _create(self, state: State, me: int, process: Process) -> State:
        if process.slot <= len(state.slots):
            return _again(state, me, process)
        return _put(state._replace(slots=(*state.slots, TORN)), me, process._replace(step="reread"))

    def _reread(self, state: State, me: int, process: Process) -> State:
        if "reread" in self.guards and any(state.slots[number - 1] for number in process.voids):
            return _again(state, me, process)
        return _put(state, me, process._replace(step="write"))

    def _write(self, state: State, me: int, process: Process) -> State:
        slots = (*state.slots[: process.slot - 1], (me, process.voids), *state.slots[process.slot :])
        return _put(state._replace(slots=slots), me, process._replace(step="look"))

    def _look(self, state: State, me: int, process: Process) -> State | None:
        if "look" in self.guards and process.slot < len(state.slots):
            successor = state.slots[process.slot]
            if successor is not TORN and process.slot in successor[1]:
                return _again(state, me, process)._replace(processes=_with(state, me, process._replace(step="done")))
            if successor is TORN and any(number == process.slot + 1 for number, _ in state.intents):
                return None
            if successor is TORN and "confirm" in self.guards:
                return _put(state, me, Process())
        return _put(state, me, process._replace(step="act"))

    def _act(self, state: State, me: int, process: Process) -> State:
        intents = state.intents - {(process.slot, me)}
        return _put(state._replace(intents=intents, acted=state.acted | {me}), me, process._replace(step="done"))


def _with(state: State, me: int, process: Process) -> tuple[Process, ...]:
    return (*state.processes[:me], process, *state.processes[me + 1 :])


def _put(state: State, me: int, process: Process) -> State:
    return state._replace(processes=_with(state, me, process))


def _again(state: State, me: int, process: Process) -> State:
    return _put(state._replace(intents=state.intents - {(process.slot, me)}), me, Process())
