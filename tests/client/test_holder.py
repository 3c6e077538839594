"""What the process that holds a session's tunnels does when the session is not where they lead: here, in this process,
to a session on this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, cast

import homes
import pytest

from mlbox import errors
from mlbox.client import holder, owners, sessions, ssh_config, state
from mlbox.client.reach import Reach
from mlbox.client.remote import connect
from mlbox.client.talk import Talk
from mlbox.client.transports.local import Local
from mlbox.client.tunnels import Link, LocalLink, TunnelEvent
from mlbox.client.tunnels.events import Kind
from mlbox.guest import control
from tests.client.kit import Server

ID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
_LONG = 60.0  # s
KEYS = {"a": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA", "b": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = homes.fresh(tmp_path / "home", monkeypatch)
    runtime = tempfile.mkdtemp(prefix="mb", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setattr(holder, "_leave_terminal", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    yield folder
    signal.signal(signal.SIGTERM, before)
    homes.remove(runtime)


class Session:
    """Its starts, each with sockets, a key and tokens of its own; and what its host says of it, or the lab's others do
    (`far`). Where it is `away`, no link to its first start can be made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[Server] = []
        self.told: Any = None
        self.far: Any = errors.NotFound("no other host runs it")
        self.away = False
        self.asked = threading.Event()

    def start(self, name: str, *services: str) -> dict[str, Any]:
        """As its host tells of it."""
        here = self.folder / name
        here.mkdir()
        control.serve(here / "g.sock", list, (os.getuid(), os.getgid()), f"k3y-{name}")
        self.servers += [Server(here / f"{each}.sock", lambda c: self._serve(c, name)) for each in ("vscode", "ssh")]
        facts = {
            "vscode": {"socket": str(here / "vscode.sock"), "token": f"t0ken-{name}", "folder": "/w"},
            "ssh": {"socket": str(here / "ssh.sock"), "user": "ada", "host_key": KEYS[name]},
        }
        told = {each: facts[each] for each in services or facts}
        guest = {"guest_socket": str(here / "g.sock"), "guest_key": f"k3y-{name}"}
        return {"id": ID, "name": "kind-otter", "services": told, "queued": True, **guest}

    def _serve(self, connection: socket.socket, name: str) -> None:
        connection.recv(4096)
        connection.sendall(name.encode())

    def reveal(self, host: Any, wanted: str, lab: str = "") -> dict[str, Any]:
        self.asked.set()
        told = self.far if host.name == "gpu2" else self.told
        if isinstance(told, Exception):
            raise told
        return dict(told)

    def elsewhere(self, session: str, than: str, config: state.Config, lab: str) -> Any:
        assert session == ID and than in ("", "local")
        if isinstance(self.far, errors.MlboxError):
            raise self.far
        return SimpleNamespace(name="gpu2", root="", via="", transport=Local())

    def link(self, forwards: Mapping[str, str], folder: Path, generation: int) -> Link:
        if self.away and forwards["guest"] == str(self.folder / "a/g.sock"):
            raise errors.Unreachable("No route to host")
        return LocalLink(forwards)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    folder = Path(tempfile.mkdtemp(prefix="mb", dir="/tmp"))
    made = Session(folder)
    monkeypatch.setattr(sessions, "reveal", made.reveal)
    monkeypatch.setattr(sessions, "elsewhere", made.elsewhere)
    monkeypatch.setattr(Local, "link", lambda self, *given: made.link(*given))
    yield made
    for server in made.servers:
        server.close()
    homes.remove(folder)


