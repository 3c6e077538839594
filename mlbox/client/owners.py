"""Who holds a session's tunnels on this laptop: at most one process for each session (client/holder.py).

<runtime>/t0123456789/   named by the session's id; its owner holds a kernel lock on the folder for as long as it lives
    owner.json           what `mlbox tunnels list` shows
    control              a unix socket: what the others of this user ask of the owner
    1-jupyter, …         the links' sockets

A folder that nobody has locked is a killed owner's: whoever comes next removes it, and ends the ssh that leads there,
which outlives its owner where no system ends it too (tunnels/link.py). The lock is on the folder itself because
systemd-tmpfiles, which empties /tmp by age, leaves locked folders alone. macOS's cleaner knows no locks, but sockets:
the note is written anew before it is old enough to go.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.client import state
from mlbox.client.talk import Talk
from mlbox.core import wire

Json = dict[str, Any]
_KILL_AFTER = 5.0  # s that an owner gets to end by itself
_END = 20.0  # s


@dataclass(frozen=True)
class Owner:
    """As the owner last wrote it. state: connecting, up or reconnecting (`why`); since: of that state, Unix time.
    barred: the host refuses a login at which nobody can be asked."""

    session: str
    name: str
    host: str
    pid: int
    ports: dict[str, int]
    extra: dict[str, int]  # port inside -> port here
    state: str = "connecting"
    since: float = 0.0
    why: str = ""
    background: bool = False
    barred: bool = False
    folder: str = field(default="", compare=False)

    def write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the note, not the tunnels
            state.write(Path(self.folder) / "owner.json", json.dumps(asdict(self)))


def folder_of(session: str) -> Path:
    return state.runtime() / f"t{session[-10:].lower()}"


def take(session: str) -> tuple[Path, int] | None:
    """The session's folder, empty, and the descriptor whose lock makes it ours; None where another one has it."""
    folder = folder_of(session)
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = _lock(folder)
        except FileNotFoundError:  # a sweep was faster
            continue
        if descriptor is None:
            return None
        if _is_at(descriptor, folder):
            _clear(folder)
            return folder, descriptor
        os.close(descriptor)


def give_up(folder: Path) -> None:
    """Leave nothing. The lock itself goes with the process, or with its descriptor."""
    _empty(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


def sweep() -> None:
    """Remove what killed owners left."""
    with contextlib.suppress(errors.MlboxError, OSError):  # the next one does it
        living()


def living() -> list[Owner]:
    """All of this user's owners here, by age of their sessions."""
    found = []
    for folder in state.tunnel_folders():
        try:
            descriptor = _lock(folder)
        except OSError:  # no folder, or gone already
            continue
        if descriptor is None:
            owner = _read(folder)
            found += [owner] if owner else []
            continue
        if _is_at(descriptor, folder):
            _clear(folder)
            give_up(folder)
        os.close(descriptor)
    return sorted(found, key=lambda owner: owner.session)


def named(wanted: str) -> Owner:
    """By a session's name or id; no text at all means the only one. Raises NotFound."""
    owners = living()
    found = [owner for owner in owners if wanted in ("", owner.name, owner.session)]
    if len(found) == 1:
        return found[0]
    if found:
        those = ", ".join(f"{owner.name} on {owner.host} ({owner.session})" for owner in found)
        raise errors.Several(f"{len(found)} sessions have tunnels here: {those}", "say which, by its id")
    names = ", ".join(owner.name for owner in owners)
    hint = f"there are tunnels to: {names}" if names else "mlbox session attach NAME brings them up"
    raise errors.NotFound(f"no tunnels to {wanted or 'a session'} are up on this machine", hint)


def check_port(owner: Owner, inside: int) -> None:
    """Raises NotFound where that port of the session is not here."""
    if str(inside) not in owner.extra:
        raise errors.NotFound(f"port {inside} of {owner.name} has no tunnel", "mlbox port list")


def converse(session: str) -> Talk | None:
    """A line to the session's owner, if one listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(folder_of(session) / "control"))
    except OSError:
        sock.close()
        return None
    return Talk(sock)


def ask(owner: Owner, op: str, patience: float = 20.0, **arguments: Any) -> Json:
    """One question; the reply. Raises what the owner raised."""
    talk = converse(owner.session)
    try:
        reply = talk.receive(patience) if talk is not None and talk.send({"op": op, **arguments}) else None
    except TimeoutError:
        reply = None
    finally:
        if talk is not None:
            talk.close()
    return answer(reply, owner.name)


def answer(reply: Json | None, name: str) -> Json:
    """What a reply says, as a value or as the error that it is."""
    if reply is None:
        hint = f"mlbox tunnels stop {name} ends it; mlbox session attach {name} starts anew"
        raise errors.MlboxError(f"the process that holds the tunnels to {name} does not answer", hint)
    if "error" in reply:
        raise wire.decode_error(reply["error"])
    return dict(reply["reply"])


def end(owner: Owner, kind: str, why: str) -> None:
    """Have it end (kind: `stopped` or `ended`, as its clients will hear), and wait for that. One that does not hear is
    killed: while its lock is held, its pid is its own."""
    with contextlib.suppress(errors.MlboxError):
        ask(owner, "end", _KILL_AFTER, kind=kind, why=why)
    ending = _until_end(owner.session)
    ending.join(_KILL_AFTER)
    if ending.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGKILL)
        ending.join(_END)
    living()


def await_end(session: str, patience: float = _END) -> bool:
    """Until the kernel frees its owner's lock; False where it does not in time."""
    ending = _until_end(session)
    ending.join(patience)
    return not ending.is_alive()


def _until_end(session: str) -> threading.Thread:
    """It lives until then. For a moment it has the lock itself, and who looks just then takes that for an owner's: one
    is joined again, rather than another one begun beside it."""

    def wait() -> None:
        with contextlib.suppress(OSError):  # its folder is gone already
            descriptor = os.open(folder_of(session), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    return waiter


def _lock(folder: Path) -> int | None:
    """A descriptor with the folder's lock; None where somebody has it. Close-on-exec, so that no child keeps it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except OSError:
        return False


def _clear(folder: Path) -> None:
    """What a killed owner left. We have the lock, so whatever forwards to sockets in there was that one's."""
    if any(folder.iterdir()):
        for pid in _forwarding_to(folder):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        _empty(folder)


def _forwarding_to(folder: Path) -> list[int]:
    """Processes of ours by their arguments, for a pid that was noted might be another's by now."""
    argv = ("ps", "-ww", "-u", str(os.getuid()), "-o", "pid=", "-o", "args=")
    try:
        lines = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True).stdout.splitlines()
    except OSError:  # a small Linux without ps
        return []
    return [int(line.split()[0]) for line in lines if f" -L {folder}/".encode() in line]


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _read(folder: Path) -> Owner | None:
    """None where it has just begun, or is about to be gone."""
    try:
        return Owner(**{**json.loads((folder / "owner.json").read_text()), "folder": str(folder)})
    except (OSError, ValueError, TypeError):
        return None
