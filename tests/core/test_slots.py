"""The event log's protocol: the real machine, explored step by step over a filesystem in memory.

The exhaustive searches are bounded only by how many slots a log may have. What they cover:

Machine(faults=True)    any process may crash before any step, its last write or creation landing later or never; its
                        host removes its intents at any time; a person fences whom they like, as often as they like
Machine(faults=False)   no intents at all. For safety this is the larger world: intents only make processes wait, and
                        a crashed process is one that takes no more steps. Steps that nobody else sees are merged
old={...}               these actions may see every older state of every slot, each slot on its own
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox import errors
from mlbox.core import slots
from mlbox.core.slots import Append, Fold, Found, Intent, Json, Reading, Slot, Writer
from tests.core import slots_model

WRITER = Writer("gpu-1", "0c5e7a10-6f1b-4f5e-9d0e-6a4d3b2c1f00", 4711, "123456")
TOKEN = "0123456789abcdef"
TORN = b""

# ---- the fold ------------------------------------------------------------------------------------


def event(name: str, *voids: int) -> Slot:
    return Slot({"event": name}, voids)


MARK = Slot(None, (1,))


@pytest.mark.parametrize(
    ("found", "events", "torn"),
    [
        ((), {}, ()),
        ((event("a"), event("b")), {1: "a", 2: "b"}, ()),
        ((event("a"), None), {1: "a"}, (2,)),
        ((None, event("b")), {2: "b"}, (1,)),
        ((None, event("b", 1)), {2: "b"}, ()),
        ((event("a"), event("b", 1)), {2: "b"}, ()),  # completed after it was stepped over
        ((event("a"), event("b", 1), event("c", 2)), {1: "a", 3: "c"}, ()),  # a void slot voids nothing
        ((event("a"), event("b", 1), None), {2: "b"}, (3,)),
        ((None, None, event("c", 1, 2), event("d")), {3: "c", 4: "d"}, ()),
        ((None, MARK, event("c")), {3: "c"}, ()),
        ((event("a"), event("b", 1), Slot(None, (2,))), {1: "a"}, ()),
    ],
)
def test_fold(found: Found, events: dict[int, str], torn: tuple[int, ...]) -> None:
    assert slots.fold(Reading(found)) == Fold({n: {"event": e} for n, e in events.items()}, len(found) + 1, torn)


# ---- names and bytes -----------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_SLOTS = st.builds(Slot, st.none() | st.dictionaries(st.text(), _JSON), st.sampled_from([(), (1,), (2, 5)]))


@given(_SLOTS)
def test_a_slot_is_read_as_it_was_written_and_torn_wherever_it_is_cut(slot: Slot) -> None:
    content = slots.encode(6, slot, TOKEN)
    assert slots.decode(6, content) == slot
    assert [size for size in range(len(content)) if slots.decode(6, content[:size])] == []


@given(_SLOTS, st.data())
def test_a_slot_with_a_hole_is_torn(slot: Slot, data: st.DataObject) -> None:
    """Its blocks may reach the disk in any order, and what is not there yet reads as zeros."""
    content = slots.encode(6, slot, TOKEN)
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    assert slots.decode(6, content[:start] + b"\0" * (end - start) + content[end:]) is None


def _document(**changes: Any) -> bytes:
    return json.dumps({"slot": 3, "voids": [1], "event": {}, "end": "x", **changes}).encode() + b"\n"


def test_the_other_documents_of_this_test_are_wrong_in_one_way_only() -> None:
    assert slots.decode(3, _document()) == Slot({}, (1,))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b'"}\n',
        b'["}\n',
        b'["a","}\n"]',
        _document(slot=4),
        _document(slot="3"),
        _document(event=[]),
        _document(event="x"),
        _document(voids={}),
        _document(voids=[0]),
        _document(voids=[3]),
        _document(voids=[True]),
        _document(voids=["1"]),
        _document(more="x"),
        _document(end=1),
        _document().replace(b', "end": "x"', b""),
        _document() + b"\n",
        _document()[:-1],
        b"\xff" + _document(),
        b"[" * 50_000 + b'"}\n',
        _document(event={"x": "x" * slots.MAX_BYTES}),
    ],
)
def test_what_is_not_this_whole_slot_is_torn(content: bytes) -> None:
    assert slots.decode(3, content) is None


def test_the_largest_event_and_one_byte_more() -> None:
    spare = slots.MAX_BYTES - len(slots.encode(1, Slot({"a": ""}), TOKEN))
    assert slots.decode(1, slots.encode(1, Slot({"a": "x" * spare}), TOKEN)) is not None
    with pytest.raises(errors.Refused, match="too large"):
        slots.encode(1, Slot({"a": "x" * (spare + 1)}), TOKEN)


def test_nothing_that_json_lacks_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        slots.encode(1, Slot({"a": float("nan")}), TOKEN)


@pytest.mark.parametrize("boot", [WRITER.boot, ""])
@pytest.mark.parametrize("started", ["0", "123456", "1763999999.25"])
def test_an_intent_s_name(boot: str, started: str) -> None:
    intent = Intent(12, Writer("gpu_1-A", boot, 7, started), TOKEN)
    name = slots.intent_name(intent)
    assert name == f".000012.gpu_1-A.{boot}.7.{started}.{TOKEN}"
    assert slots.parse_intents([name, "000012", ".nfs0000001", "lost+found"]) == {intent}


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "000001",
        f"000001.a.b.1.2.{TOKEN}",
        f".1.a.b.1.2.{TOKEN}",
        f".0000001.a.b.1.2.{TOKEN}",
        f".000001..b.1.2.{TOKEN}",
        f".000001.a/..b.1.2.{TOKEN}",
        f".000001.a\n.b.1.2.{TOKEN}",
        f".000001.a.b.1.2.{TOKEN}\n",
        f".000001.a.b.-1.2.{TOKEN}",
        f".000001.a.b.1..{TOKEN}",
        f".000001.a.b.١.2.{TOKEN}",
        ".000001.a.b.1.2.TOKEN",
        f".000001.a.b.1.2.{TOKEN}0",
        f".000001.{'a' * 65}.b.1.2.{TOKEN}",
    ],
)
def test_a_name_that_names_no_intent(name: str) -> None:
    assert slots.parse_intent(name) is None


@pytest.mark.parametrize("host", ["", "a.b", "a/b", "a b", "ä", "a" * 65])
def test_a_writer_that_no_name_can_hold(host: str) -> None:
    with pytest.raises(ValueError, match="can't name an intent"):
        slots.intent_name(Intent(1, Writer(host, "b", 1, "2"), TOKEN))


# ---- single steps --------------------------------------------------------------------------------


def claim(events: Iterable[Json]) -> Json | None:
    return None if list(events) else {"event": "claimed"}


def test_a_log_that_is_full() -> None:
    full = Reading((event("a"),) * slots.MAX_SLOTS)
    with pytest.raises(errors.Refused, match="full"):
        slots.advance(Append(TOKEN), full, lambda events: {})
    assert slots.advance(Append(TOKEN), full, lambda events: None).phase == "refused"


@pytest.mark.parametrize(
    "seen",
    [(), (event("a"),), (event("a"), None)],
    ids=["without the slot that was lost", "without it, again", "without what was written"],
)
def test_a_reading_older_than_what_is_known_is_waited_out(seen: Found) -> None:
    state = Append(TOKEN, own=(2,), known=2)
    after = slots.advance(state, Reading(seen), claim)
    assert after.phase == "wait"
    assert slots.advance(after, None, claim) == state


@pytest.mark.parametrize("seen", [(), (Slot({}),), (None, Slot({}))], ids=["gone", "complete", "one complete"])
def test_nothing_is_made_void_unless_it_is_seen_torn(seen: Found) -> None:
    state = Append(TOKEN, "reread", slot=3, voids=(1, 2)[: max(1, len(seen))])
    after = slots.advance(state, seen, claim)
    assert (after.phase, after.then) == ("withdraw", "read")


# ---- every interleaving --------------------------------------------------------------------------

LIVE, DYING, DEAD = range(3)
STEP, FAULT, LONG = range(3)
FINAL = {"won", "refused", "dead"}
Files = tuple["tuple[int, ...]", "frozenset[tuple[int, int]]"]  # slots as document numbers, intents as slot, process
World = tuple[int, ...]  # the number of its files, and of each process
T = TypeVar("T", bound=Hashable)


class Numbers(Generic[T]):
    """Things as small numbers, which are quick to compare."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self.things: list[T] = []

    def of(self, thing: T) -> int:
        if thing not in self._numbers:
            self._numbers[thing] = len(self.things)
            self.things.append(thing)
        return self._numbers[thing]


