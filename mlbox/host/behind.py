"""What is behind a shared session's door (host/sharing.py): the session on this host, or the end of its reverse tunnel.

Here   kept by the session's keeper     its sockets, its files
Far    kept by the tunnel's end at      the tunnel's sockets; what only the session's own host knows is asked there,
       a rendezvous                     as the owner's laptop asks it (handlers/relay.py)
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable, Protocol, TypeVar

from mlbox import errors
from mlbox.core import reverse, sharing, wire
from mlbox.host import files, here, store
from mlbox.host.job import Job

Json = dict[str, Any]
T = TypeVar("T")
_PATIENCE = 10.0  # s in which the session's own host has answered
_LONGEST = 1 << 20  # bytes of its answer
_FACTS = ("name", "gpus", "image", "runtime", "since")
KEYS, VIA_KEYS = "shared_keys", "via_keys"  # beside the owner's, for the session's sshd (guest/ssh.py)


class Behind(Protocol):
    @property
    def services(self) -> tuple[str, ...]: ...

    def way(self, service: str) -> Path:
        """Its socket here."""

    def facts(self) -> Json:
        """What a list shows of the session."""

    def entry(self, keys: Iterable[str]) -> Json:
        """What it takes to reach it, but for sockets; from now on its sshd takes these keys of colleagues."""

    def put_keys(self, keys: Iterable[str]) -> None:
        """These of colleagues', and no others. Raises OSError, MlboxError."""

    def logs(self) -> dict[str, str]: ...


class Here:
    """`reach`: session.json, what it takes to reach the session."""

    def __init__(self, job: Job, reach: Mapping[str, Any]) -> None:
        self._job, self._reach = job, reach
        self.services = (*reach["services"], sharing.GUEST)

    def way(self, service: str) -> Path:
        return self._job.sockets / f"{service}.sock"

    def facts(self) -> Json:
        known = {word: self._reach.get(word) for word in _FACTS}
        return {**known, "trouble": files.read_json(self._job.conf / "trouble.json") or {}}

    def entry(self, keys: Iterable[str]) -> Json:
        self.put_keys(keys)
        return _entry(self._reach)

    def put_keys(self, keys: Iterable[str]) -> None:
        put_keys(self._job.conf / KEYS, keys)

    def logs(self) -> dict[str, str]:
        return files.tails(self._job.logs)


class Far:
    """`services`: as the tunnel brings them."""

    def __init__(self, found: store.Store, job: Job, services: Iterable[str]) -> None:
        self._found, self._job = found, job
        self.services = tuple(name for name in services if name != reverse.CALL)

    def way(self, service: str) -> Path:
        return here.boot_folder() / reverse.lasting(self._job.id, service)

    def facts(self) -> Json:
        from mlbox.host.handlers.sessions import describe  # a rendezvous where nobody shares pays nothing for it

        told = describe(self._job)
        return {word: told[word] for word in _FACTS}

    def entry(self, keys: Iterable[str]) -> Json:
        return self._ask("share", {"keys": list(keys)}, lambda reply: _entry(reply["session"]))

    def put_keys(self, keys: Iterable[str]) -> None:
        self.entry(keys)

    def logs(self) -> dict[str, str]:
        return self._ask("sessions", {"logs": True}, lambda reply: dict(reply["logs"]))

    def _ask(self, verb: str, args: Json, take: Callable[[Json], T]) -> T:
        """What `take` has of the reply. Raises OSError and MlboxError: whatever answers is not believed to be mlbox."""
        known = {"session": self._job.id, "root": str(self._found.root)}
        request = wire.Request(verb, {**known, **args}, os.urandom(8).hex())
        try:
            return take(_answer(self.way(reverse.CALL), request))
        except errors.Refused as error:  # its `share` is a person's word still
            raise errors.HostUnready(f"an older mlbox started it: {error.message}", "start it anew") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise errors.Unreachable("what answers at the other end of its tunnel is no mlbox") from None


def _answer(path: Path, request: wire.Request) -> Json:
    reader, taken, deadline = wire.MessageReader(request.nonce), 0, time.monotonic() + _PATIENCE
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(str(path))
        connection.sendall(request.encode())
        while taken <= _LONGEST:
            if (left := deadline - time.monotonic()) <= 0:  # however steadily it comes
                raise TimeoutError(f"it has not answered within {_PATIENCE:.0f} s")
            connection.settimeout(left)
            data = connection.recv(65536)
            if not data:
                break
            taken += len(data)
            for message in reader.feed(data):
                if "error" in message:
                    raise wire.decode_error(message["error"])
                if "reply" in message:
                    return dict(message["reply"])
    raise errors.Unreachable("the reverse tunnel broke during the call", "again in a moment")


def put_keys(path: Path, keys: Iterable[str]) -> None:
    """What a session's sshd takes beside its owner's keys. Where a disk is too full to say which, it is none."""
    content = "".join(f"{key}\n" for key in keys).encode()
    try:
        if files.content(path) != content:
            files.write_whole(path, content)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _entry(reach: Mapping[str, Any]) -> Json:
    services = {
        name: {word: value for word, value in facts.items() if word != "socket"}
        for name, facts in reach["services"].items()
    }
    return {"services": services, "absent": reach.get("absent", {}), "guest_key": reach.get("guest_key", "")}
