"""Whose program has connected to one of the laptop's ports: asked of Linux's sock_diag(7), as `ss` does.

Elsewhere nobody may ask (macOS tells root only): there a port is as open to the machine's other users as any port is.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import Any

Address = tuple[Any, ...]
_SOCK_DIAG, _BY_FAMILY, _REQUEST = 4, 20, 1  # linux/netlink.h, linux/sock_diag.h
_EVERY_STATE = _NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ASKED = struct.Struct("=BBBBI")  # inet_diag_req_v2: family, protocol, extensions, padding, states
_BETWEEN = struct.Struct("!HH16s16s")  # inet_diag_sockid: ports and addresses of both ends
# … on lo, which is always the first: asked of any interface, the kernel knows no socket that was bound to one.
_LOOPBACK = struct.pack("=III", 1, _NO_COOKIE, _NO_COOKIE)
_OWNER = struct.Struct("=II")  # inet_diag_msg: uid and inode, after two numbers and the ends
_OWNER_AT = _HEADER.size + 4 + _BETWEEN.size + len(_LOOPBACK) + 12
_PATIENCE = 2.0  # s; the kernel answers at once
_FOR_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # of what it takes to ask just now


def is_welcome(connection: socket.socket) -> bool:
    """Whether this user's program (or root's) made it, or the kernel does not say who did: another system's does not,
    nor this one's of who is not on it (a virtual machine's owner). One that its maker has closed already is nobody's,
    and could be anybody's."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        theirs, ours = connection.getpeername(), connection.getsockname()
    except OSError:  # it is gone
        return False
    try:
        found = _owner(connection.family, theirs, ours)
    except TimeoutError:
        return False
    except (OSError, struct.error) as error:  # else there is no such question here: a sandbox, a kernel without it
        return getattr(error, "errno", 0) not in _FOR_WANT
    if found is None:  # not on this machine, unless it has just gone
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"  # TCP_ESTABLISHED
    uid, inode = found
    return inode != 0 and uid in (0, os.geteuid())


def _owner(family: int, theirs: Address, ours: Address) -> tuple[int, int] | None:
    """(uid, inode) of the socket at the other end, inode 0 once it is closed; None where no such socket is known.
    Raises OSError."""
    (from_, from_port), (to, to_port) = theirs[:2], ours[:2]
    ends = _BETWEEN.pack(from_port, to_port, socket.inet_pton(family, from_), socket.inet_pton(family, to)) + _LOOPBACK
    asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 0, _EVERY_STATE) + ends
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(_PATIENCE)
        kernel.send(_HEADER.pack(_HEADER.size + len(asked), _BY_FAMILY, _REQUEST, 1, 0) + asked)
        told = kernel.recv(4096)
    if _HEADER.unpack_from(told)[1] != _BY_FAMILY:  # an error
        code = -struct.unpack_from("=i", told, _HEADER.size)[0]
        if code == errno.ENOENT:
            return None
        raise OSError(code, os.strerror(code))
    if _BETWEEN.unpack_from(told, _HEADER.size + 4)[:2] != (
        from_port,
        to_port,
    ):  # who listens there, for want of a better one
        return None
    uid, inode = _OWNER.unpack_from(told, _OWNER_AT)
    return uid, inode