class Machine:
    """Processes that each run `slots.advance` once, over the same files. What was done once is remembered."""

    def __init__(
        self,
        decides: Sequence[slots.Decide],
        longest: int,
        faults: bool = False,
        merged: bool = True,
        old: Collection[str] = (),
    ) -> None:
        self.decides, self.longest, self.faults, self.merged, self.old = decides, longest, faults, merged, old
        self.files: Numbers[Files] = Numbers()
        self.documents: Numbers[bytes] = Numbers()
        self.processes: Numbers[tuple[Append, int]] = Numbers()  # with its health
        self.documents.of(TORN)
        self._steps: dict[Hashable, list[tuple[int, int, int]]] = {}
        self._advanced: dict[Hashable, Append] = {}
        self._folds: dict[int, Fold] = {}
        self._ends: dict[World, World] = {}

    def start(self) -> World:
        processes = [(Append(f"{me:016x}"), LIVE) for me in range(len(self.decides))]
        return (self.files.of(((), frozenset())), *map(self.processes.of, processes))

    def moves(self, world: World) -> Iterator[World]:
        """All but those that make a log too long for this search."""
        return (after for kind, after in self._moves(world) if kind != LONG)

    def at_ease(self, world: World) -> World:
        """Without further faults: the first goes on as far as it can, then the next, until none can."""
        path = []
        while world not in self._ends:
            path.append(world)
            after = next((after for kind, after in self._moves(world) if kind != FAULT), None)
            if after is None:
                self._ends[world] = world
            else:
                world = after
        self._ends.update(dict.fromkeys(path, self._ends[world]))
        return self._ends[world]

    def _moves(self, world: World) -> Iterator[tuple[int, World]]:
        for me, process in enumerate(world[1:]):
            key = (me, process, world[0])
            if key not in self._steps:
                self._steps[key] = list(self._step(*key))
            for kind, files, after in self._steps[key]:
                yield kind, (files, *world[1 : me + 1], after, *world[me + 2 :])

    def state(self, world: World, me: int) -> Append:
        return self.processes.things[world[me + 1]][0]

    def phases(self, world: World) -> list[str]:
        found = [self.processes.things[number] for number in world[1:]]
        return [state.phase if health == LIVE else "dead" for state, health in found]

    def fold(self, world: World) -> Fold:
        if world[0] not in self._folds:
            documents, _ = self.files.things[world[0]]
            self._folds[world[0]] = slots.fold(Reading(self._found(enumerate(documents, 1))))
        return self._folds[world[0]]

    def _step(self, me: int, process: int, number: int) -> Iterator[tuple[int, int, int]]:
        (state, health), files = self.processes.things[process], self.files.things[number]
        others = frozenset(intent for intent in files[1] if intent[1] != me)
        if others != files[1] and (self.faults if health == LIVE else True):  # it is fenced; its host sweeps
            yield FAULT if health == LIVE else STEP, self.files.of((files[0], others)), process
        if health == DYING:
            yield FAULT, self.files.of(self._effect(me, state, files)), self.processes.of((state, DEAD))
        if health != LIVE or state.phase in ("won", "refused"):
            return
        if self.faults:
            yield FAULT, number, self.processes.of((state, DEAD if self.merged else DYING))
        for view in self._views(state, files):
            after, files_after = self._advance(me, state, view), self._effect(me, state, files)
            while self.merged and self._is_unseen(after):
                after, files_after = self._advance(me, after, ()), self._effect(me, after, files_after)
            if after.phase != "wait":
                kind = LONG if after.slot > self.longest else STEP
                yield kind, self.files.of(files_after), self.processes.of((after, LIVE))

    def _is_unseen(self, state: Append) -> bool:
        return state.phase in ("publish", "withdraw") or (state.phase == "reread" and not state.voids)

    def _effect(self, me: int, state: Append, files: Files) -> Files:
        documents, intents = files
        if state.phase == "publish" and self.faults:
            intents |= {(state.slot, me)}
        elif state.phase == "withdraw":
            intents -= {(state.slot, me)}
        elif state.phase == "create" and state.slot > len(documents):
            documents = (*documents, 0)
        elif state.phase == "write":
            document = self.documents.of(state.document)
            documents = (*documents[: state.slot - 1], document, *documents[state.slot :])
        return documents, intents

    def _views(self, state: Append, files: Files) -> Iterator[Any]:
        """What the action may see, with numbers for documents."""
        documents, intents = files
        held = frozenset(number for number, _ in intents)
        ages = [documents]
        if state.phase in self.old:
            older = [(0, document) if document else (0,) for document in documents]
            ages = [age for size in range(len(documents) + 1) for age in itertools.product(*older[:size])]
        for age in ages:
            numbered = tuple(enumerate(age, 1))
            if state.phase == "read":
                yield from {(numbered, held), (numbered, frozenset() if "read" in self.old else held)}
            elif state.phase == "create":
                yield state.slot > len(documents)
            elif state.phase == "reread":
                yield tuple(slot for slot in numbered if slot[0] in state.voids)
            elif state.phase == "look":
                yield numbered[state.slot : state.slot + 1]
            else:
                yield ()

    def _advance(self, me: int, state: Append, view: Any) -> Append:
        key = (me, state, view)
        if key not in self._advanced:
            seen = view
            if state.phase == "read":
                seen = Reading(self._found(view[0]), frozenset(Intent(slot, WRITER, TOKEN) for slot in view[1]))
            elif state.phase in ("reread", "look"):
                seen = self._found(view)
            self._advanced[key] = slots.advance(state, seen, self.decides[me])
        return self._advanced[key]

    def _found(self, numbered: Iterable[tuple[int, int]]) -> Found:
        return tuple(slots.decode(number, self.documents.things[document]) for number, document in numbered)


