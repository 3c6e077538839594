"""JSON lines between mlbox's own processes on this laptop."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from typing import Any

Json = dict[str, Any]


class Talk:
    """One connection; `send` from any thread, `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self._lock = threading.Lock()

    def send(self, message: Json) -> bool:
        """False where the other end is gone."""
        with self._lock:
            try:
                self._sock.sendall(_line(message))
            except OSError:
                return False
        return True

    def offer(self, message: Json) -> None:
        """Without waiting: one who has not read for long (a stopped client) misses it. Where there is room for a part
        of it only (a Mac says "writable" from 2 KiB on), the conversation ends: what followed would be no line."""
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        if not poll.poll(0):
            return
        line = _line(message)
        with self._lock, contextlib.suppress(OSError):
            if self._sock.send(line, socket.MSG_DONTWAIT) < len(line):
                self._sock.shutdown(socket.SHUT_RDWR)  # the thread that receives hears it, and closes

    def receive(self, patience: float | None = None) -> Json | None:
        """The next message; None at the end of the conversation. Raises TimeoutError after `patience` seconds."""
        try:
            self._sock.settimeout(patience)
            while b"\n" not in self._rest:
                data = self._sock.recv(65536)
                if not data:
                    return None
                self._rest += data
        except socket.timeout:
            raise TimeoutError from None
        except OSError:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that receives
        self._sock.close()


def _line(message: Json) -> bytes:
    return json.dumps(message).encode() + b"\n"
