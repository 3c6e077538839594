"""JSON lines over a unix socket: one object each way, as a shared session's door (host/sharing.py) and its visitors
(host/door.py) speak."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

Json = dict[str, Any]


def say(connection: socket.socket, message: Json) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def hear(connection: socket.socket, longest: int, deadline: float) -> Json | None:
    """An object; None where no line comes, or something else. Raises OSError, also behind `deadline` (monotonic)."""
    line = b""
    while not line.endswith(b"\n") and len(line) <= longest:
        if (left := deadline - time.monotonic()) <= 0:  # however steadily it comes
            raise TimeoutError("no whole line came in time")
        connection.settimeout(left)
        data = connection.recv(65536)
        if not data:
            break
        line += data
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