def explore(start: T, moves: Callable[[T], Iterable[T]], check: Callable[[T], str | None]) -> tuple[list[T], str]:
    """Every state that can be reached, breadth first, up to the first that is wrong; and what is wrong with it."""
    states, seen = [start], {start}
    for state in states:
        wrong = check(state)
        if wrong:
            return states, wrong
        for after in moves(state):
            if after not in seen:
                seen.add(after)
                states.append(after)
    return states, ""


def claims(processes: int) -> list[slots.Decide]:
    """Each wants the one claim."""

    def of(me: int) -> slots.Decide:
        return lambda events: None if events else {"by": me}

    return [of(me) for me in range(processes)]


def notes(processes: int) -> list[slots.Decide]:
    """Each appends one event, and in it what it was decided upon."""

    def of(me: int) -> slots.Decide:
        def decide(events: Sequence[Json]) -> Json | None:
            before = [event["by"] for event in events]
            return None if me in before else {"by": me, "after": before}

        return decide

    return [of(me) for me in range(processes)]


def one_acts(machine: Machine, world: World) -> str | None:
    """At most one has won, the log names it, and never do two claims stand."""
    won = [me for me, phase in enumerate(machine.phases(world)) if phase == "won"]
    if len(won) > 1:
        return "two act"
    stand = {number: event["by"] for number, event in machine.fold(world).events.items()}
    if won and stand != {machine.state(world, won[0]).stands: won[0]}:
        return f"{won[0]} acts, but in the log stands {stand}"
    return f"two claims stand: {stand}" if len(stand) > 1 else None


