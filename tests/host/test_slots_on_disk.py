"""The event log on disk: every call that fails, dies, or shows what is old; and real processes that race."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
import stat
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory import Direct, Killed, Remote, Share

from mlbox.core import slots as core
from mlbox.core.slots import Intent, Json, Reading, Slot, Writer
from mlbox.host.slots import Files, Log, Refused, Unsettled, Won

ADA = Writer("gpu-1", "boot-1", 100, "5000")
BOB = Writer("gpu-2", "boot-2", 200, "6000")
TOKEN = "0123456789abcdef"


@pytest.fixture
def ev(tmp_path: Path) -> Path:
    folder = tmp_path / "ev"
    folder.mkdir()
    return folder


def note(name: str) -> core.Decide:
    """An event that is legal once, and tells what was there before it."""

    def decide(events: Sequence[Json]) -> Json | None:
        before = [event["name"] for event in events]
        return None if name in before else {"name": name, "after": before}

    return decide


def events(log: Log) -> dict[int, str]:
    return {number: event["name"] for number, event in core.fold(log.read()).events.items()}


def publish(folder: Path, number: int, writer: Writer = BOB) -> Path:
    """An intent, as another process leaves it."""
    path = folder / core.intent_name(Intent(number, writer, TOKEN))
    path.touch()
    return path


class Impatient(Files):
    """Files of a process whose waits take no time."""

    def __init__(self, folder: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__(folder)
        self.slept: list[float] = []
        self.meanwhile = meanwhile

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.meanwhile()


# ---- one process ---------------------------------------------------------------------------------


def test_append_and_read(ev: Path) -> None:
    log = Log(ev)
    assert log.read() == Reading()
    assert log.append(note("a"), ADA) == Won(1, {"name": "a", "after": []})
    assert log.append(note("b"), BOB) == Won(2, {"name": "b", "after": ["a"]})
    assert log.append(note("a"), BOB) == Refused(({"name": "a", "after": []}, {"name": "b", "after": ["a"]}))
    assert log.read().slots == (Slot({"name": "a", "after": []}), Slot({"name": "b", "after": ["a"]}))
    assert sorted(os.listdir(ev)) == ["000001", "000002"]


def test_a_slot_is_one_line_of_json_that_everybody_may_read(ev: Path) -> None:
    Log(ev).append(note("ä"), ADA)
    (content,) = (ev / "000001").read_text().splitlines()
    document = json.loads(content)
    assert (document["slot"], document["event"], document["voids"]) == (1, {"name": "ä", "after": []}, [])
    assert stat.S_IMODE((ev / "000001").stat().st_mode) == 0o644 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_folder_that_is_not_there(ev: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Log(ev / "ev").append(note("a"), ADA)


@pytest.mark.parametrize("call", ["fstat", "fchmod", "fdopen"])
def test_a_slot_that_is_gone_once_it_is_open_is_not_there(ev: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """It was created by another host, and this one's mount has no more than its name."""
    (ev / "000001").touch()

    def gone(*_: Any, **__: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, gone)
        assert Files(ev).read("000001", fresh=True) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", gone)
        assert Files(ev).read("000001", fresh=False) == b""


def test_a_writer_that_no_name_can_hold_writes_nothing(ev: Path) -> None:
    with pytest.raises(ValueError, match="can't name"):
        Log(ev).append(note("a"), Writer("gpu/1", "b", 1, "2"))
    assert os.listdir(ev) == []


def test_a_torn_slot_without_an_intent_is_stepped_over(ev: Path) -> None:
    log = Log(ev)
    log.append(note("a"), ADA)
    (ev / "000002").touch()
    (ev / "000003").write_bytes((ev / "000001").read_bytes())
    assert log.append(note("b"), ADA) == Won(4, {"name": "b", "after": ["a"]})
    assert log.read().slots[3] == Slot({"name": "b", "after": ["a"]}, (2, 3))


