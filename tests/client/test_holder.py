"""What the process that holds a session's tunnels does when the session is not where they lead: here, in this process,
to a session on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import homes
import pytest

from mlbox import errors
from mlbox.client import holder, owners, sessions, ssh_config, state
from mlbox.client.reach import Reach
from mlbox.client.talk import Talk
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
    shutil.rmtree(runtime)


class Session:
    """Its starts, each with sockets, a key and tokens of its own; and what its host says of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[Server] = []
        self.told: Any = None
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

    def reveal(self, host: Any, wanted: str) -> dict[str, Any]:
        self.asked.set()
        if isinstance(self.told, errors.MlboxError):
            raise self.told
        return dict(self.told)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    folder = Path(tempfile.mkdtemp(prefix="mb", dir="/tmp"))
    made = Session(folder)
    monkeypatch.setattr(sessions, "reveal", made.reveal)
    yield made
    for server in made.servers:
        server.close()
    shutil.rmtree(folder)


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
        assert "the session was started anew on local" in client.said[-1]
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
        os.unlink(reach.guest_socket)
        assert client.hear("stopped") == "the session was started anew on local, with other services"

    held(reach, act)
