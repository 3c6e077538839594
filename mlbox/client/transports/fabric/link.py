"""A tunnel, as a last resort: per connection to a local unix socket one channel to the host part's `connect`."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import secrets
import select
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

from mlbox import errors
from mlbox.client import remote, state
from mlbox.client.transports.fabric.channel import Channel, Pool
from mlbox.client.tunnels.link import PATH_LIMIT, POLITE
from mlbox.core import wire

_MISSING = 97  # remote._run_command: the host part is not there


class FabricLink:
    """Local sockets whose connections each run `connect` on the host (see Link)."""

    def __init__(self, pool: Pool, forwards: Mapping[str, str], folder: Path, generation: int) -> None:
        self._pool, self._forwards, self._folder = pool, dict(forwards), folder
        self._paths = {name: str(folder / f"{generation}-{name}") for name in forwards}
        for path in self._paths.values():
            if len(os.fsencode(path)) > PATH_LIMIT:
                raise errors.MlboxError(f"{path} is too long for a socket ({PATH_LIMIT} bytes)", "use a shorter folder")
        self._lines: collections.deque[str] = collections.deque(maxlen=20)
        self._wake, self._woken = socket.socketpair()
        self._first, self._planted = threading.Lock(), False
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="fabric-link", daemon=True)
        self._ended: Callable[[], None] = lambda: None

    def start(self, ended: Callable[[], None]) -> None:
        state.private(self._folder)
        self._ended = ended
        self._thread.start()

    def ready(self) -> bool:
        return self._ready.is_set()

    def path(self, service: str) -> str:
        return self._paths[service]

    def handover(self, service: str) -> tuple[str, str] | None:
        return None

    def alive(self) -> bool:
        return self._thread.ident is not None and not self._over.is_set()

    def close(self) -> None:
        self._over.set()
        self._wake.close()
        self._pool.close()
        if self._thread.ident is not None:
            self._thread.join(POLITE)  # one that is being connected ends by itself, a little later

    def stderr(self) -> str:
        return "\n".join(self._lines)

    def _live(self) -> None:
        try:
            self._pool.prepare()
            self._accept()
        except errors.MlboxError as error:
            self._lines.append(error.message)
        except OSError as error:
            self._lines.append(str(error))
        finally:
            self._over.set()
            self._pool.close()
            self._ended()

    def _accept(self) -> None:
        with contextlib.ExitStack() as stack:
            listeners = {stack.enter_context(self._listen(name)): name for name in self._paths}
            for path in self._paths.values():
                stack.callback(Path(path).unlink, missing_ok=True)
            self._ready.set()
            while not self._over.is_set() and self._pool.alive():
                # Looked at every half second: paramiko tells nobody that a connection has ended.
                for listener in select.select([*listeners, self._woken], [], [], 0.5)[0]:
                    if listener is not self._woken:
                        local, _ = listener.accept()
                        arguments = (local, self._forwards[listeners[listener]])
                        threading.Thread(target=self._serve, args=arguments, name="fabric-splice", daemon=True).start()
            if not self._over.is_set():
                self._lines.append("the connection ended")

    def _listen(self, name: str) -> socket.socket:
        path = Path(self._paths[name])
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        return listener

    def _serve(self, local: socket.socket, path: str) -> None:
        with local:
            try:
                channel, first = self._connect(path)
            except errors.MlboxError as error:
                self._lines.append(error.message)
                return
            sender = threading.Thread(target=_send, args=(local, channel), name="fabric-splice", daemon=True)
            sender.start()
            with contextlib.suppress(OSError):
                local.sendall(first)
                while data := channel.read():
                    local.sendall(data)
            channel.kill()
            with contextlib.suppress(OSError):
                local.shutdown(socket.SHUT_RDWR)  # wakes the sender; what was sent stays readable
            sender.join()

    def _connect(self, path: str) -> tuple[Channel, bytes]:
        """A channel joined to the socket at `path`, and what it has said already.

        Until one has been, one at a time: where the host part is missing a command ends before it has read its request,
        and paramiko may send on a channel that is just being closed, for which sshd ends the whole connection."""
        with contextlib.nullcontext() if self._planted else self._first:
            joined = self._join(path)
            self._planted = True
        return joined

    def _join(self, path: str) -> tuple[Channel, bytes]:
        part = remote.host_part()
        name = f"mlbox-{hashlib.sha256(part).hexdigest()}.pyz"
        request = wire.Request("connect", {"socket": path}, secrets.token_hex(8))
        code, said = 0, ""
        for command, before in ((remote._run_command(name), b""), (remote._plant_command(len(part), name), part)):
            channel = self._pool.open(command)
            try:
                with contextlib.suppress(errors.Unreachable):  # the exit code says more
                    channel.write(before + request.encode())
                found = _connected(channel, request.nonce)
            except BaseException:  # however it ends, its command does not stay
                channel.kill()
                raise
            if found is not None:
                return channel, found
            code, said = channel.wait(), channel.errors()
            channel.kill()
            if code != _MISSING:
                break
        raise errors.Unreachable(f"connect ended with exit code {code}: {said.strip()[-400:]}")


def _connected(channel: Channel, nonce: str) -> bytes | None:
    """Read up to the reply; what came after it in the same block belongs to the service. None: no reply came."""
    reader, rest = wire.MessageReader(nonce), b""
    while data := channel.read():
        rest += data
        while b"\n" in rest:
            line, _, rest = rest.partition(b"\n")
            for message in reader.feed(line + b"\n"):
                if "error" in message:
                    raise wire.decode_error(message["error"])
                if "reply" in message:
                    return rest
    return None


def _send(local: socket.socket, channel: Channel) -> None:
    with contextlib.suppress(OSError, errors.Unreachable):
        while data := local.recv(65536):
            channel.write(data)
    channel.close_input()
