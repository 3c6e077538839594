"""The laptop's ports: a listening TCP socket per service, on this machine's loopback only.

A port is taken by binding it, so nobody can come between the choice and the use; it is held until close().
`localhost` may mean ::1, so the same port is bound there too. Is it someone else's there, then the number
counts as taken: a browser would otherwise bring that someone the token.
One thread accepts, of this user's programs only (caller.py); each connection gets a thread that gates it, finds it a
link and splices it.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlbox.client.tunnels import caller
from mlbox.errors import MlboxError
from mlbox.splice import shutdown

BACKLOG = 128
NEXT_PORTS = 100  # how far to look when the wanted port is taken
ANSWER = 0.2  # seconds that a local program gets to accept
STOP = 5.0  # seconds that a removal waits; a listener that is closing frees the port by itself
OPEN_FILES = 4096  # macOS starts a process with 256; a connection takes 2 here and 2 in ssh
OPEN_FILES_OF_A_MAC = 1000  # its ssh ends, with all that it carries, where it is to poll a number above 1023
_TAKEN = (errno.EADDRINUSE, errno.EACCES)
_NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True)
class Service:
    """wanted_port: 0 for any. gated: it has no password of its own (gate.py). inside: it is no socket on the host but
    this port inside the session (inside.py). page: what comes is a browser, whose pages connect anew by themselves."""

    name: str
    wanted_port: int
    gated: bool = False
    inside: int = 0
    page: bool = False


class Port:
    """A bound port: `number`, and its one or two listening sockets."""

    def __init__(self, service: Service) -> None:
        """Raises MlboxError if the wanted port and the next 100 are taken."""
        self.service = service
        last = min(service.wanted_port + NEXT_PORTS, 65535)
        wanted = range(service.wanted_port, last + 1) if service.wanted_port else [0] * NEXT_PORTS
        for number in wanted:
            sockets = _bind(number)
            if sockets:
                self.sockets = sockets
                self.number: int = sockets[0].getsockname()[1]
                return
        taken = f"{wanted[0]} to {wanted[-1]}" if service.wanted_port else "all"
        raise MlboxError(
            f"no free port for {service.name} on this machine: {taken} are taken",
            "end what listens there, or choose another: LOCAL:REMOTE"
            if service.inside
            else f"end what listens there, or choose another in config.toml: [ports] {service.name} = …",
        )

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class Listener:
    """Accepts on the ports; `serve(service, connection)` runs in its own thread, then it is closed."""

    def __init__(self, ports: Sequence[Port], serve: Callable[[Service, socket.socket], None]) -> None:
        self._ports = list(ports)
        self._serve = serve
        self._stop = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="tunnel-listener", daemon=True)
        self._lock = threading.Lock()
        self._leaving: list[Port] = []
        self._changed = threading.Condition(self._lock)
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []  # of connections, and of some that have just ended

    def start(self) -> None:
        self._thread.start()

    def add(self, port: Port) -> None:
        """One more, while it runs."""
        with self._lock:
            self._ports.append(port)
        self._wake.send(b"x")

    def remove(self, port: Port) -> None:
        """It is free on return; connections that were made through it go on."""
        with self._lock:
            self._ports.remove(port)
            self._leaving.append(port)
            self._wake.send(b"x")
            self._changed.wait_for(lambda: port not in self._leaving, STOP)

    def close(self) -> None:
        """Free the ports, end the connections, wait for their threads (what else they wait on has ended)."""
        self._stop.set()
        self._wake.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._woken.close()
        for port in self._ports:
            port.close()
        with self._lock:
            open_now = list(self._connections)
        for connection in open_now:
            shutdown(connection, socket.SHUT_WR, socket.SHUT_RD)  # what hears the second says no more
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stop.is_set():
                self._take_changes(selector)
                for key, _ in selector.select():
                    if isinstance(key.data, Service) and isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj, key.data)
                    else:
                        self._woken.recv(4096)

    def _take_changes(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            for port in self._ports:
                for sock in port.sockets:
                    if sock not in selector.get_map():
                        selector.register(sock, selectors.EVENT_READ, port.service)
            for left in self._leaving:
                for sock in left.sockets:
                    if sock in selector.get_map():  # it may have left before it was taken in
                        selector.unregister(sock)
                left.close()
            self._leaving.clear()
            self._changed.notify_all()

    def _accept(self, listening: socket.socket, service: Service) -> None:
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client left meanwhile
            return
        except OSError:
            self._stop.wait(0.2)  # out of file descriptors: the connection stays readable, so don't spin
            return
        if not caller.is_welcome(connection):
            connection.close()
            return
        connection.setblocking(True)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(
            target=self._live, args=(service, connection), name=f"tunnel-{service.name}", daemon=True
        )
        with self._lock:
            self._connections.add(connection)
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._forget(connection)
            return
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]

    def _live(self, service: Service, connection: socket.socket) -> None:
        try:
            self._serve(service, connection)
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()


def allow_many_files() -> None:
    """Raise this process's (and its ssh's) soft limit of open files, as far as that is allowed."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES_OF_A_MAC if sys.platform == "darwin" else OPEN_FILES
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ImportError, OSError, ValueError):
        pass


def _bind(number: int) -> list[socket.socket]:
    """Listening sockets on 127.0.0.1 and, where there is IPv6, ::1. Empty if the port is taken on either."""
    if sys.platform == "darwin" and number and _is_answered(number):
        return []
    first = _listen(socket.AF_INET, "127.0.0.1", number)
    if first is None:
        return []
    try:
        second = _listen(socket.AF_INET6, "::1", first.getsockname()[1])
    except OSError as error:
        if error.errno in _NO_IPV6:
            return [first]
        first.close()
        raise
    if second is None:
        first.close()
        return []
    return [first, second]


def _is_answered(number: int) -> bool:
    """By a program that listens on all addresses, say: to bind 127.0.0.1 would succeed beside one of this user's on a
    Mac, take its connections, and leave it the browser's tabs (with their tokens) afterwards."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER)
            if sock.connect_ex((host, number)) == 0:
                return True
    return False


def _listen(family: socket.AddressFamily, host: str, number: int) -> socket.socket | None:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, number))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno in _TAKEN:
            return None
        raise
    return sock
