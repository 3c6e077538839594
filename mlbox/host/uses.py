"""Who uses a layer now, and who used one when: so that what is in use, or about to be, is never removed.

    /tmp/mlbox-leases/layer-<key>      a kernel lock: shared by all who use it or are about to look whether it is
                                       there, exclusive for who removes it; gone with its holders (host/lease.py)
    /var/tmp/mlbox-uses/<key>.<uid>    its time is that user's last use; what a host forgets there counts as long ago

A keeper that looks while another removes waits, and then finds that the layer must be built again. All users' uses
count, for Docker's images are everybody's.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlbox.host import files, lease

FOLDER = Path("/var/tmp/mlbox-uses")
_HELD: dict[str, int] = {}  # for as long as this process lives: a keeper keeps what its session runs in


def begin(key: str) -> None:
    """Before one looks whether it is there."""
    if key not in _HELD:
        descriptor = lease.lock_file(f"layer-{key}")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _HELD[key] = descriptor
    with suppress(OSError):  # a full disk costs the note, not the session
        with suppress(FileExistsError):
            os.mkdir(FOLDER)
            FOLDER.chmod(0o1777)
        _touch(f"{key}.{os.getuid()}")


def _touch(name: str) -> None:
    """Raises OSError too where somebody has put a link there, which would have us make a file elsewhere."""
    careful = os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | careful)
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | careful, 0o644, dir_fd=folder)
        os.utime(file)
        os.close(file)
    finally:
        os.close(folder)


def held() -> list[str]:
    """The locks that this process has, by their names among the leases."""
    return [f"layer-{key}" for key in _HELD]


def last(key: str) -> float:
    """Seconds since 1970; 0 where no use is known."""
    times = [0.0]
    for path in FOLDER.glob(f"{key}.*"):
        with suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)


@contextmanager
def nobody(key: str) -> Iterator[bool]:
    """Whether nobody uses it; nobody begins to meanwhile."""
    descriptor = lease.lock_file(f"layer-{key}")
    try:
        yield _mine(descriptor)
    finally:
        os.close(descriptor)


def _mine(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def forget(key: str) -> None:
    with suppress(OSError):
        (FOLDER / f"{key}.{os.getuid()}").unlink(missing_ok=True)


@contextmanager
def of_folder(folder: Path, wait: bool = True) -> Iterator[bool | None]:
    """While what a folder keeps is used, or about to be, none of it is removed; and the other way round (not `wait`:
    False where somebody is at it). Hosts may share it: where its filesystem knows no such lock (None), nothing is
    removed."""
    files.make_folder(folder, 0o700)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield _locked(descriptor, wait)
    finally:
        with suppress(OSError):  # what was done under the lock is done
            os.close(descriptor)


def _locked(descriptor: int, wait: bool) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise
    return True
