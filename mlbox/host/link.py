"""The keeper's end of its line to the guest (guest/link.py has the words): it listens, and the guest dials.

The guest gets the GPU leases that the keeper has, and brings those that it has: a keeper that was adopted into has
none of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlbox import descriptors

Json = dict[str, Any]


class GuestLink:
    """`leases` (GPU -> descriptor) is the keeper's own, and grows by what the guest brings back."""

    def __init__(self, leases: dict[str, int]) -> None:
        self._leases = leases
        self.services: dict[str, Json] = {}  # what the guest last said of each
        self._listener: socket.socket | None = None
        self._guest: socket.socket | None = None
        self._buffer = b""

    @property
    def connected(self) -> bool:
        return self._guest is not None

    def failed(self) -> dict[str, Json]:
        return {name: state for name, state in self.services.items() if state["state"] == "failed"}

    def all_ready(self, wanted: Iterable[str]) -> bool:
        return self.connected and all(self.services.get(name, {}).get("state") == "ready" for name in wanted)

    def listen(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(4)

    def turn(self, others: Iterable[int], timeout: float | None) -> None:
        """Wait for anything to happen, here or on the descriptors of `others`, and take in what the guest says."""
        with selectors.DefaultSelector() as selector:
            for descriptor in others:
                selector.register(descriptor, selectors.EVENT_READ)
            for connection in (self._listener, self._guest):
                if connection is not None:
                    selector.register(connection, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(max(0.0, timeout) if timeout is not None else None)}
        if self._listener in ready and self._listener is not None:
            self._greet(self._listener.accept()[0])
        elif self._guest in ready and self._guest is not None:
            self._hear(self._guest)

    def _greet(self, connection: socket.socket) -> None:
        if self._guest is not None:
            self._guest.close()
        self._guest, self._buffer = connection, b""
        with contextlib.suppress(OSError):  # it went at once; that is heard at its socket's end
            descriptors.send(connection, {"leases": list(self._leases)}, list(self._leases.values()))

    def _hear(self, connection: socket.socket) -> None:
        try:
            data, brought = descriptors.receive(connection)
        except OSError:
            data, brought = b"", []
        if not data:
            connection.close()
            self._guest = None
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = _message(line)
            if "hello" in message:
                self._take_back(message.get("leases", []), brought)
                self.services.update(message.get("services", {}))
            elif "service" in message:
                self.services[str(message.pop("service"))] = message

    def _take_back(self, uuids: list[str], brought: list[int]) -> None:
        for uuid, descriptor in zip(uuids, brought):
            if uuid in self._leases:
                os.close(descriptor)
            else:
                self._leases[uuid] = descriptor


def _message(line: bytes) -> Json:
    """What the guest said; what is no JSON object says nothing (a container's root may write to the socket)."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def answers(guest: Path) -> bool:
    """Whether a guest lives behind its own socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5)
            probe.connect(str(guest))
            probe.sendall(b'{"op": "ping"}\n')
            return b'"ok": true' in probe.recv(4096)
    except OSError:
        return False
