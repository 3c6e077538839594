"""Commands on a host, each a channel, and the connections that carry them."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable

from mlbox import errors
from mlbox.client.transports.fabric.connection import Connection, told

_KEPT = 16384  # bytes of error output
Dial = Callable[[], "Connection"]


class Pool:
    """Connections to one host, and channels on them; made when they are needed. For any number of threads."""

    def __init__(self, host: str, dial: Dial) -> None:
        self._host, self._dial = host, dial
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._closed = False

    def open(self, command: str) -> Channel:
        """Raises Unreachable."""
        while True:
            connection, fresh = self._take()
            try:
                with told(self._host):
                    return Channel(connection.start(command), connection, self._give_back)
            except errors.MlboxError as error:
                self._refused(connection, error.message)
                if fresh:
                    raise

    def prepare(self) -> None:
        self._give_back(self._take()[0])

    def alive(self) -> bool:
        return any(connection.alive() for connection in list(self._connections))

    def close(self) -> None:
        self._closed = True  # not under the lock: a connection that is being made must not be waited for
        for connection in list(self._connections):
            connection.close("closed")

    def _take(self) -> tuple[Connection, bool]:
        """A connection with room for one channel more, and whether it is new."""
        with self._lock:
            for connection in [each for each in self._connections if not each.alive()]:
                self._connections.remove(connection)
                connection.close()
            free = [each for each in self._connections if each.used < each.room]
            connection = free[0] if free else self._dial()
            if not free:
                self._connections.append(connection)
            if self._closed:
                connection.close()
                raise errors.Unreachable(f"{self._host}: closed")
            connection.used += 1
            return connection, not free

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            connection.used -= 1

    def _refused(self, connection: Connection, why: str) -> None:
        """No channel could be had. Where others run on it, it is full (sshd's MaxSessions); else it is broken."""
        with self._lock:
            connection.used -= 1
            connection.room = connection.used
        if connection.used == 0 or not connection.alive():
            connection.close(why)


class Channel:
    """One command. Its error output is read at once, for it would fill the window that it shares with the rest.

    Where the connection has ended, paramiko raises whatever its transport or its socket just had; wait() tells."""

    def __init__(self, channel: Any, connection: Connection, done: Callable[[Connection], None]) -> None:
        self._channel, self._connection, self._done = channel, connection, done
        self._lock = threading.Lock()
        self._killed = False
        self._said = b""
        self._listener = threading.Thread(target=self._listen, name="fabric-stderr", daemon=True)
        self._listener.start()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                sent = self._channel.send(bytes(view[:32768]))
                if sent == 0:
                    raise EOFError
                view = view[sent:]
        except Exception:  # whatever paramiko's transport had (above)
            raise errors.Unreachable("the connection ended while a request was sent") from None

    def close_input(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.shutdown_write()

    def read(self) -> bytes:
        try:
            data: bytes = self._channel.recv(65536)
        except Exception:  # as in write()
            return b""
        return data

    def wait(self) -> int:
        code = int(self._channel.recv_exit_status())
        self._listener.join()
        return code if code >= 0 else 255

    def errors(self) -> str:
        text = self._said.decode(errors="replace")
        if self._channel.exit_status >= 0 or text.strip():
            return text
        if self._connection.alive():
            return "a signal ended the command"
        return self._connection.why or "the connection ended"

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.close()

    def kill(self) -> None:
        with self._lock:
            if self._killed:
                return
            self._killed = True
        with contextlib.suppress(Exception):
            self._channel.close()
        self._done(self._connection)

    def _listen(self) -> None:
        with contextlib.suppress(Exception):
            while data := self._channel.recv_stderr(65536):
                self._said = (self._said + data)[-_KEPT:]
