"""Tunnels over links that need no ssh."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from queuebox import until

from mlbox.client.tunnels import Link, LocalLink, Service, SshLink, Timing, TunnelEvent, Tunnels
from mlbox.client.tunnels import held as held_module
from mlbox.client.tunnels import listener as listener_module
from mlbox.client.tunnels import supervisor as supervisor_module
from mlbox.client.tunnels import tunnels as tunnels_module
from mlbox.client.tunnels.events import Backoff
from mlbox.client.tunnels.listener import Listener, Port
from mlbox.client.tunnels.probe import Prober, Stranger, ping
from mlbox.errors import MlboxError
from mlbox.guest import control
from tests.client.kit import CALM, ECHO, KEY, Events, HalfEnded, Host, Opened, Server, echo, squat

FAST = dataclasses.replace(CALM, probe_timeout=0.3)


def test_a_local_session(host: Host) -> None:
    with Opened(lambda n: LocalLink(host.paths())) as opened:
        assert opened.tunnels.wait_up(20)
        with opened.connect() as sock:
            assert opened.echoes(sock)
        assert opened.events.wait("up").generation == 1
        assert opened.tunnels.moved == {}
    assert opened.events.seen[-1].kind == "closed"


def test_localhost_may_be_ipv6(host: Host) -> None:
    with Opened(lambda n: LocalLink(host.paths())) as opened:
        try:
            sock = socket.create_connection(("::1", opened.tunnels.port("echo")), 20)
        except OSError:
            pytest.skip("no IPv6 loopback here")
        with sock:
            assert opened.echoes(sock)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_taken_port_gives_the_next_one(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        taken = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"no {address} here")
    with taken:
        wanted = taken.getsockname()[1]
        tunnels = Tunnels([Service("echo", wanted)], lambda n: LocalLink({"guest": "/x"}), Events(), KEY)
        tunnels.open()
        try:
            assert wanted < tunnels.port("echo") <= wanted + 100
            assert tunnels.moved == {"echo": (wanted, tunnels.port("echo"))}
        finally:
            tunnels.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_mac_that_would_share_a_port_is_not_asked_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a loopback address can be bound beside this user's own program on all addresses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        taken = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"no {address} here")
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(listener_module, "_listen", lambda *where: socket.create_server(("127.0.0.1", 0)))
    with taken:
        number = taken.getsockname()[1]
        assert listener_module._bind(number) == []
    again = listener_module._bind(number)
    assert len(again) == 2
    for sock in again:
        sock.close()


def test_ports_are_on_loopback_only() -> None:
    port = Port(Service("echo", 0))
    assert {sock.getsockname()[0] for sock in port.sockets} <= {"127.0.0.1", "::1"}
    assert {sock.getsockname()[1] for sock in port.sockets} == {port.number}
    port.close()


def test_a_port_that_leaves_before_it_was_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlbox.client.tunnels.listener.STOP", 0.0)
    first, second, served = Port(Service("first", 0)), Port(Service("second", 0)), threading.Event()
    listener = Listener([first], lambda service, connection: served.set())
    listener.add(second)
    listener.remove(second)
    listener.start()
    with socket.create_connection(("127.0.0.1", first.number), 20):
        assert served.wait(20)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", second.number), 20)
    listener.close()


@pytest.mark.parametrize(("platform", "most"), [("linux", 4096), ("darwin", 1000)])
def test_as_many_files_as_its_ssh_can_watch(platform: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    listener_module.allow_many_files()
    assert raised == [(most, resource.RLIM_INFINITY)]


def test_its_end_waits_for_no_client_that_said_all_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", HalfEnded)
    port, begun = Port(Service("first", 0)), threading.Event()

    def serve(service: Service, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(bytes(1 << 16))
                begun.set()

    listener = Listener([port], serve)
    listener.start()
    with socket.create_connection(("127.0.0.1", port.number), 20) as client:
        client.shutdown(socket.SHUT_WR)
        assert begun.wait(20)
        closing = threading.Thread(target=listener.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def test_two_services_that_want_one_port(host: Host) -> None:
    free = Port(ECHO)
    free.close()
    services = Service("echo", free.number), Service("guest", free.number)
    with Opened(lambda n: LocalLink(host.paths()), *services) as opened:
        assert opened.tunnels.port("echo") != opened.tunnels.port("guest")


def test_a_gated_service(host: Host) -> None:
    with Opened(lambda n: LocalLink(host.paths()), Service("echo", 0, gated=True)) as opened:
        with opened.connect() as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            stranger.shutdown(socket.SHUT_WR)
            assert b" 403 " in stranger.recv(1000)
        with opened.connect() as friend:
            request = b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: mlbox-kind-otter=s3cret\r\n\r\nbody"
            assert opened.echoes(friend, request)
            assert opened.echoes(friend, b"anything goes now")


def test_a_connection_waits_until_the_link_answers(host: Host) -> None:
    host.answering.clear()
    with Opened(lambda n: LocalLink(host.paths())) as opened, opened.connect() as sock:
        sock.sendall(b"early")
        assert not opened.tunnels.wait_up(0)
        host.answering.set()
        assert sock.recv(5) == b"early"


def test_a_connection_does_not_wait_for_ever(host: Host) -> None:
    host.answering.clear()
    with (
        Opened(lambda n: LocalLink(host.paths()), wait=0.05, timing=FAST) as opened,
        opened.connect() as sock,
    ):
        assert sock.recv(1) == b""


def test_close_ends_connections_that_wait_and_that_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(sock: socket.socket, *halves: int) -> None:
        for half in halves:
            real(sock, half)
            time.sleep(0.05)  # a busy machine's: the gate hears the end of one half, and would refuse

    real = vars(listener_module)["shutdown"]
    monkeypatch.setattr("mlbox.client.tunnels.listener.shutdown", slowly)
    opened = Opened(lambda n: LocalLink(host.paths()), Service("echo", 0), Service("late", 0, gated=True))
    with opened:
        running, gated = opened.connect(), opened.connect("late")
        assert opened.echoes(running)
        gated.sendall(b"GET")
    with running, gated:
        assert running.recv(1) == b""
        with contextlib.suppress(ConnectionError):
            assert gated.recv(1000) == b""  # at once, not after a refusal


def test_close_waits_for_who_has_just_let_go_of_a_connection(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, real = threading.Event(), Listener._forget

    def slowly(self: Listener, connection: socket.socket) -> None:
        real(self, connection)
        gone.set()
        time.sleep(0.2)  # a busy machine's: Opened finds a thread that still lives

    monkeypatch.setattr(Listener, "_forget", slowly)
    with Opened(lambda n: LocalLink(host.paths())) as opened:
        with opened.connect() as sock:
            assert opened.echoes(sock)
        assert gone.wait(20)


def test_from_a_new_start_on_nothing_goes_where_the_session_was(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the thread that ends its links has read of it."""
    with Opened(lambda n: LocalLink(host.paths())) as opened:
        assert opened.tunnels.wait_up(20)
        words: list[object] = []
        with monkeypatch.context() as unread:
            unread.setattr(opened.tunnels._supervisor._inbox, "put", words.append)
            opened.tunnels.anew(KEY, "it moved")
        assert any("anew" in str(word) for word in words)
        opened.tunnels._supervisor._route(1)  # by a word that is older
        assert not opened.tunnels.wait_up(0)


