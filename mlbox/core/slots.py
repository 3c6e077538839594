"""A job's write-once event log: what its slots amount to, and how an event is appended to it. Pure.

A slot is a file that exactly one process creates (O_EXCL), empty, and then writes in one piece. In between it
is *torn*: its creator died, or sleeps. The append is a machine; mlbox/host/slots.py carries out its actions:

    read      all slots and intents. What is to be appended is not legal after them: refused
    publish   an intent, a file whose name says who is about to write which slot: others wait for it
    create    the slot, exclusively. Lost: withdraw the intent, read again
    reread    the torn slots that this one steps over. One is complete by now: leave this one torn, read again
    write     the event, and the numbers of the slots that it makes void
    look      at the next slot. Absent, or it doesn't void this one: won. Torn, or it does: read again
    withdraw  the intent, and only then act

A torn slot with no intent left is stepped over. Its creator may yet wake and complete it. But whoever steps over
a slot creates its own before it rereads, and whoever completes one writes it before it looks, so one of them sees
the other. An event whose next slot is torn is not acted on before a later slot has made that one void; its own
writer appends it where nobody else does: a mark, a slot without an event. A refusal, too, comes from a log without
torn slots, as one of them could void the event that forbids.

Only reread and look must see the newest state. An old reading costs a retry, and so does an intent that was
overlooked, or removed from under a sleeper: tests/core/test_slots.py goes through every interleaving.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Optional

from mlbox import errors

Json = dict[str, Any]
Decide = Callable[[Sequence[Json]], Optional[Json]]  # the event to append after these, or None: refused

MAX_BYTES = 64 * 1024  # of one slot
MAX_SLOTS = 10_000

# ---- what is there -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A complete slot. Without an event it is a mark, which only makes other slots void."""

    event: Json | None
    voids: tuple[int, ...] = ()


Found = tuple[Optional[Slot], ...]  # slots that exist, None where torn


@dataclass(frozen=True)
class Writer:
    """A process; its number alone would come back after a boot, or after 32,768 others."""

    host: str
    boot: str
    pid: int
    started: str  # when, in the system's own units (host/processes.py)


@dataclass(frozen=True)
class Intent:
    """Somebody is about to write this slot."""

    slot: int
    writer: Writer
    token: str


@dataclass(frozen=True)
class Reading:
    """A log as it was seen: its slots from number 1, and the intents."""

    slots: Found = ()
    intents: frozenset[Intent] = frozenset()


@dataclass(frozen=True)
class Fold:
    """What a reading amounts to: the valid events by slot, in order; the next slot; the torn ones not yet void."""

    events: Mapping[int, Json]
    next: int
    torn: tuple[int, ...]


def fold(reading: Reading) -> Fold:
    """From the last slot down, a complete slot that is not void makes the slots in its `voids` void.

    With torn slots the last word is not spoken: one of them may still be completed, and void an event before it.
    """
    numbered = list(enumerate(reading.slots, 1))
    void: set[int] = set()
    for number, slot in reversed(numbered):
        if slot and number not in void:
            void.update(slot.voids)
    left = [(number, slot) for number, slot in numbered if number not in void]
    events = {number: slot.event for number, slot in left if slot and slot.event is not None}
    return Fold(events, len(reading.slots) + 1, tuple(number for number, slot in left if not slot))


# ---- names and bytes -----------------------------------------------------------------------------

_INTENT = re.compile(
    r"\.(?P<slot>[0-9]{6})\.(?P<host>[A-Za-z0-9_-]{1,64})\.(?P<boot>[A-Za-z0-9-]{0,64})"
    r"\.(?P<pid>[0-9]{1,10})\.(?P<started>[0-9]{1,20}(?:\.[0-9]{1,9})?)\.(?P<token>[0-9a-f]{16})",
    re.ASCII,
)


def slot_name(number: int) -> str:
    return f"{number:06}"


def intent_name(intent: Intent) -> str:
    """Raises ValueError for a writer that a name can't hold."""
    writer = intent.writer
    words = (slot_name(intent.slot), writer.host, writer.boot, str(writer.pid), writer.started, intent.token)
    name = "".join(f".{word}" for word in words)
    if parse_intent(name) != intent:
        raise ValueError(f"{name!r} can't name an intent")
    return name


def parse_intent(name: str) -> Intent | None:
    """None for every other name, whoever made it up."""
    found = _INTENT.fullmatch(name)
    if not found:
        return None
    writer = Writer(found["host"], found["boot"], int(found["pid"]), found["started"])
    return Intent(int(found["slot"]), writer, found["token"])


