"""The socket that a session's guest dials, and who has come to it.

Anybody who is the session's user may connect, if only to see whether somebody answers. The guest is who says hello in
the session's name (guest/link.py); until then a connection is a visitor's, and changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlbox import descriptors

_MOST, _LONGEST = 8, 1 << 20  # visitors at once; bytes of a hello


@dataclass
class Visitor:
    """Who has not said hello yet, or has just said it: all that came until then."""

    connection: socket.socket
    said: bytes = b""
    brought: list[int] = field(default_factory=list)

    def close(self) -> None:
        self.connection.close()
        for descriptor in self.brought:
            os.close(descriptor)


class Visitors:
    def __init__(self, path: Path, session: str) -> None:
        self._session = session
        self._visitors: dict[socket.socket, Visitor] = {}
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(4)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """To wait for."""
        return (self._listener, *self._visitors)

    def open(self, ready: Collection[Any]) -> Visitor | None:
        """Takes in what is `ready`; the guest, if it has come."""
        if self._listener in ready:
            connection = self._listener.accept()[0]
            self._visitors[connection] = Visitor(connection)
            if len(self._visitors) > _MOST:  # the one that has been silent for longest
                self._visitors.pop(next(iter(self._visitors))).close()
        for visitor in [visitor for connection, visitor in self._visitors.items() if connection in ready]:
            if self._is_guest(visitor):
                return self._visitors.pop(visitor.connection)
        return None

    def _is_guest(self, visitor: Visitor) -> bool:
        data = b""
        with suppress(OSError):
            data, brought = descriptors.receive(visitor.connection)
            visitor.brought += brought
        visitor.said += data
        line, whole, _ = visitor.said.partition(b"\n")
        if whole and message(line).get("hello") == self._session:
            return True
        if whole or not data or len(visitor.said) > _LONGEST:
            self._visitors.pop(visitor.connection).close()
        return False


def message(line: bytes) -> dict[str, Any]:
    """What is no JSON object says nothing (a container's root may write to the socket)."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