def test_silence_and_its_end(host: Host) -> None:
    with Opened(lambda n: LocalLink(host.paths()), timing=FAST) as opened:
        opened.events.wait("up")
        with opened.connect() as old:
            assert opened.echoes(old)
            host.answering.clear()
            lost = opened.events.wait("lost")
            assert lost.reason == "no answer for 0.3 s"
            assert opened.echoes(old)
            host.answering.set()
            back = opened.events.wait("back")
            assert back.downtime >= 0.3
            assert opened.echoes(old)


@pytest.mark.parametrize("asleep", [(3600.0, 3600.0), (0.0, 3600.0)])  # stopped, and with its lid closed
def test_what_is_new_after_a_sleep_waits_for_an_answer(
    host: Host, asleep: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the link was before it is no more known; what goes there would be cut with it."""
    answering, asked = threading.Event(), threading.Event()
    answering.set()

    def probe(path: str, timeout: float, first: bool) -> bool:
        if answering.is_set():
            return True
        asked.set()
        return answering.wait(20)

    with Opened(lambda n: LocalLink(host.paths()), probe=probe) as opened:
        opened.events.wait("up")
        answering.clear()
        assert asked.wait(20)
        now = time.monotonic(), time.time()
        monkeypatch.setattr(held_module, "_clocks", lambda: (now[0] + asleep[0], now[1] + asleep[1]))
        assert not opened.tunnels.wait_up(0.1)
        with opened.connect() as sock:
            answering.set()
            assert opened.echoes(sock)
        assert opened.events.of("lost") == []


@pytest.mark.parametrize("asleep", [(3600.0, 3600.0), (0.0, 3600.0)])  # stopped, and with its lid closed
def test_after_a_sleep_pages_are_to_connect_anew(
    host: Host, asleep: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they know that they have to, what is typed there may go into a dead link. Nothing else is cut for it."""
    page = Service("page", 0, page=True)
    paths = {**host.paths(), "page": host.paths()["echo"]}
    with Opened(lambda n: LocalLink(paths), page, ECHO) as opened:
        with opened.connect("page") as sock, opened.connect() as other:
            assert opened.echoes(sock) and opened.echoes(other)
            now = time.monotonic(), time.time()
            monkeypatch.setattr(held_module, "_clocks", lambda: (now[0] + asleep[0], now[1] + asleep[1]))
            assert sock.recv(1) == b""
            assert opened.echoes(other)
            with opened.connect("page") as again:
                assert opened.echoes(again)
            assert opened.echoes(other)
        assert opened.events.of("lost") == []


def test_a_page_that_came_after_the_sleep_stays(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a probe was under way all that time, and answers."""
    page, asked, answering = Service("echo", 0, page=True), threading.Event(), threading.Event()
    connected, rounds = threading.Event(), threading.Semaphore(0)
    answering.set()

    def probe(path: str, timeout: float, first: bool) -> bool:
        if not answering.is_set():
            asked.set()
        if connected.is_set():
            rounds.release()
        return answering.wait(20)

    with Opened(lambda n: LocalLink(host.paths()), page, probe=probe) as opened:
        opened.events.wait("up")
        answering.clear()
        assert asked.wait(20)
        now = time.monotonic(), time.time()
        monkeypatch.setattr(held_module, "_clocks", lambda: (now[0] + 3600.0, now[1] + 3600.0))
        with opened.connect() as sock:
            answering.set()
            assert opened.echoes(sock)
            connected.set()
            assert rounds.acquire(timeout=20) and rounds.acquire(timeout=20)
            assert opened.echoes(sock)


def test_what_no_ssh_has_taken_before_the_sleep_waits_for_an_answer_too(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cut, answering, early = threading.Event(), threading.Event(), threading.Event(), list[bool]()
    answering.set()

    class Offering(LocalLink):
        def handover(self, service: str) -> tuple[str, str] | None:
            return None if cut.is_set() else ("control", "target")

    class Unanswered(contextlib.ExitStack):
        def __init__(self, *words: object) -> None:
            super().__init__()

        def run(self) -> bool:
            begun.set()
            assert cut.wait(20)
            return False

        def cut(self) -> None:
            cut.set()

    def come(connection: socket.socket) -> None:
        early.append(not answering.is_set())
        echo(connection)

    host.servers["echo"].close()
    host.servers["echo"] = Server(host.folder / "echo.sock", come)
    monkeypatch.setattr(tunnels_module, "Handover", Unanswered)
    timing = dataclasses.replace(CALM, probe_every=1000.0)
    page, paths = Service("page", 0, page=True), {**host.paths(), "page": host.paths()["echo"]}
    with Opened(lambda n: Offering(paths), page, probe=lambda *of: answering.wait(20), timing=timing) as opened:
        opened.events.wait("up")
        with opened.connect("page") as sock:
            assert begun.wait(20)
            answering.clear()
            now = time.monotonic(), time.time()
            monkeypatch.setattr(held_module, "_clocks", lambda: (now[0] + 3600.0, now[1] + 3600.0))
            opened.tunnels.hurry()
            assert cut.wait(20)
            time.sleep(0.2)  # in which it would be there
            answering.set()
            assert opened.echoes(sock) and early == [False]


def test_after_a_sleep_the_link_is_asked_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with Opened(lambda n: LocalLink(host.paths()), timing=dataclasses.replace(CALM, probe_every=1000.0)) as opened:
        opened.events.wait("up")
        now = time.monotonic(), time.time()
        monkeypatch.setattr(held_module, "_clocks", lambda: (now[0], now[1] + 3600.0))
        assert opened.tunnels.wait_up(20)


@pytest.mark.parametrize(
    ("said", "stale"), [("stranger", True), ("silent", True), ("refused", False), ("answered", False)]
)
def test_what_ends_the_wait_after_a_sleep(host: Host, said: str, stale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a stranger's answer, before it is told that it is one."""
    told: list[str] = []
    held = held_module.Held(1, LocalLink(host.paths()), ping, "guest", CALM, lambda what, detail: told.append(detail))
    held._on_answer("answered")
    now = time.monotonic(), time.time()
    monkeypatch.setattr(held_module, "_clocks", lambda: (now[0], now[1] + 3600.0))
    assert held.stale()
    held._on_answer(said)
    assert held.stale() is stale and told == ["answered", said]


def test_a_refusal_is_told_at_once_however_rarely_the_guest_is_asked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = threading.Event()
    there.set()

    def probe(path: str, timeout: float, first: bool) -> bool:
        if there.is_set():
            return True
        raise ConnectionResetError

    with Opened(lambda n: LocalLink(host.paths()), probe=probe) as opened:
        opened.events.wait("up")
        there.clear()
        opened.events.wait("refused")
        held = opened.tunnels._supervisor._links[1]
        held._prober.stop()
        now = time.monotonic(), time.time()
        monkeypatch.setattr(held_module, "_clocks", lambda: (now[0] + 15.0, now[1] + 3600.0))
        assert opened.tunnels.wait_up(20)


def test_nobody_behind_the_link(host: Host) -> None:
    host.servers["guest"].close()
    with Opened(lambda n: LocalLink(host.paths())) as opened:
        assert opened.events.wait("refused").generation == 1
        assert not opened.tunnels.wait_up(0)
        opened.tunnels.close("the session has ended")
    assert opened.events.seen[-1] == TunnelEvent("closed", 1, "the session has ended")
    assert opened.events.of("retrying") == []


def test_the_caller_ends_it_from_its_callback(host: Host) -> None:
    note = Events()

    def on_event(event: TunnelEvent) -> None:
        if event.kind == "refused":
            tunnels.close("gone")
        note(event)

    deaf = Service("deaf", 0)
    tunnels = Tunnels([deaf], lambda n: LocalLink(host.paths()), on_event, KEY, timing=CALM)
    tunnels.open()
    note.wait("up")
    with socket.create_connection(("127.0.0.1", tunnels.port("deaf")), 20) as sock:
        assert sock.recv(5) == b"hello"
        host.servers["guest"].close()
        assert note.wait("closed").reason == "gone"
        assert sock.recv(1) == b""
    tunnels.close()


def test_a_broken_callback_does_not_stop_the_tunnel(host: Host) -> None:
    def on_event(event: TunnelEvent) -> None:
        raise RuntimeError("a bug")

    tunnels = Tunnels([ECHO], lambda n: LocalLink(host.paths()), on_event, KEY, timing=CALM)
    tunnels.open()
    assert tunnels.wait_up(20)
    tunnels.close()


class Counted(LocalLink):
    """Counts how many of them are starting at once; dies if told so."""

    starting = 0
    most = 0

    def __init__(self, host: Host, fails: bool) -> None:
        super().__init__(host.paths())
        self._fails = fails
        self._text = ""

    def start(self, ended: Callable[[], None]) -> None:
        Counted.starting += 1
        Counted.most = max(Counted.most, Counted.starting)
        if self._fails:
            self._text = "first line\nconnect to host: No route to host"
            ended()

    def stderr(self) -> str:
        return self._text

    def close(self) -> None:
        Counted.starting -= 1


def test_attempts_go_on_one_at_a_time(host: Host) -> None:
    host.answering.clear()
    Counted.starting = Counted.most = 0
    with Opened(lambda n: Counted(host, fails=n < 5)) as opened:
        for _ in range(20):
            opened.tunnels.reconnect()
        assert opened.events.wait("retrying", 4).reason == "connect to host: No route to host"
        host.answering.set()
        assert opened.events.wait("up").generation == 5
    assert Counted.most == 1
    assert Counted.starting == 0


def test_a_link_that_cannot_be_made_is_an_attempt(host: Host) -> None:
    def factory(generation: int) -> Link:
        if generation == 1:
            raise MlboxError("no folder")
        if generation == 2:
            return SshLink(("/nonexistent/ssh",), "h", {"guest": "/r"}, host.folder / "l", generation)
        return LocalLink(host.paths())

    with Opened(factory) as opened:
        assert opened.events.wait("up").generation == 3
    reasons = [event.reason for event in opened.events.of("retrying")]
    assert reasons == ["no folder", "No program /nonexistent/ssh here."]


class Mortal(LocalLink):
    """Ends when it is told to."""

    def start(self, ended: Callable[[], None]) -> None:
        self.end = ended


def test_what_was_up_for_long_is_dialled_anew_at_once(host: Host) -> None:
    timing = Timing(probe_every=0.05, backoff_first=1000, backoff_last=1000, steady=0)
    links: list[Mortal] = []

    def factory(generation: int) -> Link:
        links.append(Mortal(host.paths()))
        return links[-1]

    with Opened(factory, timing=timing) as opened:
        opened.events.wait("up")
        links[0].end()
        opened.events.wait("lost")
        assert opened.events.wait("back").generation == 2


def test_reconnect_moves_new_connections_and_leaves_the_old(host: Host) -> None:
    with Opened(lambda n: LocalLink(host.paths())) as opened:
        opened.events.wait("up")
        with opened.connect() as old:
            assert opened.echoes(old)
            opened.tunnels.reconnect()
            assert opened.events.wait("back").generation == 2
            assert opened.echoes(old)
            with opened.connect() as new:
                assert opened.echoes(new)


class Scripted:
    """A probe that does for each generation what its function says."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], bool]] = {}

    def __call__(self, path: str, timeout: float, first: bool) -> bool:
        return self.answers.get(path, lambda: True)()


def numbered(host: Host) -> Callable[[int], Link]:
    """Links whose probes can be told apart."""
    return lambda n: LocalLink({**host.paths(), "guest": str(n)})


def test_an_old_link_that_stays_silent_is_cut_after_the_grace(host: Host) -> None:
    probe, over = Scripted(), threading.Event()
    timing = dataclasses.replace(CALM, grace=0.05)
    asked = threading.Event()

    def answer() -> bool:
        """Silence once; then it hangs, so that the grace ends without another answer."""
        if asked.is_set():
            over.wait(20)
        asked.set()
        return False

    with Opened(numbered(host), Service("deaf", 0), probe=probe, timing=timing) as opened:
        opened.events.wait("up")
        with opened.connect("deaf") as old:
            assert old.recv(5) == b"hello"
            probe.answers["1"] = answer
            opened.events.wait("lost")
            opened.events.wait("back")
            assert old.recv(1) == b""
            over.set()


def test_an_old_link_that_answers_within_the_grace_lives_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still from the second one's answer to its own: that comes in time, on any machine."""
    probe, asked, stopped = Scripted(), threading.Semaphore(0), list[float]()
    timing = dataclasses.replace(CALM, grace=1.0)
    clock = SimpleNamespace(monotonic=lambda: stopped[0] if stopped else time.monotonic())
    monkeypatch.setattr(supervisor_module, "time", clock)

    def first() -> bool:
        asked.release()
        return bool(opened.events.of("back"))

    def second() -> bool:
        stopped[:] = stopped or [time.monotonic()]
        return True

    with Opened(numbered(host), probe=probe, timing=timing) as opened:
        opened.events.wait("up")
        with opened.connect() as old:
            assert opened.echoes(old)
            probe.answers.update({"2": second, "1": first})
            assert opened.events.wait("back").generation == 2
            until(lambda: opened.tunnels._supervisor._succession._links[1].deadline is None)  # it is heard
            stopped[0] += 2 * timing.grace
            while asked.acquire(blocking=False):
                pass
            for _ in range(3):  # and what it says is heard after the grace, too
                assert asked.acquire(timeout=20)
            assert opened.echoes(old)


def test_a_second_link_that_is_not_needed_is_closed(host: Host) -> None:
    closed, asked = threading.Event(), threading.Event()

    class Second(LocalLink):
        def close(self) -> None:
            closed.set()

    def factory(generation: int) -> Link:
        paths = {**host.paths(), "guest": str(generation)}
        return LocalLink(paths) if generation == 1 else Second(paths)

    def silent() -> bool:
        asked.set()
        return False

    probe = Scripted()
    with Opened(factory, probe=probe) as opened:
        opened.events.wait("up")
        probe.answers["2"] = silent
        probe.answers["1"] = asked.is_set
        assert opened.events.wait("back").generation == 1
        assert closed.wait(20)


def test_the_default_probe(host: Host) -> None:
    assert ping(host.paths()["guest"], 20)
    host.answering.clear()
    assert not ping(host.paths()["guest"], 0.05)

    def read_and_leave(connection: socket.socket) -> None:
        connection.recv(100)

    hangs_up = Server(host.folder / "eof.sock", read_and_leave)
    for path in (host.folder / "eof.sock", host.folder / "missing.sock"):
        with pytest.raises(OSError):
            ping(str(path), 20)
    hangs_up.close()


def test_a_guest_with_a_key_proves_to_be_it(host: Host) -> None:
    path = host.folder / "g.sock"
    control.serve(path, list, (os.getuid(), os.getgid()), "k3y")
    assert ping(str(path), 20, key="k3y")
    assert ping(str(path), 20)  # as an older mlbox asks
    with pytest.raises(Stranger):
        ping(str(path), 20, key="other")
    with pytest.raises(Stranger):
        ping(host.paths()["guest"], 20, key="k3y")  # its answer is no JSON


@pytest.mark.parametrize("said", [b"[]", b"{", b"null", b'{"proof": 7}', b"[" * 10000, b"x" * 30000], ids=len)
def test_other_answers_are_a_stranger_s(host: Host, said: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said + b"\n")

    server = Server(host.folder / "s.sock", answer)
    with pytest.raises(Stranger):
        ping(str(host.folder / "s.sock"), 20, key="k3y")
    server.close()


def test_what_sshd_holds_back_on_a_new_link_is_pushed_out(host: Host) -> None:
    """Here the first answer comes once a second connection is opened. Later questions open one each."""
    pushed, asked, three = threading.Event(), list[int](), threading.Event()

    def answer(connection: socket.socket) -> None:
        number = server.came.index(connection)
        if number == 1:
            pushed.set()
        if said := connection.recv(100):
            asked.append(number)
            assert pushed.wait(20)
            connection.sendall(said)
            if len(asked) == 3:
                three.set()

    server = Server(host.folder / "h.sock", answer)
    with Opened(lambda n: LocalLink({**host.paths(), "guest": str(host.folder / "h.sock")})) as opened:
        opened.events.wait("up")
        assert three.wait(20)
    server.close()
    assert asked[0] == 0 and asked[2] == asked[1] + 1


def keyed(path: str, timeout: float, first: bool) -> bool:
    return ping(path, timeout, first, "k3y")


def test_nothing_goes_where_a_stranger_answers(host: Host) -> None:
    heard = threading.Event()
    path = host.folder / "g.sock"
    squatter = Server(path, squat)
    host.servers["echo"].close()
    host.servers["echo"] = Server(host.folder / "echo.sock", lambda connection: heard.set())
    timing = dataclasses.replace(CALM, refused_first=0.0, refused_last=0.0)
    with (
        Opened(lambda n: LocalLink({**host.paths(), "guest": str(path)}), probe=keyed, timing=timing) as opened,
        opened.connect(),
    ):
        said = opened.events.wait("stranger")
        assert said.reason == "something else answers in the session's place"
        assert not opened.tunnels.wait_up(0)
        squatter.close()
        opened.events.wait("refused")
        assert not heard.is_set()
        control.serve(path, list, (os.getuid(), os.getgid()), "k3y")
        opened.events.wait("up")
        assert heard.wait(20)


def test_a_link_whose_guest_becomes_a_stranger_gets_nothing_new(host: Host) -> None:
    """Its folder was moved away under a living ssh. Not even when the stranger falls silent in a way that says no."""
    path, timing = host.folder / "g.sock", dataclasses.replace(CALM, refused_first=0.0, refused_last=0.0)
    control.serve(path, list, (os.getuid(), os.getgid()), "k3y")
    with Opened(lambda n: LocalLink({**host.paths(), "guest": str(path)}), probe=keyed, timing=timing) as opened:
        opened.events.wait("up")
        path.unlink()
        squatter = Server(path, squat)
        assert opened.events.wait("lost").reason == "something else answers in the session's place"
        opened.events.wait("stranger")
        squatter.close()
        opened.events.wait("refused", 2)
        assert not opened.tunnels.wait_up(0)
        control.serve(path, list, (os.getuid(), os.getgid()), "k3y")
        opened.events.wait("back")
        with opened.connect() as sock:
            assert opened.echoes(sock)


class Clock(threading.Event):
    """Nobody waits; how long they would have is noted, and after `count` times `then` is done."""

    def __init__(self, count: int, then: Callable[[], object]) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._count, self._then = count, then

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        if len(self.waits) == self._count:
            self._then()
        return self.is_set()


def test_a_guest_that_is_not_there_is_asked_less_and_less(host: Host) -> None:
    answers = [*[False] * 9, True, *[False] * 2]

    def probe(path: str, timeout: float, first: bool) -> bool:
        if not answers.pop(0):
            raise ConnectionResetError
        return True

    prober = Prober(LocalLink({}), "", probe, 4.0, 3.0, lambda: None, lambda answer: None)
    clock = prober._now = Clock(12, prober.stop)
    prober.start()
    prober.join()
    middles = (0.5, 1, 2, 4, 8, 15, 15, 15, 15, 3, 0.5, 1)
    assert all(middle * 0.75 <= wait <= middle * 1.25 for middle, wait in zip(middles, clock.waits)), clock.waits


@pytest.mark.parametrize("ask", [Tunnels.reconnect, Tunnels.hurry])
def test_who_asks_waits_for_no_backoff(host: Host, ask: Callable[[Tunnels], None]) -> None:
    asked = threading.Semaphore(0)

    def probe(path: str, timeout: float, first: bool) -> bool:
        opened.tunnels._supervisor._links[1]._prober._absent = Backoff(1000.0, 1000.0)  # of the pause behind this
        asked.release()
        raise ConnectionResetError

    timing = dataclasses.replace(CALM, probe_every=1000.0)
    opened = Opened(lambda n: LocalLink(host.paths()), probe=probe, timing=timing)
    with opened:
        opened.events.wait("refused")
        assert asked.acquire(timeout=20)
        ask(opened.tunnels)
        assert asked.acquire(timeout=20)


def test_a_service_that_is_gone_is_dialled_less_and_less(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    path = host.folder / "late.sock"

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            host.servers["late"] = Server(path, echo)

    with Opened(lambda n: LocalLink({**host.paths(), "late": str(path)}), Service("late", 0)) as opened:
        monkeypatch.setattr(opened.tunnels._supervisor, "pause", pause)
        with opened.connect("late") as sock:
            assert opened.echoes(sock)
    middles = (0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1)
    assert all(middle * 0.75 <= wait <= middle * 1.25 for middle, wait in zip(middles, pauses)), pauses


def test_backoff_doubles_to_its_limit() -> None:
    backoff = Backoff(0.2, 5.0)
    for middle in (0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        assert middle * 0.75 <= backoff.delay() <= middle * 1.25
    backoff.reset()
    assert backoff.delay() <= 0.25


@pytest.mark.parametrize("path", ["/tmp/a:b", "/tmp/%h", "/tmp/${HOME}", "/tmp/a b", "relative", "/" + "x" * 100])
def test_a_socket_that_ssh_would_misread_is_refused(path: str) -> None:
    with pytest.raises(MlboxError):
        SshLink(("ssh",), "gpu1", {"guest": path}, Path("/tmp/l"), 1)


def test_the_command_line() -> None:
    link = SshLink(("ssh", "-F", "/c"), "gpu1", {"guest": "/r/guest.sock"}, Path("/l"), 7, fast_cipher=True)
    words = " ".join(link.argv)
    assert words.startswith("ssh -N -T ")
    assert words.endswith("-F /c -L /l/7-guest:/r/guest.sock -- gpu1")
    for option in (
        "BatchMode=yes",
        "ControlPath=/l/7-control",
        "ControlPersist=no",
        "ConnectTimeout=10",
        "Ciphers=^aes128-gcm@openssh.com",
    ):
        assert f"-o {option} " in words
    plain = SshLink(("ssh", "-oConnectTimeout=3"), "gpu1", {}, Path("/l"), 1, batch=False)
    assert "ConnectTimeout=10" not in plain.argv
    assert "BatchMode=yes" not in plain.argv
    assert not any(word.startswith("Ciphers") for word in plain.argv)