class Client:
    """Of a holder, in a thread of its own; `heard` is all that it is told."""

    def __init__(self, reach: Reach) -> None:
        ours, self.its = socket.socketpair()
        self.reach, self._talk = reach, Talk(ours)
        self.ports: dict[str, int] = {}
        self.said: list[str] = []
        self.failure: BaseException | None = None

    def hear(self, word: str) -> Any:
        """The next message with that word."""
        while (message := self._talk.receive(_LONG)) is not None:
            if "say" in message:
                self.said.append(message["say"])
            if word in message:
                return message[word]
        raise EOFError(word)

    def begin(self) -> None:
        self.ports = self.hear("reply")["ports"]
        self._talk.send({"op": "ready", "reach": self.reach.to_wire()})
        self.hear("up")

    def reconnect(self) -> None:
        self._talk.send({"op": "reconnect"})

    def lose(self, reach: Reach) -> None:
        """That start is over; seen at once, for another link asks."""
        os.unlink(reach.guest_socket)
        self.reconnect()

    def asks(self, cookie: str) -> str:
        """VS Code's port, with that token."""
        with socket.create_connection(("127.0.0.1", self.ports["vscode"]), 20) as connection:
            head = f"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: mlbox-{ID}={cookie}\r\n\r\n"
            connection.sendall(head.encode())
            return connection.recv(100).decode().partition("\r\n")[0]

    def play(self, act: Callable[[Client], None]) -> None:
        """Whatever comes of it, it leaves in the end."""
        try:
            self.begin()
            act(self)
        except BaseException as failure:
            self.failure = failure
        finally:
            self._talk.close()


def held(reach: Reach, act: Callable[[Client], None]) -> Client:
    """From the first client's start of a holder to its leaving."""
    taken = owners.take(ID)
    assert taken is not None
    client = Client(reach)
    thread = threading.Thread(target=client.play, args=(act,))
    thread.start()
    try:
        config = state.Config(ports={"vscode": 0, "ssh": 0})
        holder.Holder(reach, config, taken[0]).run(Talk(client.its))
    finally:
        thread.join(_LONG)
        owners.give_up(taken[0])
        os.close(taken[1])
    if client.failure is not None:
        raise client.failure
    return client


def test_a_session_that_was_started_anew_is_followed(session: Session) -> None:
    """On the same ports, with its own tokens and its own host key."""
    reach = Reach.of(session.start("a"), "local", "")

    def act(client: Client) -> None:
        assert client.asks("t0ken-a") == "a"
        [known] = ssh_config.folder().glob(f"{ID}.{os.getpid()}.known_hosts")
        before = known.read_text()
        session.told = session.start("b")
        os.unlink(reach.guest_socket)
        now = Reach(**client.hear("reach"))
        assert now.services["vscode"]["token"] == "t0ken-b"
        assert any("the session was started anew on local" in said for said in client.said), client.said
        assert client.asks("t0ken-b") == "b"
        assert client.asks("t0ken-a") == "HTTP/1.1 403 Forbidden"
        assert known.read_text() == before.replace(KEYS["a"], KEYS["b"])
        [owner] = owners.living()
        assert owner.ports == client.ports

    held(reach, act)
    assert ssh_config.place(ID)["remote"] == session.told["services"]["ssh"]["socket"]


def test_one_that_is_there_as_it_was_is_waited_for(session: Session) -> None:
    session.told = session.start("a")
    reach = Reach.of(session.told, "local", "")

    def act(client: Client) -> None:
        os.rename(reach.guest_socket, f"{reach.guest_socket}.away")
        assert session.asked.wait(_LONG)
        os.rename(f"{reach.guest_socket}.away", reach.guest_socket)
        assert client.asks("t0ken-a") == "a"

    assert held(reach, act).said == []


def test_other_services_are_other_ports(session: Session) -> None:
    reach = Reach.of(session.start("a"), "local", "")

    def act(client: Client) -> None:
        session.told = session.start("b", "ssh")
        client.lose(reach)
        assert client.hear("stopped") == "the session was started anew on local, with other services"

    held(reach, act)


# ---- of a queue: it may wait in line, and run elsewhere -----------------------------------------------------

LOST = errors.NotFound("no session of yours is running on local")
DOWN = errors.Unreachable("local: no answer")


def entered(told: dict[str, Any]) -> Reach:
    """As whoever attaches leaves it: ssh knows it by its name."""
    host = connect("local", state.Config())
    sessions.enter(host, told)
    return sessions.reach(host, told)


