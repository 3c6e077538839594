"""A port inside the session, reached through the guest's own socket, which every link leads to.

    client -> guest   {"op": "connect", "port": 6006}
    guest -> client   {"ok": true}, and from here on the connection's raw bytes; or {"ok": false}, and its end

Nothing is published by the container and nothing new is forwarded by ssh, so ports come and go while links stay.
"""

from __future__ import annotations

import contextlib
import json
import socket

from mlbox.client.tunnels.link import Link
from mlbox.client.tunnels.listener import Service

PATIENCE = 30.0  # s; the answer takes a round trip, and may wait behind a lot of data
_GUEST = "guest"


def connect(link: Link, service: Service) -> socket.socket | None:
    """A connection to that port; None where the link does not work just now. Raises ConnectionRefusedError where
    nobody listens on it yet."""
    far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    answer = b""
    with contextlib.suppress(OSError):
        far.settimeout(PATIENCE)
        far.connect(link.path(_GUEST))
        far.sendall(json.dumps({"op": "connect", "port": service.inside}).encode() + b"\n")
        while not answer.endswith(b"\n"):  # byte by byte: what comes after the line belongs to the service
            byte = far.recv(1)
            if not byte:
                break
            answer += byte
    if answer.endswith(b"\n") and json.loads(answer).get("ok"):
        far.settimeout(None)
        return far
    far.close()
    if answer.endswith(b"\n"):
        raise ConnectionRefusedError(f"nothing listens on port {service.inside} inside the session")
    return None