def in_order(machine: Machine, world: World) -> str | None:
    """What has won stands in the log, once, after exactly those events upon which it was decided."""
    stand = {event["by"]: (number, event) for number, event in machine.fold(world).events.items()}
    order = [event["by"] for event in machine.fold(world).events.values()]
    for me, phase in enumerate(machine.phases(world)):
        if phase == "won":
            number, event = stand.get(me, (0, {}))
            if number != machine.state(world, me).stands or order.count(me) != 1:
                return f"{me} has won, but in the log stand {order}"
            if event["after"] != order[: order.index(me)]:
                return f"{me} was decided upon {event['after']}, but in the log stand {order}"
        if phase == "refused" and me not in order:
            return f"{me} was refused without a reason"
    return None


def two_act(machine: Machine, world: World) -> str | None:
    return "two act" if machine.phases(world).count("won") > 1 else None


def search(machine: Machine, check: Callable[[Machine, World], str | None]) -> tuple[list[World], str]:
    return explore(machine.start(), machine.moves, lambda world: check(machine, world))


@pytest.mark.parametrize(
    ("decides", "check", "longest", "old", "states"),
    [
        (claims(2), one_acts, 6, ["read"], 28_804),
        (claims(3), one_acts, 5, [], 325_784),
        (claims(3), one_acts, 4, ["read"], 158_567),
        (notes(2), in_order, 6, ["read"], 26_158),
        (notes(3), in_order, 4, ["read"], 236_501),
    ],
    ids=["claims-2-old", "claims-3", "claims-3-old", "notes-2-old", "notes-3-old"],
)
def test_whatever_happens_one_acts_and_the_log_is_in_order(
    decides: list[slots.Decide],
    check: Callable[[Machine, World], str | None],
    longest: int,
    old: list[str],
    states: int,
) -> None:
    explored, wrong = search(Machine(decides, longest, old=old), check)
    assert wrong == ""
    assert len(explored) == states


