"""GPU leases: a kernel lock (flock) per GPU on its own host.

    /tmp/mlbox-leases/<uuid>                 the lock file, any user's, never removed
    /tmp/mlbox-leases/<uuid>.<uid>           who took it last, for display; believed only while the lock is held
    /tmp/mlbox-leases/<uuid>.share.<job>     one job's share of the GPU, locked as long as the job lives; its MiB
    /tmp/mlbox-leases/layer-<key>            who uses a layer (host/uses.py)
    /tmp/mlbox-leases/edit                   who changes lab.yaml (host/edit.py)
    /tmp/mlbox-leases/choosing               held while somebody chooses and takes, so that two don't both find
                                             room for their share

The lock belongs to an open file description. The keeper opens it, and passes the descriptor on to the
session's guest (SCM_RIGHTS, or by inheritance), so the GPU is free only when both are gone: a killed
keeper does not free a GPU that its container still uses, and a crash of all leaves nothing to clean up.
The files are open to all, and a shared lock cannot be distinguished from holding: whoever may log in may
hold a lease, as whoever may log in may use the GPU.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mlbox import errors
from mlbox.core.gpu import Holder
from mlbox.host import files

FOLDER = Path("/tmp/mlbox-leases")
_UUID = re.compile(r"[A-Za-z0-9-]{1,100}(?:\.share\.[0-9A-Z]{26})?")
_TRIES, _PAUSE = 5, 0.02  # s; a status call elsewhere may test a lock for a moment


def _folder() -> Path:
    try:
        os.mkdir(FOLDER)
        FOLDER.chmod(0o1777)
    except FileExistsError:
        pass
    if not stat.S_ISDIR(os.lstat(FOLDER).st_mode):
        raise errors.HostUnready(f"{FOLDER} is not a folder", "remove it")
    if not os.access(FOLDER, os.R_OK | os.W_OK | os.X_OK):
        raise errors.HostUnready(f"{FOLDER} is closed to you", f"its owner can mend it: chmod 1777 {FOLDER}")
    return FOLDER


def is_name(uuid: str) -> bool:
    """Whether it can be a lock's."""
    return _UUID.fullmatch(uuid.replace("/", "-")) is not None


def _name(uuid: str) -> str:
    if not is_name(uuid):
        raise errors.Usage(f"{uuid!r} is not a GPU's UUID")
    return uuid.replace("/", "-")


def lock_file(name: str) -> int:
    """A file of this host's that any user may lock; not locked yet."""
    return _open(name)


def _open(uuid: str) -> int:
    """Read-only: flock needs no more, and the kernel's protected_regular refuses O_CREAT on others' files."""
    path = _folder() / _name(uuid)
    while True:
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            _make(path)
        except PermissionError:
            raise errors.HostUnready(f"{path} is closed to you", f"its owner can mend it: chmod 666 {path}") from None


def _make(path: Path) -> None:
    """With its rights from the first moment on. Nobody writes to it, but every holder may keep it young."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    try:
        os.chmod(temporary, 0o666)
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.link(temporary, path)  # /tmp is one kernel's own: here link has one winner
    finally:
        os.unlink(temporary)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def take(uuids: Iterable[str], holder: Holder) -> dict[str, int] | None:
    """Lock all of these, or none (None). The result maps UUID to the descriptor that holds it."""
    held: dict[str, int] = {}
    for uuid in sorted(uuids):
        descriptor = _open(uuid)
        for attempt in range(_TRIES):
            if _lock(descriptor):
                held[uuid] = descriptor
                break
            time.sleep(_PAUSE if attempt < _TRIES - 1 else 0)
        else:
            os.close(descriptor)
            drop(held)
            return None
    try:
        for uuid in held:
            _sign(uuid, holder)
    except OSError:  # a full disk
        drop(held)
        raise
    return held


def take_share(uuid: str, job: str, memory: int, holder: Holder) -> dict[str, int] | None:
    """A share of `memory` MiB of a GPU: its lock is held together with other shares', and never with a whole lease.

    The caller holds `choosing` and has added up what is taken; None where the GPU is leased as a whole."""
    descriptor = _open(uuid)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    held, own = {uuid: descriptor}, FOLDER / f"{_name(uuid)}.share.{job}"
    try:
        files.write_whole(own, json.dumps({"memory": memory}).encode(), 0o644, lasting=False)
        mark = held[f"{uuid}.share.{job}"] = os.open(own, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(mark, fcntl.LOCK_EX)
        _sign(uuid, holder)
    except OSError:
        drop(held)
        raise
    return held


def shares() -> dict[str, dict[str, int]]:
    """What is leased in shares now: UUID -> job -> MiB."""
    found: dict[str, dict[str, int]] = {}
    for path in FOLDER.glob("*.share.*"):
        uuid, _, job = path.name.partition(".share.")
        if _is_held(path.name):
            document = files.read_json(path)
            memory = document.get("memory") if isinstance(document, dict) else None
            # A share that can't be read takes all: nothing may be put beside it.
            found.setdefault(uuid, {})[job] = memory if type(memory) is int else 1 << 30
    return found


@contextlib.contextmanager
def choosing() -> Iterator[None]:
    """One chooser at a time on this host. Shares that nobody holds any more are cleared away: only here is it sure that
    none is just being taken, and not locked yet."""
    descriptor = _open("choosing")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for path in FOLDER.glob("*.share.*"):
            if not _is_held(path.name):
                with contextlib.suppress(OSError):  # another user's: sticky folder
                    path.unlink()
        yield
    finally:
        os.close(descriptor)


def drop(held: dict[str, int]) -> None:
    """Give up our part of these leases; each is free when no other process holds its descriptor."""
    for descriptor in held.values():
        os.close(descriptor)
    held.clear()


def keep_young(held: Iterable[str]) -> None:
    """Systems that remove old files from /tmp leave the locks alone: a removed lock file could be locked twice."""
    for uuid in held:
        for path in (FOLDER / _name(uuid), FOLDER / f"{_name(uuid)}.{os.getuid()}"):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)


def _sign(uuid: str, holder: Holder) -> None:
    content = json.dumps({"user": holder.user, "session": holder.session, "name": holder.name}).encode()
    files.write_whole(FOLDER / f"{_name(uuid)}.{os.getuid()}", content, 0o644, lasting=False)


def held_by(uuids: Sequence[str]) -> dict[str, Holder]:
    """The holders of those of these GPUs that are leased now, as a whole or in shares (then: the newest)."""
    shared = shares()
    return {uuid: _signature(uuid) for uuid in uuids if uuid in shared or _is_held(uuid)}


def _is_held(uuid: str) -> bool:
    try:
        descriptor = os.open(FOLDER / _name(uuid), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # what can't be asked is not taken for free
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _signature(uuid: str) -> Holder:
    """The newest note whose owner is who it says (others' notes prove nothing, but display is all they do)."""
    newest, found = 0.0, Holder("someone")
    for path in FOLDER.glob(f"{_name(uuid)}.*"):
        document = files.read_json(path)
        try:
            status = path.lstat()
        except OSError:
            continue
        if isinstance(document, dict) and path.name.endswith(f".{status.st_uid}") and status.st_mtime > newest:
            newest = status.st_mtime
            found = Holder(*(str(document.get(key, ""))[:80] for key in ("user", "session", "name")))
    return found