def parse_intents(names: Iterable[str]) -> frozenset[Intent]:
    return frozenset(intent for intent in map(parse_intent, names) if intent)


def encode(number: int, slot: Slot, token: str) -> bytes:
    """One line of JSON whose last word is the token: without it, and its newline, the slot is torn."""
    document = {"slot": number, "voids": slot.voids, "event": slot.event, "end": token}
    content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(content) > MAX_BYTES:
        raise errors.Refused(f"an event of {len(content)} bytes is too large", f"at most {MAX_BYTES} can be logged")
    return content


def decode(number: int, content: bytes) -> Slot | None:
    """None where this is not all of that slot, and nothing else."""
    if len(content) > MAX_BYTES or not content.endswith(b'"}\n'):
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or set(document) != {"slot", "voids", "event", "end"}:
        return None
    event, voids = document["event"], document["voids"]
    if document["slot"] != number or not (event is None or isinstance(event, dict)) or not isinstance(voids, list):
        return None
    return Slot(event, tuple(voids)) if all(type(v) is int and 0 < v < number for v in voids) else None


# ---- the append ----------------------------------------------------------------------------------

Phase = Literal["read", "wait", "publish", "create", "reread", "write", "look", "withdraw", "won", "refused"]
_NEXT: dict[Phase, Phase] = {"wait": "read", "publish": "create", "create": "reread", "reread": "write"}


@dataclass(frozen=True)
class Append:
    """One append: the action that is next, its arguments, and what was learnt on the way."""

    token: str
    phase: Phase = "read"
    slot: int = 0  # to be created, written, or just looked behind
    voids: tuple[int, ...] = ()
    document: bytes = b""
    event: Json | None = field(default=None, compare=False)
    stands: int = 0  # where the event stands if this slot does; 0: a mark on the way to a refusal
    own: tuple[int, ...] = ()  # complete events of this append: at most one of them can come to stand
    known: int = 0  # the highest slot that is known to exist
    then: Phase = "read"  # after withdraw


def advance(state: Append, seen: Any, decide: Decide) -> Append:
    """The append after its action, which saw: read, a Reading; create, whether this process created the slot;
    reread and look, the Found; the others nothing. Raises errors.Refused where the event or the log is too long."""
    if state.phase == "read":
        return _after_read(state, seen, decide)
    if state.phase == "withdraw":
        return replace(state, phase=state.then)
    if state.phase == "create":
        state = replace(state, known=state.slot)
    if (state.phase == "create" and not seen) or (state.phase == "reread" and not still_torn(state.voids, seen)):
        return replace(state, phase="withdraw", then="read")
    if state.phase == "write":
        return replace(state, phase="look", own=tuple(sorted({*state.own, state.stands} - {0})))
    if state.phase == "look":
        if stands(state.slot, seen):
            return replace(state, phase="withdraw", then="won" if state.stands else "read")
        return replace(state, phase="withdraw", then="read", known=state.slot + 1)
    return replace(state, phase=_NEXT[state.phase])


def _after_read(state: Append, reading: Reading, decide: Decide) -> Append:
    view = fold(reading)
    old = view.next <= state.known or set(view.torn) & set(state.own)
    if old or any(intent.slot in view.torn for intent in reading.intents):
        return replace(state, phase="wait")
    own = next((number for number in state.own if number in view.events), 0)
    event = view.events[own] if own else decide(list(view.events.values()))
    if own and settled(view):
        return replace(state, phase="look", slot=len(reading.slots), event=event, stands=own)
    if event is None and settled(view):
        return replace(state, phase="refused", event=None)
    if view.next > MAX_SLOTS:
        raise errors.Refused(f"the log is full: {MAX_SLOTS} events")
    slot = Slot(None if own else event, view.torn)
    return replace(
        state,
        phase="publish",
        slot=view.next,
        voids=view.torn,
        document=encode(view.next, slot, state.token),
        event=event,
        stands=own or (0 if event is None else view.next),
    )


# The three guards. Each is needed: without any one of them, two act (tests/core/test_slots.py).


def still_torn(voids: tuple[int, ...], seen: Found) -> bool:
    """Reread: what is to be made void is all there, and was not completed meanwhile."""
    return seen == (None,) * len(voids)


def stands(number: int, seen: Found) -> bool:
    """Look: the next slot is absent, or its creator saw this one complete. Who comes later sees that too."""
    return not seen or (seen[0] is not None and number not in seen[0].voids)


def settled(view: Fold) -> bool:
    """Read: no torn slot can void an event any more."""
    return not view.torn