def test_a_refusal_settles_a_torn_slot_first(ev: Path) -> None:
    log = Log(ev)
    log.append(note("a"), ADA)
    (ev / "000002").touch()
    assert log.append(note("a"), BOB) == Refused(({"name": "a", "after": []},))
    assert log.read().slots[1:] == (None, Slot(None, (2,)))


def _symlink(path: Path) -> None:
    path.with_name("target").write_bytes(core.encode(2, Slot({"name": "evil"}), TOKEN))
    path.symlink_to("target")


def _large(path: Path) -> None:
    path.write_bytes(core.encode(2, Slot({"name": "evil"}), TOKEN).replace(b":2", b":" + b" " * core.MAX_BYTES + b"2"))


@pytest.mark.parametrize(
    "prepare",
    [
        _symlink,
        _large,
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text("{}"),
    ],
    ids=["symlink", "large", "folder", "fifo", "dangling", "json"],
)
def test_what_is_no_slot_is_stepped_over_and_left_alone(ev: Path, prepare: Callable[[Path], None]) -> None:
    log = Log(ev)
    log.append(note("a"), ADA)
    prepare(ev / "000002")
    before = {path: path.lstat() for path in ev.iterdir() if not path.name.startswith("00000")}
    assert log.append(note("b"), ADA) == Won(3, {"name": "b", "after": ["a"]})
    assert {path: path.lstat() for path in before} == before
    assert events(log) == {1: "a", 3: "b"}


# ---- intents -------------------------------------------------------------------------------------


def test_a_slot_that_somebody_is_writing_is_waited_for(ev: Path) -> None:
    (ev / "000001").touch()
    intent = publish(ev, 1)
    files = Impatient(ev)
    with pytest.raises(Unsettled, match="process 200 on gpu-2"):
        Log(ev, files).append(note("b"), ADA)
    assert files.slept == []
    with pytest.raises(Unsettled):
        Log(ev, files).append(note("b"), ADA, patience=3)
    assert sum(files.slept) == pytest.approx(3)
    assert files.slept[0] < 0.01 and len(files.slept) < 20
    assert sorted(os.listdir(ev)) == [intent.name, "000001"]


def test_a_slot_that_is_completed_while_it_is_waited_for(ev: Path) -> None:
    (ev / "000001").touch()
    intent = publish(ev, 1)

    def complete() -> None:
        (ev / "000001").write_bytes(core.encode(1, Slot({"name": "a"}), TOKEN))
        intent.unlink(missing_ok=True)

    log = Log(ev, Impatient(ev, complete))
    assert log.append(note("b"), ADA, patience=1) == Won(2, {"name": "b", "after": ["a"]})


def test_an_intent_for_a_slot_that_is_not_torn_holds_nobody_up(ev: Path) -> None:
    log = Log(ev)
    log.append(note("a"), ADA)
    intents = {publish(ev, 1).name, publish(ev, 2).name}
    assert log.append(note("b"), ADA) == Won(2, {"name": "b", "after": ["a"]})
    assert set(os.listdir(ev)) == {"000001", "000002", *intents}


def test_what_an_earlier_append_of_this_process_could_not_remove_is_removed_by_the_next(ev: Path) -> None:
    (ev / "000001").touch()
    publish(ev, 1, ADA)
    assert isinstance(Log(ev).append(note("a"), ADA), Won)
    assert sorted(os.listdir(ev)) == ["000001", "000002"]


def test_sweep_and_fence(ev: Path) -> None:
    dead = Writer("gpu-1", "boot-1", 101, "1")
    ada, bob, gone = publish(ev, 1, ADA), publish(ev, 1, BOB), publish(ev, 2, dead)
    others = [ev / name for name in (".000001.gpu-2", "000001", f"{gone.name}.x")]
    for path in others:
        path.touch()
    log = Log(ev)
    assert log.sweep_intents(lambda writer: writer == dead) == 1
    assert (ada.exists(), bob.exists(), gone.exists()) == (True, True, False)
    assert log.fence("gpu-2") == 1
    assert (ada.exists(), bob.exists()) == (True, False)
    assert log.fence("gpu-2") == 0
    assert all(path.exists() for path in others)


