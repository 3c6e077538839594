"""guest.sock: one JSON line in, one out. {"op": "ping"} -> {"ok": true, "ready": [service…]}."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Callable


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


def serve(path: Path, ready: Callable[[], list[str]], owner: tuple[int, int]) -> None:
    listener = listen(path, owner)
    threading.Thread(target=_accept, args=(listener, ready), name="control", daemon=True).start()


def _accept(listener: socket.socket, ready: Callable[[], list[str]]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, ready), daemon=True).start()


def _answer(connection: socket.socket, ready: Callable[[], list[str]]) -> None:
    with connection, connection.makefile("rwb") as file:
        try:
            for line in file:
                known = json.loads(line).get("op") == "ping"
                file.write(json.dumps({"ok": known, "ready": ready()}).encode() + b"\n")
                file.flush()
        except (OSError, ValueError, AttributeError):
            return
