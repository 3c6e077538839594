"""Unix sockets of one process for which one thread accepts."""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlbox import errors

PATIENCE = 5.0  # s for a first word to come
_KEEP_YOUNG = 6 * 3600.0  # s; systems that clean /tmp by age look at least that rarely
_BREATH = 0.2  # s; after an accept that failed, for it would fail at once again

Act = Callable[[socket.socket], None]
"""With an accepted connection, in the accepting thread: it is quick, and sees that the connection is closed."""


class Listeners:
    """`young`: is called now and then, to keep what belongs to the sockets from being cleaned up by age."""

    def __init__(self, name: str, young: Callable[[], None]) -> None:
        self._young = young
        self._selector = selectors.DefaultSelector()
        self._stop_r, self._stop_w = os.pipe()
        self._selector.register(self._stop_r, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, path: Path, act: Act, mode: int) -> socket.socket:
        """Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            os.chmod(path, mode)
            listener.listen(128)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._selector.register(listener, selectors.EVENT_READ, act)
        return listener

    def remove(self, listener: socket.socket) -> None:
        """With its name. By the accepting thread, or before it was started."""
        self._selector.unregister(listener)
        with suppress(OSError):
            os.unlink(listener.getsockname())
        listener.close()

    def stop(self) -> None:
        """Nobody is accepted any more; the names stay."""
        if self._thread.is_alive():
            os.write(self._stop_w, b"x")
            self._thread.join()
        for key in self._selector.get_map().values():
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        for descriptor in (self._stop_r, self._stop_w):
            os.close(descriptor)

    def _run(self) -> None:
        due = time.monotonic() + _KEEP_YOUNG
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                if key.fileobj == self._stop_r:
                    return
                _accept(key)
            if time.monotonic() >= due:
                due += _KEEP_YOUNG
                with suppress(OSError):
                    self._young()


def _accept(key: selectors.SelectorKey) -> None:
    assert isinstance(key.fileobj, socket.socket)
    try:
        connection, _ = key.fileobj.accept()
    except (OSError, ValueError):  # gone again; or it was closed by what was done just before
        threading.Event().wait(_BREATH)
        return
    connection.settimeout(PATIENCE)
    try:
        key.data(connection)
    except (OSError, RuntimeError, errors.MlboxError) as error:  # RuntimeError: no thread to be had
        print(f"{threading.current_thread().name}: {error}", file=sys.stderr)
        connection.close()