# ---- the calls -----------------------------------------------------------------------------------


class Told(Files):
    """Files that tell `call` of every call, by name, before it is made; `call` may make it, or another, or raise."""

    def __init__(self, folder: Path, call: Callable[[str, Callable[[], Any]], Any]) -> None:
        super().__init__(folder)
        self.read = self._told_read(self.read, call)  # type: ignore[method-assign]
        for name in ("names", "create", "write", "sync", "close", "sync_folder", "unlink", "sleep"):
            setattr(self, name, self._told(name, getattr(self, name), call))

    def _told(self, name: str, method: Callable[..., Any], call: Callable[[str, Callable[[], Any]], Any]) -> Any:
        return lambda *arguments: call(name, lambda: method(*arguments))

    def _told_read(self, method: Callable[..., Any], call: Callable[[str, Callable[[], Any]], Any]) -> Any:
        return lambda name, fresh: call("ask" if fresh else "read", lambda: method(name, fresh))


def _calls(folder: Path) -> list[str]:
    """The names of the calls of an append to the log in `folder`."""
    made: list[str] = []

    def call(name: str, do: Callable[[], Any]) -> Any:
        made.append(name)
        return do()

    assert isinstance(Log(folder, Told(folder, call)).append(note("a"), ADA), Won)
    return made


def _empty(folder: Path) -> None:
    """A log without a slot."""


def _torn(folder: Path) -> None:
    """A log of two events whose last slot is torn."""
    Log(folder).append(note("x"), BOB)
    Log(folder).append(note("y"), BOB)
    (folder / "000003").touch()


def test_the_order_of_the_calls(ev: Path) -> None:
    """The intent is safe before the slot is there, and what is made void is read again between create and write."""
    _torn(ev)
    assert _calls(ev) == [
        *("names", "read", "read", "read", "read", "names", "ask"),
        *("create", "write", "sync", "close"),  # the intent
        *("create", "names", "ask", "write", "sync", "close", "sync_folder"),
        *("names", "read", "unlink"),
    ]


Start = Callable[[Path], None]
starts = pytest.mark.parametrize("start", [_empty, _torn], ids=["empty", "torn"])


def _fail(number: int, sticky: bool, how: Callable[[str, Callable[[], Any]], Any]) -> Callable[..., Any]:
    """Let call `number` of an append end as `how` says, and if sticky all later ones."""
    count = itertools.count()

    def call(name: str, do: Callable[[], Any]) -> Any:
        now = next(count)
        return how(name, do) if now == number or (sticky and now > number) else do()

    return call


def _before(code: int) -> Callable[[str, Callable[[], Any]], Any]:
    def fail(name: str, do: Callable[[], Any]) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def _after(code: int) -> Callable[[str, Callable[[], Any]], Any]:
    """Its reply is lost: it was done, and is said to have failed."""

    def fail(name: str, do: Callable[[], Any]) -> Any:
        do()
        raise OSError(code, os.strerror(code))

    return fail


def check_after_one(folder: Path, won: Won | None, dead: Writer = ADA) -> None:
    """An append of `a` won, or it isn't known; whatever it left, others go on, and the log says what was said."""
    log = Log(folder)
    log.sweep_intents(lambda writer: writer == dead)
    after = log.append(note("b"), BOB)
    assert isinstance(after, Won)
    order = list(events(log).values())
    assert order.count("a") == 1 if won else order.count("a") <= 1
    assert after.event["after"] == order[: order.index("b")]
    assert won is None or events(log)[won.slot] == "a"
    again = log.append(note("a"), ADA)
    assert isinstance(again, Refused) == ("a" in order)
    assert not any(name.startswith(".") for name in os.listdir(folder))


