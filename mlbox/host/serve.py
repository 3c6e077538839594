"""The host's end of the boundary (core/wire.py): one request on stdin, one reply on stdout, then gone."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import text, wire
from mlbox.host import here, watchdog

Json = dict[str, Any]

# A verb is a file in host/handlers with `def run(call: Call) -> Json`.
HANDLERS = {
    "session": "session",
    "sessions": "sessions",
    "shutdown": "shutdown",
    "share": "share",
    "status": "status",
    "doctor": "doctor",
    "connect": "connect",
    "init": "init",
    "submit": "submit",
    "jobs": "jobs",
    "show": "show",
    "logs": "logs",
    "cancel": "cancel",
    "retry": "retry",
    "move": "move",
    "prune": "prune",
    "queue": "queue",
    "cron": "cron",
    "host": "host",
    "tick": "tick",
    "wait": "wait",
    "images": "images",
    "relay": "relay",
    "rendezvous": "rendezvous",
}
_WITHOUT_ROOT = ("connect",)  # after its reply stdout is the connection's


class Call:
    """One request as its handler sees it."""

    def __init__(self, request: wire.Request) -> None:
        self.args = request.args
        self._nonce = request.nonce

    def progress(self, **facts: Any) -> None:
        self.send({"progress": facts})

    def send(self, message: Json) -> None:
        data = wire.encode_message(self._nonce, message)
        while data:
            data = data[os.write(1, data) :]

    def hung(self, message: str) -> None:
        hint = "what was asked for may be done when it answers again: mlbox jobs, mlbox session list"
        self.send(wire.encode_error(errors.HostUnready(f"{os.uname().nodename}: {message}", hint)))

    @property
    def root(self) -> Path | None:
        """The lab's ROOT where the caller named one. Raises Usage for one that is another in each place: what goes on
        after the call has its own."""
        root = self.args.get("root")
        if not isinstance(root, str) or not root:
            return None
        path = Path(os.path.expanduser(root))
        if not path.is_absolute():
            raise errors.Usage(f"{text.safe(root)} is no folder of every host's", "name it from its root: /…, or ~/…")
        return path

    @property
    def dry(self) -> bool:
        """The reply is to say what would be done, and nothing is to be changed."""
        return self.args.get("dry_run") is True


def read_request() -> wire.Request:
    """One line of stdin, unbuffered: what follows it belongs to the handler."""
    line = bytearray()
    while not line.endswith(b"\n"):
        block = os.read(0, 65536)
        if not block:
            raise errors.Usage("no request came")
        line += block
        if len(line) > wire.MAX_REQUEST:
            raise errors.Usage("the request is too large", f"at most {wire.MAX_REQUEST >> 20} MiB")
    return wire.decode_request(bytes(line))


def main(verbs: Collection[str] = HANDLERS.keys()) -> int:
    call = Call(wire.Request(""))
    try:
        request = read_request()
        call = Call(request)
        if request.verb not in verbs:
            raise errors.Usage(f"this host's mlbox knows no {request.verb!r}")
        if request.verb not in _WITHOUT_ROOT:
            watchdog.watch((str(call.root or here.data_home()), watchdog.own_folder()), call.hung)
        call.progress()  # a sign of life: from here on it says itself what hangs
        touch(sys.argv[0])
        handler = importlib.import_module(f"mlbox.host.handlers.{HANDLERS[request.verb]}")
        call.send({"reply": handler.run(call)})
    except errors.MlboxError as error:
        call.send(wire.encode_error(error))
    except BrokenPipeError:
        return 1
    except OSError as error:
        from mlbox.host import os_error  # only such a failure pays for it

        call.send(wire.encode_error(os_error.told(os.uname().nodename, error)))
        return 1
    except Exception as error:  # the boundary: a bug must reach the person as a message, not as a dead connection
        import traceback  # only a bug pays for it

        traceback.print_exc(file=sys.stderr)
        bug = f"a bug in mlbox on {os.uname().nodename}: {type(error).__name__}: {error}"
        call.send(wire.encode_error(errors.Bug(bug, traceback.format_exc())))
        return 1
    return 0


def touch(program: str) -> None:
    """Its last use, by which `mlbox image prune` goes."""
    with suppress(OSError):
        os.utime(program)
