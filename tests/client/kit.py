"""What several of these tests need: a session's sockets, tunnels to them, and a private sshd."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from mlbox.client.tunnels import Key, Link, Service, Timing, TunnelEvent, Tunnels

KEY = Key("kind-otter", "s3cret")
CALM = Timing(probe_every=0.05, probe_timeout=20, backoff_first=0.01, backoff_last=0.02)
ECHO = Service("echo", 0)
T = TypeVar("T", bound="Opened")
SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


@contextlib.contextmanager
def reserved() -> Iterator[int]:
    """A port of 127.0.0.1 that is refused, and that nobody is given by chance. Who asks for just this one, and sets
    SO_REUSEADDR, as servers do, can listen there. (On a Mac that could not, so there it is only free.)"""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
        if not sys.platform.startswith("linux"):
            held.close()
        yield port


class HalfEnded(socket.socket):
    """As on a Mac one whose peer has ended its half: nothing is left to be read, so SHUT_RDWR is an error."""

    def shutdown(self, how: int) -> None:
        if how == socket.SHUT_RDWR:
            raise OSError(errno.ENOTCONN, "Socket is not connected")
        super().shutdown(how)


class Events:
    """Collects, and waits for, what the tunnels tell."""

    def __init__(self) -> None:
        self.seen: list[TunnelEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: TunnelEvent) -> None:
        with self._changed:
            self.seen.append(event)
            self._changed.notify_all()

    def wait(self, kind: str, count: int = 1) -> TunnelEvent:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.of(kind)) >= count, 20), (kind, self.seen)
            return self.of(kind)[count - 1]

    def of(self, kind: str) -> list[TunnelEvent]:
        return [event for event in self.seen if event.kind == kind]


class Server:
    """A service on a unix socket: `serve(connection)` in a thread for each."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self.came: list[socket.socket] = []  # all connections, in their order
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        self._sock.listen(256)
        self._path = path
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:
                return
            self.came.append(connection)
            threading.Thread(target=self._live, args=(connection,), daemon=True).start()

    def _live(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()
        self._path.unlink()


def echo(connection: socket.socket) -> None:
    while True:
        data = connection.recv(1 << 16)
        if not data:
            return
        connection.sendall(data)


class Host:
    """A session's sockets: guest answers while `answering`, echo repeats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answering = threading.Event()
        self.answering.set()
        self.over = threading.Event()
        self.servers = {
            "guest": Server(folder / "guest.sock", self._pong),
            "echo": Server(folder / "echo.sock", echo),
            "deaf": Server(folder / "deaf.sock", self._stay),
        }

    def _pong(self, connection: socket.socket) -> None:
        while connection.recv(100):
            self.answering.wait()
            connection.sendall(b"pong\n")

    def _stay(self, connection: socket.socket) -> None:
        """Greets, and holds the connection open, whatever the other side does."""
        connection.sendall(b"hello")
        self.over.wait()

    def paths(self) -> dict[str, str]:
        return {name: str(self.folder / f"{name}.sock") for name in self.servers}


def squat(connection: socket.socket) -> None:
    """In the guest's place, without its key: says what it knows of a guest's answers."""
    while connection.recv(4096):
        connection.sendall(b'{"ok": true, "ready": ["echo"], "proof": "0"}\n')


class Opened:
    """Tunnels that are open for the length of a with block."""

    def __init__(self, factory: Callable[[int], Link], *services: Service, **options: object) -> None:
        self.events = Events()
        settings = {"timing": CALM, **options}
        self.tunnels = Tunnels(services or (ECHO,), factory, self.events, KEY, **settings)  # type: ignore[arg-type]

    def __enter__(self: T) -> T:
        self.tunnels.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.tunnels.close()
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("tunnel")] == []

    def connect(self, name: str = "echo") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.tunnels.port(name)), 20)

    def echoes(self, sock: socket.socket, data: bytes = b"hello") -> bool:
        sock.sendall(data)
        return sock.recv(len(data)) == data


class Sshd:
    """A server of our own with keys of our own; `config` is an ssh_config that reaches it as `gpu1`.

    settings: more lines for its sshd_config."""

    def __init__(self, folder: Path, *more: str) -> None:
        for name in ("host", "id"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        self._reserved = contextlib.ExitStack()
        self.port = self._reserved.enter_context(reserved())
        settings = [
            *(f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host"),
            *(f"AuthorizedKeysFile {folder}/id.pub", "StrictModes no", "UsePAM no", "PidFile none"),
        ]
        (folder / "sshd_config").write_text("\n".join([*settings, *more, ""]))
        key = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")
        lines = [
            *("Host gpu1", "HostName 127.0.0.1", f"Port {self.port}", f"User {getpass.getuser()}"),
            *(f"IdentityFile {folder}/id", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known_hosts"),
            *("StrictHostKeyChecking yes", ""),
        ]
        self.config = folder / "config"
        self.config.write_text("\n".join(lines))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's sshd separates privileges
        self.process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE, text=True
        )

    def ready(self) -> bool:
        """Whether it listens; reads its stderr until it says so or ends."""
        assert self.process.stderr is not None
        return any("listening on" in line for line in self.process.stderr)

    def close(self) -> None:
        self.process.terminate()
        assert self.process.stderr is not None
        self.process.stderr.close()  # not read to its end: a connection that is left over still holds it
        self.process.wait()
        self._reserved.close()


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