@starts
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize(
    "how",
    [_before(errno.EIO), _before(errno.ENOSPC), _before(errno.ESTALE), _after(errno.EIO), _after(errno.EEXIST)],
    ids=["EIO", "ENOSPC", "ESTALE", "done, EIO", "done, EEXIST"],
)
def test_an_error_at_each_call(ev: Path, start: Start, sticky: bool, how: Callable[..., Any]) -> None:
    total = len(_calls(_made(ev / "count", start)))
    for number in range(total + 1):
        folder = _made(ev / str(number), start)
        won = None
        try:
            result = Log(folder, Told(folder, _fail(number, sticky, how))).append(note("a"), ADA)
            assert isinstance(result, Won)
            won = result
        except OSError:
            assert number < total
        check_after_one(folder, won)


class Full(Files):
    """A disk that becomes full in the middle of a write."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder)
        self.left = number

    def write(self, descriptor: int, content: bytes) -> int:
        self.left -= 1
        return super().write(descriptor, content if self.left >= 0 else content[:9])


@starts
def test_a_write_that_ends_early(ev: Path, start: Start) -> None:
    for number in range(2):
        folder = _made(ev / str(number), start)
        with pytest.raises(OSError, match="No space"):
            Log(folder, Full(folder, number)).append(note("a"), ADA)
        check_after_one(folder, None)
        assert "a" not in list(events(Log(folder)).values())[:-1]


@starts
def test_a_kill_at_each_call(ev: Path, start: Start) -> None:
    """SIGKILL, in a process of its own, before its first call, then before its second, until it lives."""
    for number in itertools.count():
        folder = _made(ev / str(number), start)
        call = _fail(number, False, lambda name, do: os.kill(os.getpid(), signal.SIGKILL))
        child = _forked(lambda: Log(folder, Told(folder, call)).append(note("a"), _myself()))  # noqa: B023
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        won = Won(1 if start is _empty else 4, {}) if status == 0 else None
        check_after_one(folder, won, Writer("gpu-1", "boot-1", child, "1"))
        if won:
            break
    assert number == len(_calls(_made(ev / "count", start)))


@pytest.mark.parametrize("is_there", [True, False])
def test_permission_denied_is_how_sshfs_says_that_a_name_exists(ev: Path, is_there: bool) -> None:
    creates = itertools.count()

    def call(name: str, do: Callable[[], Any]) -> Any:
        if name == "create" and next(creates) == 1:  # the first is the intent's
            if is_there:
                (ev / "000001").touch()
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return do()

    log = Log(ev, Told(ev, call))
    if is_there:
        assert log.append(note("a"), ADA) == Won(2, {"name": "a", "after": []})
    else:
        with pytest.raises(PermissionError):
            log.append(note("a"), ADA)
    assert not any(name.startswith(".") for name in os.listdir(ev))


# ---- many processes ------------------------------------------------------------------------------


def _forked(work: Callable[[], object]) -> int:
    """A process that does this, and nothing of what pytest would do after it."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def _myself() -> Writer:
    return Writer("gpu-1", "boot-1", os.getpid(), "1")


