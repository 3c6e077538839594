"""Join this call's stdin and stdout to a socket of a session of the user's, or of one that is shared: a tunnel of last
resort, for transports that cannot forward a unix socket (client/transports/fabric).

After the reply stdin and stdout are the connection's raw bytes, so nothing else may be written: every way out is
os._exit. The end of stdin is passed on; the service's end ends the call, as does a caller that is gone, also
while the service is silent.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.host import door, files, store
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    path = Path(str(call.args.get("socket", "")))
    own = store.Store(call.root).boot_folder()
    if ".." in path.parts or (own not in path.parents and not door.leads(path)):
        raise errors.Usage(f"{path} is not a session's socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            files.connect(connection, path)
        except OSError as error:
            raise errors.NotFound(f"{path.name} does not answer: {error}") from None
        try:
            call.send({"reply": {"connected": True}})
            threading.Thread(target=_send, args=(connection,), daemon=True).start()
            _receive(connection)
        finally:
            os._exit(0)


def _receive(connection: socket.socket) -> None:
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    poller.register(1, 0)  # tells only that nobody reads it any more
    with contextlib.suppress(OSError):
        while 1 not in dict(poller.poll()):
            data = connection.recv(65536)
            if not data:
                return
            while data:
                data = data[os.write(1, data) :]


def _send(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, 65536):
            connection.sendall(data)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
