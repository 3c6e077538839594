"""The keeper's end of its line to the guest (guest/link.py has the words): it listens, and the guest dials.

The guest is who says hello in the session's name (host/visitors.py). It gets the GPU leases that the keeper has, and
brings those that it has: a keeper that was adopted into has none of its own.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlbox import descriptors
from mlbox.host import files, lease
from mlbox.host.job import Job
from mlbox.host.visitors import Visitor, Visitors, message

Json = dict[str, Any]
_LONGEST = 1 << 20  # bytes of a line
_MOST = 64  # leases: a host's GPUs


class GuestLink:
    """`leases` (GPU -> descriptor) is the keeper's own, and grows by what the session's guest brings back."""

    def __init__(self, leases: dict[str, int], session: str) -> None:
        self._leases, self._session = leases, session
        self.services: dict[str, Json] = {}  # what the guest last said of each
        self._visitors: Visitors | None = None
        self._guest: socket.socket | None = None
        self._buffer = b""

    @property
    def connected(self) -> bool:
        return self._guest is not None

    def failed(self) -> dict[str, Json]:
        return {name: state for name, state in self.services.items() if state["state"] == "failed"}

    def all_ready(self, wanted: Iterable[str]) -> bool:
        return self.connected and all(self.services.get(name, {}).get("state") == "ready" for name in wanted)

    def let_dial(self, job: Job, wanted: Iterable[str]) -> None:
        """The guest, and what of its services answers by now, can be dialled. Raises OSError."""
        ready = [name for name in wanted if self.services.get(name, {}).get("state") == "ready"]
        for name in [*ready, "guest"] if self.connected else ready:
            if not (job.dialled / f"{name}.sock").exists():
                files.keep_socket(job.sockets / f"{name}.sock", job.dialled)

    def listen(self, path: Path) -> None:
        self._visitors = Visitors(path, self._session)

    def turn(self, others: Iterable[int], timeout: float | None) -> None:
        """Wait for anything to happen, here or on the descriptors of `others`, and take in what the guest says."""
        with selectors.DefaultSelector() as selector:
            for descriptor in others:
                selector.register(descriptor, selectors.EVENT_READ)
            sockets = self._visitors.sockets if self._visitors else ()
            for connection in (*sockets, *((self._guest,) if self._guest else ())):
                selector.register(connection, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(max(0.0, timeout) if timeout is not None else None)}
        came = self._visitors.open(ready) if self._visitors else None
        if came is not None:
            self._greet(came)
        elif self._guest in ready and self._guest is not None:
            self._hear(self._guest)

    def _greet(self, guest: Visitor) -> None:
        if self._guest is not None:
            self._guest.close()
        self._guest, self._buffer = guest.connection, b""
        with contextlib.suppress(OSError):  # it went at once; that is heard at its socket's end
            descriptors.send(guest.connection, {"leases": list(self._leases)}, list(self._leases.values()))
        self._take_in(guest.said, guest.brought)

    def _hear(self, connection: socket.socket) -> None:
        try:
            data, brought = descriptors.receive(connection)
        except OSError:
            data, brought = b"", []
        if not data:
            connection.close()
            self._guest = None
            return
        self._take_in(data, brought)

    def _take_in(self, data: bytes, brought: list[int]) -> None:
        """What is of no form that a guest's words have is passed over: a container's root may say anything."""
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest if len(rest) <= _LONGEST else b""
        for line in lines:
            said = message(line)
            if "hello" in said:
                brought = self._take_back(said.get("leases"), brought)
                services = said.get("services")
                for name, state in services.items() if isinstance(services, dict) else ():
                    self._note(name, state)
            elif "service" in said:
                self._note(said.pop("service"), said)
        for descriptor in brought:
            os.close(descriptor)

    def _note(self, name: object, state: object) -> None:
        if isinstance(name, str) and isinstance(state, dict) and isinstance(state.get("state"), str):
            why = {"why": str(state.get("why", ""))} if state["state"] == "failed" else {}
            self.services[name] = {**state, **why}

    def _take_back(self, uuids: object, brought: list[int]) -> list[int]:
        """The descriptors that are no lease, or one that is here already."""
        left = list(brought)
        for uuid, descriptor in zip(uuids if isinstance(uuids, list) else (), brought):
            if isinstance(uuid, str) and lease.is_name(uuid) and uuid not in self._leases and len(self._leases) < _MOST:
                self._leases[uuid] = descriptor
                left.remove(descriptor)
        return left


def answers(guest: Path) -> bool:
    """Whether a guest lives behind its own socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5)
            files.connect(probe, guest)
            probe.sendall(b'{"op": "ping"}\n')
            return b'"ok": true' in probe.recv(4096)
    except OSError:
        return False