@pytest.mark.parametrize(("processes", "fenced"), [(8, False), (4, True)], ids=["8", "4 and one who fences them"])
def test_each_slot_has_one_winner(ev: Path, processes: int, fenced: bool) -> None:
    """All want each of ten slots of thirty logs. The one who fences removes intents as fast as he can."""
    folders = [_made(ev / str(number), _empty) for number in range(30)]

    def contend(me: int) -> None:
        with open(ev / f"won.{me}", "w") as won:
            for folder, turn in itertools.product(folders, range(10)):

                def decide(events: Sequence[Json], turn: int = turn) -> Json | None:
                    return {"turn": turn, "by": me} if len(events) == turn else None

                result = Log(folder, Unsynced(folder)).append(decide, _myself(), patience=30)
                if isinstance(result, Won):
                    print(folder.name, turn, file=won)

    def fence() -> None:
        while True:
            for folder in folders:
                Log(folder).fence("gpu-1")

    contenders = [_forked(partial(contend, me)) for me in range(processes)]
    fencer = _forked(fence) if fenced else 0
    assert {os.waitpid(child, 0)[1] for child in contenders} == {0}
    if fencer:
        os.kill(fencer, signal.SIGKILL)
        os.waitpid(fencer, 0)
    wins = {me: (ev / f"won.{me}").read_text().splitlines() for me in range(processes)}
    assert sorted(itertools.chain(*wins.values())) == sorted(f"{f.name} {turn}" for f in folders for turn in range(10))
    for folder in folders:
        view = core.fold(Log(folder).read())
        assert [event["turn"] for event in view.events.values()] == list(range(10))
        assert all(f"{folder.name} {event['turn']}" in wins[event["by"]] for event in view.events.values())


