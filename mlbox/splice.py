"""Two sockets joined: what arrives at one leaves at the other, until both sides have ended.

Beside the rooms because several use it: client/tunnels/tunnels.py, guest/control.py and host/sharing.py.
A thread per direction copies with recv_into and sendall: backpressure is the kernel's, an idle connection
sleeps in recv. Measured (2 cores, 400 MB through ssh): os.splice through a pipe and one thread with epoll take as much
time of a core, 0.5 s for a GB, which is the kernel's to copy; so this is the same code everywhere.
An end of data is passed on as an end of data (SHUT_WR), so half-closed connections deliver everything.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import Protocol

BUFFER = 64 * 1024  # bytes a direction; 256 KiB was no faster and costs 100 MB at 200 connections
LINGER = 5.0  # seconds a client has to take the last bytes once the far side is wholly gone
HALF_CLOSED_CHECK = 1.0  # seconds between looks at a far side that ended its half only


class Splice:
    """Joins `near` (on the laptop: the browser) and `far` (the tunnel). Owns and closes both."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._near = near
        self._far = far
        self._lock = threading.Lock()  # no shutdown on a number that close() has given back

    def run(self, head: bytes = b"") -> None:
        """Copy until both directions have ended. `head` was already read from near and goes first."""
        up = threading.Thread(target=self._up, args=(head,), name="tunnel-up", daemon=True)
        try:
            up.start()
            _copy(self._far, self._near)
            self._await(up)
        finally:
            self.cut()
            if up.ident is not None:
                up.join()
            with self._lock:
                self._near.close()
                self._far.close()

    def cut(self) -> None:
        """End both directions now; run() then returns. Safe from any thread, any number of times."""
        with self._lock:
            shutdown(self._near, socket.SHUT_RD, socket.SHUT_WR)
            shutdown(self._far, socket.SHUT_RD, socket.SHUT_WR)

    def _up(self, head: bytes) -> None:
        try:
            self._far.sendall(head)
            end = _copy(self._near, self._far)
        except OSError:
            end = "sink"
        if end == "source":  # the client was reset
            self.cut()
        elif end == "sink":
            # Far hears no more but may have spoken: its answer travels the other way. Closing near with
            # unread data would send a reset and destroy that answer, so read on; run() ends it.
            with contextlib.suppress(OSError):
                while self._near.recv(BUFFER):
                    pass

    def _await(self, up: threading.Thread) -> None:
        """Far has sent its last byte. Near may go on sending, unless nobody is left to hear it."""
        while up.is_alive():
            if _hung_up(self._far):
                up.join(LINGER)
                return
            up.join(HALF_CLOSED_CHECK)


class Carried(Protocol):
    """A connection on its way: a Splice, or what else is ended as one."""

    def cut(self) -> None: ...


class Splices:
    """Those that run by one way, or for one person, and end with it."""

    def __init__(self) -> None:
        self._running: dict[Carried, bool] = {}  # whether a page's
        self._over = False
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        return self._over

    def idle(self) -> bool:
        with self._lock:
            return not self._running

    def add(self, splice: Carried, page: bool = False) -> bool:
        """False where they were ended meanwhile: it must not run. page: its client comes again by itself."""
        with self._lock:
            if not self._over:
                self._running[splice] = page
            return not self._over

    def remove(self, splice: Carried) -> None:
        with self._lock:
            self._running.pop(splice, None)

    def cut(self) -> int:
        """End them now, and whatever would be added; how many they were."""
        with self._lock:
            self._over = True
            running = list(self._running)
        for splice in running:
            splice.cut()
        return len(running)

    def cut_pages(self) -> None:
        """End those whose clients come again by themselves."""
        with self._lock:
            pages = [splice for splice, page in self._running.items() if page]
        for splice in pages:
            splice.cut()


def let_go(near: socket.socket) -> None:
    """End it for a client that may still be sending: closing it with unread data would send a reset, which destroys
    what the client has not read yet."""
    shutdown(near, socket.SHUT_WR)
    until = time.monotonic() + LINGER
    with contextlib.suppress(OSError):
        while (left := until - time.monotonic()) > 0:
            near.settimeout(left)
            if not near.recv(BUFFER):
                break


def _copy(source: socket.socket, sink: socket.socket) -> str:
    """Copy to the end of `source`, then end `sink`'s input. "ended", or what broke: "source", "sink"."""
    view = memoryview(bytearray(BUFFER))
    while True:
        try:
            count = source.recv_into(view)
        except OSError:
            shutdown(sink, socket.SHUT_WR)
            return "source"
        if not count:
            shutdown(sink, socket.SHUT_WR)
            return "ended"
        try:
            sink.sendall(view[:count])
        except OSError:
            return "sink"


def shutdown(sock: socket.socket, *halves: int) -> None:
    """Each by itself: of a connection whose peer has ended its half, a Mac refuses SHUT_RDWR and ends neither."""
    for half in halves:
        with contextlib.suppress(OSError):
            sock.shutdown(half)


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer is gone in both directions (it can't be written to either)."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return any(mask & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, mask in poll.poll(0))
