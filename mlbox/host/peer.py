"""Who is at the other end of a unix socket: the kernel's word (SO_PEERCRED), which no program can forge."""

from __future__ import annotations

import pwd
import socket
import struct

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


def known() -> bool:
    """Whether this kernel tells (Linux does)."""
    return hasattr(socket, "SO_PEERCRED")


def uid(connection: socket.socket) -> int:
    """Of an accepted connection: the user who made it; of one that was made: the user who listens."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(said)[1])


def name(number: int) -> str:
    """A user's name; of one without an account the number."""
    try:
        return pwd.getpwuid(number).pw_name
    except (KeyError, OverflowError):
        return str(number)
