"""A connection given to the ssh of a link, which then reads and writes it itself: no byte of it passes through here.

A copy in this process takes time of the cores that ssh's cipher needs (`make bench`, part d). An ssh that is a
ControlMaster takes descriptors over its control socket, as those of a multiplexed `ssh -W`, and since OpenSSH 9.4 joins
them with a socket on the host. OpenSSH's PROTOCOL.mux, 1 and 3; each message has its length before it:
  we say   hello, version; open, number, "", path, PORT_STREAMLOCAL; then the connection's descriptor for each direction
  it says  hello; once the host has answered "opened" or something else. Until then it reads nothing
Whoever ends the conversation ends what it joined. Where the far side has sent its last byte, ssh leaves the connection
as a whole, and never ends just one half of it: who called run() lets it go.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import struct
import subprocess
import threading

_HELLO, _OPEN, _OPENED = 0x1, 0x10000008, 0x80000006
_VERSION = 4
_STREAMLOCAL = 0xFFFFFFFE  # in a port's place: the name before it is a socket's path
_NUMBER = 1
_SINCE = (9, 4)  # before it, such a path would be looked up as a host's name
_LONGEST = 64 * 1024  # bytes of a message
_LOCAL = 5.0  # s; it is a socket of this machine


class Handover:
    """One connection's. control: ssh's socket. target: the socket's path on the host. Does not close the connection:
    `with` is for what it has itself."""

    def __init__(self, control: str, target: str, connection: socket.socket) -> None:
        self._control = control
        self._target = target
        self._connection = connection
        self._master = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = threading.Lock()  # no shutdown on a number that close() has given back

    def __enter__(self) -> Handover:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._master.close()

    def run(self) -> bool:
        """Until the connection has ended. False if ssh did not take it: nothing was read of it, and it is as it was."""
        taken = False
        with contextlib.suppress(OSError):
            self._ask()
            taken = self._taken()
            while taken and self._master.recv(_LONGEST):
                pass
        self._connection.setblocking(True)  # ssh sets that otherwise
        return taken

    def cut(self) -> None:
        """End it now; run() then returns. Safe from any thread, any number of times."""
        with self._lock, contextlib.suppress(OSError):
            self._master.shutdown(socket.SHUT_RDWR)

    def _ask(self) -> None:
        self._master.settimeout(_LOCAL)  # also makes a full backlog an error: a stopped ssh accepts nobody
        self._master.connect(self._control)
        hello = struct.pack(">II", _HELLO, _VERSION)
        opening = struct.pack(">II", _OPEN, _NUMBER) + _string(b"") + _string(self._target.encode())
        self._master.sendall(_string(hello) + _string(opening + struct.pack(">I", _STREAMLOCAL)))
        for _ in ("in", "out"):
            socket.send_fds(self._master, [b"\0"], [self._connection.fileno()])
        self._master.settimeout(None)

    def _taken(self) -> bool:
        kind = _HELLO
        while kind == _HELLO:
            (length,) = struct.unpack(">I", self._read(4))
            if not 4 <= length <= _LONGEST:
                return False
            (kind,) = struct.unpack(">I", self._read(length)[:4])
        return bool(kind == _OPENED)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._master.recv(count - len(data))
            if not more:
                raise ConnectionResetError("ssh has hung up")
            data += more
        return data


@functools.cache
def takes_connections(ssh: str) -> bool:
    """Whether that program is an OpenSSH that knows sockets on the host."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run((ssh, "-V"), stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOCAL)
        return (version(done.stderr.decode("utf-8", "replace")) or (0, 0)) >= _SINCE
    return False


def version(said: str) -> tuple[int, int] | None:
    """Of what `ssh -V` said: `OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1 1 Jul 2025`. None where it is no OpenSSH."""
    found = re.match(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def _string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text