class Unsynced(Files):
    """What others see does not depend on the disk, and is quicker without."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_folder(self) -> None:
        pass


def _made(folder: Path, start: Start) -> Path:
    folder.mkdir()
    start(folder)
    return folder


# ---- a filesystem in memory ----------------------------------------------------------------------


class Process:
    """One append, in a thread that runs only while `step` waits for it."""

    def __init__(self, share: Share, writer: Writer, decide: core.Decide) -> None:
        self.writer, self.files = writer, Remote(share)
        self.result: Won | Refused | None = None
        self.is_over = False
        self._thread = threading.Thread(target=self._run, args=(decide,), daemon=True)
        self._thread.start()
        self.files.theirs.acquire()

    def _run(self, decide: core.Decide) -> None:
        try:
            self.result = Log(Path("ev"), self.files).append(decide, self.writer, patience=math.inf)
        except (OSError, Killed):
            pass
        finally:
            self.is_over = True
            self.files.theirs.release()

    def step(self, how: str = "well", age: int = 0) -> None:
        if not self.is_over:
            self.files.how, self.files.age = how, age
            self.files.mine.release()
            self.files.theirs.acquire()

    def go_on(self, stops: Collection[str], age: int) -> None:
        """Up to the next call of one of these names. All that is seen meanwhile may be that old."""
        self.step(age=age)
        while not self.is_over and self.files.next not in stops:
            self.step(age=age)

    def kill(self, how: str) -> None:
        while not self.is_over:
            self.step(how)
            how = "dead"


def job(kind: str, me: int) -> core.Decide:
    """The events of a job: claimed, then finished by who claimed it, or lost and claimed again."""

    def decide(events: Sequence[Json]) -> Json | None:
        last: Json = events[-1] if events else {"event": "lost", "attempt": 0}
        if kind == "claimed" and last["event"] == "lost":
            return {"event": "claimed", "attempt": last["attempt"] + 1, "by": me}
        if kind in ("finished", "lost") and last["event"] == "claimed":
            return {"event": kind, "attempt": last["attempt"], "by": me}
        return None

    return decide


def is_legal(events: Sequence[Json]) -> bool:
    return all(job(event["event"], event["by"])(events[:number]) == event for number, event in enumerate(events))


STOPS = ["create", "write", "names", "read", "unlink"]


@pytest.mark.parametrize("age", [0, 9])
@pytest.mark.parametrize("has_old_listings", [True, False], ids=["as sshfs", "as NFS"])
def test_two_processes_that_interrupt_each_other(has_old_listings: bool, age: int) -> None:
    """All orders in which the first is interrupted twice and the second once, while neither sees an intent.

    One of the three guards gone, or one of the two readings that must be new no longer so, and two act.
    """
    for turns in itertools.product(range(8), repeat=3):
        share = Share()
        share.has_old_listings, share.hides_intents = has_old_listings, True
        both = [Process(share, Writer(f"host-{me}", "boot", me, "1"), job("claimed", me)) for me in range(2)]
        for number, stops in enumerate((*turns, 40, 40, 99, 99)):
            for _ in range(stops):
                both[number % 2].go_on(STOPS, age if number < 5 else 0)  # a mount is not out of date for ever
        won = {me: process.result for me, process in enumerate(both) if isinstance(process.result, Won)}
        stand = core.fold(Log(Path("ev"), Direct(share)).read()).events
        assert stand == {result.slot: {"event": "claimed", "attempt": 1, "by": me} for me, result in won.items()}, turns
        assert len(won) == 1 and {type(process.result) for process in both} == {Won, Refused}, turns


class Sharing(RuleBasedStateMachine):
    """Processes on three hosts append to one log, over a share that loses replies and shows what is old."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.acted: dict[int, Json] = {}
        self.share = Share()
        self.log = Log(Path("ev"), Direct(self.share))

    @initialize(has_old_listings=st.booleans(), hides_intents=st.booleans())
    def mount(self, has_old_listings: bool, hides_intents: bool) -> None:
        self.share.has_old_listings, self.share.hides_intents = has_old_listings, hides_intents
        self.start("claimed", 0)
        self.start("claimed", 1)

    @precondition(lambda self: len(self.living()) < 4)
    @rule(kind=st.sampled_from(["claimed", "claimed", "lost", "finished"]), host=st.integers(0, 2))
    def start(self, kind: str, host: int) -> None:
        me = len(self.processes)
        self.processes.append(Process(self.share, Writer(f"host-{host}", "boot", me, "1"), job(kind, me)))

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, 3), until=st.sampled_from(STOPS), age=st.sampled_from([0, 0, 1, 2, 9]))
    def go_on(self, who: int, until: str, age: int) -> None:
        """Up to the next call of that name; all that it sees meanwhile may be that old."""
        process = self.one(who)
        for _ in range(40):
            self.advance(process, age=age)
            if process.files.next == until:
                break

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, 3), how=st.sampled_from(["error", "lost"]))
    def fail(self, who: int, how: str) -> None:
        self.advance(self.one(who), how)

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, 3), how=st.sampled_from(["dead", "late"]))
    def crash(self, who: int, how: str) -> None:
        self.one(who).kill(how)

    @rule(host=st.integers(0, 2))
    def sweep(self, host: int) -> None:
        dead = {process.writer for process in self.processes if process.is_over}
        self.log.sweep_intents(lambda writer: writer in dead and writer.host == f"host-{host}")

    @rule(host=st.integers(0, 2))
    def fence(self, host: int) -> None:
        self.log.fence(f"host-{host}")

    def one(self, who: int) -> Process:
        living = self.living()
        return living[who % len(living)]

    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.is_over]

    def advance(self, process: Process, how: str = "well", age: int = 0) -> None:
        process.step(how, age)
        if isinstance(process.result, Won):
            self.acted[process.result.slot] = process.result.event

    @invariant()
    def what_was_acted_on_stands_and_is_legal(self) -> None:
        reading = self.log.read()
        view = core.fold(reading)
        assert {number: view.events.get(number) for number in self.acted} == self.acted
        claimed = [event["attempt"] for event in self.acted.values() if event["event"] == "claimed"]
        assert len(claimed) == len(set(claimed))
        if not view.torn:
            assert is_legal(list(view.events.values()))

    def teardown(self) -> None:
        """Whatever happened, all that are alive come to an end."""
        for _ in range(1000):
            if not self.living():
                break
            for host in range(3):
                self.sweep(host)
            for process in self.living():
                self.advance(process)
        left = self.living()
        for process in left:
            process.kill("dead")
        assert left == []
        self.what_was_acted_on_stands_and_is_legal()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=120, stateful_step_count=40, suppress_health_check=list(HealthCheck))
