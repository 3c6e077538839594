"""Calling the host part: one request, a stream of progress, one reply; it is planted where it is missing.

    cached    sh: run mlbox-<sha>.pyz, or exit 97 where it is not there      one trip
    planted   python: read the file from stdin, check, rename, run it        one trip, with 0.3 MB up

Which of the two is tried first comes from a note of what was planted where; a wrong note costs one trip.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pkgutil
import shlex
from typing import Any, Callable

from mlbox import errors
from mlbox.client import output, state, transports
from mlbox.client.silence import Silence
from mlbox.client.transports import Channel, Transport
from mlbox.core import wire

Json = dict[str, Any]
OnProgress = Callable[[Json], None]

_MISSING, _TOO_OLD, _NO_PYTHON = 97, 95, 127
_SLOWEST = 8192.0  # bytes/s at which the host part may still arrive
_FOLDER = '"${XDG_CACHE_HOME:-$HOME/.cache}/mlbox'
# Read exactly the file from stdin (the request follows it), and become it.
_PLANT = """
import hashlib, os, sys
size, name = int(sys.argv[2]), sys.argv[3]
base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
folder = os.path.join(base, "mlbox")
data = bytearray()
while len(data) < size:
    block = os.read(0, min(1 << 16, size - len(data)))
    if not block: sys.exit(98)
    data += block
if hashlib.sha256(data).hexdigest() != name[6:-4]: sys.exit(98)
path = os.path.join(folder, name)
temporary = "%s.%d" % (path, os.getpid())
try:
    os.makedirs(folder, 0o700, exist_ok=True)
    with open(temporary, "wb") as file:
        file.write(data); file.flush(); os.fsync(file.fileno())
    os.rename(temporary, path)
except OSError as error:
    if os.path.exists(temporary): os.unlink(temporary)
    sys.stderr.write("%s: %s\\n" % (folder, error.strerror)); sys.exit(98)