def test_one_that_waits_in_line_has_not_ended(session: Session) -> None:
    """Its host was rebooted: it is in line again, and then starts there."""
    reach = entered(session.start("a"))

    def act(client: Client) -> None:
        session.told = session.far = errors.NotFound("the session waits in line", "mlbox show says why")
        client.lose(reach)
        assert client.hear("say") == "the session waits in line; the tunnels follow it"
        assert owners.living()[0].why == "the session waits in line"
        assert ssh_config.place(ID)["moves"]
        session.told = session.start("b")
        client.hear("reach")
        assert client.asks("t0ken-b") == "b"

    held(reach, act)
    assert ssh_config.names() == {ID: ["kind-otter", "mlbox-kind-otter", f"mlbox-{ID.lower()}"]}


@pytest.mark.parametrize("told", [LOST, DOWN], ids=["gone", "down"])
def test_one_that_moved_is_followed_to_another_host(session: Session, told: errors.MlboxError) -> None:
    reach = entered(session.start("a"))

    def act(client: Client) -> None:
        session.told, session.far = told, session.start("b")
        client.lose(reach)
        client.hear("reach")
        assert any("started anew on gpu2" in said for said in client.said), client.said
        assert client.asks("t0ken-b") == "b"
        [owner] = owners.living()
        assert (owner.host, owner.ports) == ("gpu2", client.ports)

    held(reach, act)
    assert state.load("sessions.json")[ID]["host"] == "gpu2"


def test_it_is_looked_for_while_no_connection_to_its_host_comes_about(session: Session) -> None:
    """Which is not asked then."""
    reach = entered(session.start("a"))

    def act(client: Client) -> None:
        session.told, session.far, session.away = AssertionError("asked"), session.start("b"), True
        client.reconnect()
        client.hear("reach")
        assert client.asks("t0ken-b") == "b"

    held(reach, act)


@pytest.mark.parametrize("away", [False, True])
def test_its_end_is_the_tunnels_end_wherever_it_came(session: Session, away: bool) -> None:
    reach = entered(session.start("a"))

    def act(client: Client) -> None:
        session.told, session.far = (DOWN if away else LOST), errors.Ended("the session has ended: shut down")
        session.away = away
        client.reconnect() if away else client.lose(reach)
        assert client.hear("ended") == "the session has ended: shut down"

    held(reach, act)
    assert ssh_config.names() == {}


def test_one_of_no_queue_that_is_not_there_has_ended(session: Session) -> None:
    reach = entered({**session.start("a"), "queued": False})

    def act(client: Client) -> None:
        session.told, session.far = LOST, session.start("b")
        client.lose(reach)
        assert client.hear("ended") == LOST.message

    held(reach, act)
    assert ssh_config.names() == {}


def test_its_note_comes_back_where_a_cleaner_took_it(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS's does with what lies in /tmp: without it nobody finds the tunnels, to end them."""
    monkeypatch.setattr(holder, "RENEWED", 0.05)

    def act(client: Client) -> None:
        (owners.folder_of(ID) / "owner.json").unlink()
        until = time.monotonic() + _LONG
        while not owners.living() and time.monotonic() < until:
            time.sleep(0.01)
        assert [owner.ports for owner in owners.living()] == [client.ports]

    held(Reach.of(session.start("a"), "local", ""), act)


def test_why_it_is_not_up_is_said_once_until_it_is(session: Session, tmp_path: Path) -> None:
    made = holder.Holder(Reach.of({**session.start("a"), "queued": False}, "local", ""), state.Config(), tmp_path)
    made._guest_expected.set()
    said = []
    for kind, why in (("retrying", "one"), ("retrying", ""), ("retrying", "two"), ("retrying", "one"), ("back", "")):
        made._on_event(TunnelEvent(cast(Kind, kind), 2, why))
        said.append(made._owner.why)
    made._on_event(TunnelEvent("retrying", 2, "one"))
    assert said == ["one", "one", "two", "one", ""]
    log = (state.home() / "tunnels.log").read_text()
    assert re.findall("still trying: (.*)", log) == ["one", "two", "one"]
