"""The guest's line to its keeper: a unix socket, JSON lines, and the GPU leases as descriptors.

    guest -> keeper   {"hello": session, "leases": [uuid…], "services": {…}}   with the lease descriptors it has
    keeper -> guest   {"leases": [uuid…]}                                      with the descriptors it has
    guest -> keeper   {"service": name, "state": "ready|failed|absent", …}     as things happen

Both ends keep the descriptors, so a lease lasts until both are gone; a keeper that was killed gets them
back from the guest when its successor asks. The guest dials again for as long as it lives.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

from mlbox import descriptors

Json = dict[str, Any]
_PATIENCE = 60.0  # s without any keeper before the first hello: nobody acknowledged this session


class KeeperLink:
    def __init__(self, path: Path, session: str) -> None:
        self._path, self._session = path, session
        self._leases: dict[str, int] = {}
        self._said: dict[str, Json] = {}
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        self._met = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="keeper-link", daemon=True).start()

    def say(self, service: str, state: Json) -> None:
        with self._lock:
            self._said[service] = state
            if self._connection is not None:
                try:
                    descriptors.send(self._connection, {"service": service, **state})
                except OSError:
                    self._connection = None  # the reader notices too, and dials again

    def _run(self) -> None:
        pause, waited = 0.1, 0.0
        while True:
            try:
                self._talk()
                pause = 0.1
            except OSError:  # there is no keeper just now
                pass
            if not self._met and waited > _PATIENCE:
                os.kill(os.getpid(), 15)
                return
            threading.Event().wait(pause)
            waited += pause
            pause = min(pause * 2, 2.0)

    def _talk(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self._path))
            with self._lock:
                hello = {"hello": self._session, "leases": list(self._leases), "services": self._said}
                descriptors.send(connection, hello, list(self._leases.values()))
                self._connection = connection
            rest: bytes = b""
            brought: list[int] = []
            try:
                while True:
                    data, came = descriptors.receive(connection)
                    if not data:
                        return
                    brought += came
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line), brought)
                        brought = []
            finally:
                with self._lock:
                    self._connection = None

    def _take(self, message: Json, brought: list[int]) -> None:
        self._met = True
        for uuid, descriptor in zip(message.get("leases", []), brought):
            if uuid in self._leases:
                os.close(descriptor)
            else:
                self._leases[uuid] = descriptor
