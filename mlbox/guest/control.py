"""guest.sock: one JSON line in, one out.

{"op": "ping", "nonce": "…"}     -> {"ok": true, "ready": [service…], "proof": "…"}; without a nonce, no proof
{"op": "connect", "port": 6006}  -> {"ok": true}, and the connection goes on as one to 127.0.0.1:6006 in here;
                                    or {"ok": false}, and its end
"""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any, Callable

from mlbox.core.proof import proof
from mlbox.splice import Splice

_LONGEST = 4096  # bytes of a line
_DIAL = 10.0  # s


def listen(path: Path, owner: tuple[int, int]) -> socket.socket:
    """A listening unix socket that only its owner can reach, also when a container's root made it."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    give(path, owner)
    listener.listen(128)
    return listener


def give(path: Path, owner: tuple[int, int]) -> None:
    os.chmod(path, 0o600)
    if os.geteuid() == 0 and owner[0] != 0:
        os.chown(path, *owner)


def serve(path: Path, ready: Callable[[], list[str]], owner: tuple[int, int], key: str) -> None:
    listener = listen(path, owner)
    threading.Thread(target=_accept, args=(listener, ready, key), name="control", daemon=True).start()


def _accept(listener: socket.socket, ready: Callable[[], list[str]], key: str) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, ready, key), daemon=True).start()


def _answer(connection: socket.socket, ready: Callable[[], list[str]], key: str) -> None:
    rest = b""
    with connection:
        try:
            while True:
                while b"\n" not in rest:
                    data = connection.recv(_LONGEST)
                    if not data or len(rest) > _LONGEST:
                        return
                    rest += data
                line, _, rest = rest.partition(b"\n")
                request = json.loads(line)
                if request.get("op") == "connect":
                    _join(connection, request.get("port"), rest)
                    return
                nonce = request.get("nonce")
                proved = {"proof": proof(key, nonce)} if isinstance(nonce, str) else {}
                _say(connection, {"ok": request.get("op") == "ping", "ready": ready(), **proved})
        except (OSError, ValueError, AttributeError):
            return


def _say(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _join(connection: socket.socket, port: object, head: bytes) -> None:
    """With a service of this session's own loopback: what else its network reaches is not for this."""
    far = _dial(port) if isinstance(port, int) and 0 < port < 65536 else None
    _say(connection, {"ok": far is not None})
    if far is not None:
        Splice(connection, far).run(head)


def _dial(port: int) -> socket.socket | None:
    """On IPv6 too: there are programs whose `localhost` is nothing else."""
    for address in ("127.0.0.1", "::1"):
        try:
            far = socket.create_connection((address, port), _DIAL)
        except OSError:
            continue
        far.settimeout(None)
        return far
    return None