os.execv(sys.executable, [sys.executable, "-I", "-S", path, "host"])
"""


def host_part() -> bytes:
    """The small file for hosts that this mlbox carries."""
    try:
        found = pkgutil.get_data("mlbox", "_host.pyz")
    except OSError:
        found = None
    if not found:
        raise errors.MlboxError("this copy of mlbox carries no host part", "in a checkout: make pyz")
    return found


class Interrupted(KeyboardInterrupt):
    """^C came while a reply was on its way: `reply` is what the host had done by then, None where it undid all."""

    def __init__(self, reply: Json | None) -> None:
        super().__init__()
        self.reply = reply


def connect(name: str, config: state.Config, root: str = "") -> Host:
    """A host by the name that the user calls it; `root` where a session remembers another than the configured one."""
    return Host(transports.make(name, config), root or config.root, config.dry_run)


class Host:
    """One host, and the calls made to it. `root`: mlbox's folder there, where it is not the default. `dry`: a call says
    what it would do, and nothing is changed by it."""

    def __init__(self, transport: Transport, root: str = "", dry: bool = False) -> None:
        self.transport = transport
        self.name = transport.host
        self.via = ""  # the rendezvous, where it can't be dialled itself
        self.root, self.dry = root, dry

    def call(self, verb: str, args: Json, on_progress: OnProgress | None = None) -> Json:
        """The reply. Raises the error that the host replied, Unreachable, or HostUnready.

        What is raised while waiting (^C, or by `on_progress`) goes on only after the host was told that nobody
        waits, and has undone what it began; ^C becomes Interrupted."""
        with contextlib.nullcontext() if on_progress else output.Progress(f"asking {self.name}"):
            return self._call(verb, self._whole(args), on_progress)

    def _whole(self, args: Json) -> Json:
        return {**args, "root": self.root, **({"dry_run": True} if self.dry else {})}

    def _call(self, verb: str, args: Json, on_progress: OnProgress | None) -> Json:
        part = host_part()
        name = f"mlbox-{hashlib.sha256(part).hexdigest()}.pyz"
        planted = state.load("hosts.json").get(self.name, {}).get("planted") == name
        reply = self._try(_run_command(name), b"", verb, args, on_progress) if planted else None
        if reply is None:
            reply = self._try(_plant_command(len(part), name), part, verb, args, on_progress)
            if reply is None:
                raise errors.HostUnready(
                    f"mlbox's host part can't be kept on {self.name}", "is ~/.cache on it writable, and not full?"
                )
            state.update("hosts.json", self.name, {"planted": name})
        return reply

    def _try(self, command: str, before: bytes, verb: str, args: Json, on_progress: OnProgress | None) -> Json | None:
        """None: the host part was not there."""
        request = wire.Request(verb, args, os.urandom(8).hex())
        channel = self.transport.open(command)
        reader = wire.MessageReader(request.nonce)
        silence = Silence(self.name, _teller(on_progress), channel.stop, len(before) / _SLOWEST)
        try:
            try:
                with contextlib.suppress(errors.Unreachable):  # the exit code says more than a broken pipe
                    channel.write(before + request.encode())
                reply = _await_reply(channel, reader, on_progress, silence)
            except KeyboardInterrupt:
                raise Interrupted(_undone(channel, reader)) from None
            except BaseException:  # on_progress may raise anything: the host hears first that nobody waits
                _undone(channel, reader)
                raise
            if reply is not None:
                return reply
            if silence.given_up:
                raise silence.error()
            code = channel.wait()
            if code == _MISSING:
                return None
            raise self._failure(code, channel.errors(), reader.noise.decode(errors="replace"))
        finally:
            silence.heard()
            channel.kill()

    def _failure(self, code: int, stderr: str, noise: str) -> errors.MlboxError:
        if code == _TOO_OLD:
            found = noise.strip().splitlines()[-1] if noise.strip() else "older"
            return errors.HostUnready(
                f"python3 on {self.name} is {found}; mlbox needs 3.9 or newer",
                "install a newer python3, first in the PATH of non-interactive logins",
            )
        if code == _NO_PYTHON or (code == 126 and "python3" in stderr):
            return errors.HostUnready(f"there is no python3 on {self.name}", "install python3 (3.9 or newer)")
        if code == 255:
            return self.transport.failure(code, stderr)
        tail = "\n".join(stderr.strip().splitlines()[-6:])
        if "No space left" in stderr or code == 98:
            return errors.HostUnready(
                f"{self.name}: the host part could not be kept ({tail or 'it did not arrive whole'})",
                f"is there room in ~/.cache on {self.name}, and may you write to it?",
            )
        return errors.MlboxError(
            f"{self.name}: the host part ended with exit code {code}", tail or noise.strip()[-400:]
        )


class OutOfReach(Host):
    """The host of a session that can't be dialled: its tunnel ends at a rendezvous, and so do our ssh's.

    What it alone knows is asked through that tunnel; what the share tells is asked of the rendezvous."""

    def __init__(self, name: str, session: str, rendezvous: Host) -> None:
        super().__init__(rendezvous.transport, rendezvous.root, rendezvous.dry)
        self.name, self.via = name, rendezvous.name
        self._session, self._rendezvous = session, rendezvous

    def call(self, verb: str, args: Json, on_progress: OnProgress | None = None) -> Json:
        if verb in ("shutdown", "share"):  # also where the tunnel is down; and colleagues come there
            return self._rendezvous.call(verb, {**args, "session": self._session}, on_progress)
        relayed = {"session": self._session, "verb": verb, "args": self._whole(args)}
        return self._rendezvous.call("relay", relayed, on_progress)


def of_session(session: Json, config: state.Config) -> Host:
    """How a session's host is reached: `host`, `root`, and where that can't be dialled `via`, a rendezvous."""
    via, root = str(session.get("via", "")), str(session.get("root", ""))
    if via:
        return OutOfReach(str(session["host"]), str(session["id"]), connect(via, config, root))
    return connect(str(session["host"]), config, root)


def _teller(on_progress: OnProgress | None) -> Callable[[str], None]:
    if on_progress is None:
        return lambda words: output.note(f"  {words}")
    return lambda words: on_progress({"text": words})


def _await_reply(
    channel: Channel, reader: wire.MessageReader, on_progress: OnProgress | None, silence: Silence | None = None
) -> Json | None:
    while True:
        data = channel.read()
        if not data:
            return None
        for message in reader.feed(data):
            if silence is not None:
                silence.heard()
            if "reply" in message:
                return dict(message["reply"])
            if "error" in message:
                raise wire.decode_error(message["error"])
            if on_progress is not None and message.get("progress"):
                on_progress(message["progress"])


def _undone(channel: Channel, reader: wire.MessageReader) -> Json | None:
    """Tell the host that nobody waits; its reply if it was done before that, None when it has undone all."""
    channel.close_input()
    with contextlib.suppress(errors.MlboxError):  # "stopped before it was ready": just what was asked for
        return _await_reply(channel, reader, None)
    return None


def _run_command(name: str) -> str:
    script = f'f={_FOLDER}/{name}"; [ -r "$f" ] || exit {_MISSING}; exec python3 -I -S "$f" host'
    return f"exec sh -c '{script}'"


def _plant_command(size: int, name: str) -> str:
    """The program travels as hexadecimal: no quoting for any login shell to get wrong."""
    refuse = f"(sys.stdout.write(sys.version.split()[0] + chr(10)), sys.stdout.flush(), sys.exit({_TOO_OLD}))"
    program = f"import sys; sys.version_info < (3, 9) and {refuse}; exec(bytes.fromhex(sys.argv[1]))"
    script = f'exec python3 -c "{program}" {_PLANT.encode().hex()} {size} {shlex.quote(name)}'
    return f"exec sh -c '{script}'"