class Searched(NamedTuple):
    machine: Machine
    worlds: list[World]
    wrong: str


@pytest.fixture(scope="module", params=[2, 3])
def searched(request: pytest.FixtureRequest) -> Searched:
    """Claims with every fault: two processes in every single step, three in those that another can notice."""
    longest = {2: 6, 3: 3}[request.param]
    machine = Machine(claims(request.param), longest, faults=True, merged=request.param == 3)
    return Searched(machine, *search(machine, one_acts))


def test_with_crashes_and_fences_one_acts(searched: Searched) -> None:
    assert searched.wrong == ""
    assert len(searched.worlds) == {2: 82_069, 3: 170_100}[len(searched.machine.decides)]


def test_nobody_waits_for_ever_and_the_living_act_on_what_stands(searched: Searched) -> None:
    """From every state on, if nothing more goes wrong."""
    machine = searched.machine
    for end in {machine.at_ease(world) for world in searched.worlds}:
        phases = machine.phases(end)
        assert FINAL.issuperset(phases)
        owners = [event["by"] for event in machine.fold(end).events.values()]
        assert set(phases) == {"dead"} or len(owners) == 1
        assert all(phases[owner] in ("won", "dead") for owner in owners)


def model_outcomes(processes: int, longest: int) -> set[tuple[Any, ...]]:
    """Who acted, whom the log names, and who is alive, where there is nothing left to do."""
    model = slots_model.Model(longest)
    states, wrong = explore(slots_model.start(processes), model.moves, _model_two_act)
    assert wrong == ""
    return {
        (min(state.acted, default=None), *slots_model.fold(state.slots)[0][:1], *(p.alive for p in state.processes))
        for state in states
        if all(process.step == "done" or not process.alive for process in state.processes)
    }


def test_machine_and_model_come_to_the_same_ends(searched: Searched) -> None:
    machine = searched.machine
    outcomes = set()
    for world in searched.worlds:
        phases = machine.phases(world)
        if FINAL.issuperset(phases):
            owners = [event["by"] for event in machine.fold(world).events.values()]
            outcomes.add((phases.index("won") if "won" in phases else None, *owners, *(p != "dead" for p in phases)))
    assert outcomes == model_outcomes(len(machine.decides), machine.longest)


def _model_two_act(state: slots_model.State) -> str | None:
    return "two act" if len(state.acted) > 1 else None


WITHOUT: dict[str, tuple[str, Callable[..., bool]]] = {
    "reread": ("still_torn", lambda voids, seen: True),
    "look": ("stands", lambda number, seen: True),
    "confirm": ("settled", lambda view: True),
}


@pytest.mark.parametrize("faults", [False, True], ids=["", "faults"])
@pytest.mark.parametrize("guard", sorted(slots_model.GUARDS))
def test_without_any_one_guard_two_act(guard: str, faults: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, *WITHOUT[guard])
    assert search(Machine(claims(2), 4, faults=faults), two_act)[1] == "two act"


@pytest.mark.parametrize("guard", sorted(slots_model.GUARDS))
def test_without_any_one_guard_two_act_in_the_model(guard: str) -> None:
    model = slots_model.Model(4, slots_model.GUARDS - {guard})
    assert explore(slots_model.start(2), model.moves, _model_two_act)[1] == "two act"


@pytest.mark.parametrize("phase", ["reread", "look"])
def test_where_what_must_be_new_is_old_two_act(phase: str) -> None:
    """Why mlbox/host/slots.py goes to such lengths to see the newest state there."""
    assert search(Machine(claims(2), 4, old=[phase]), two_act)[1] == "two act"
