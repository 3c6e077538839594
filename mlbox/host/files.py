"""How files on a host, and on what hosts share, are written whole and read with care."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlbox import errors

if TYPE_CHECKING:
    import socket

MAX_FILE = 1024 * 1024  # bytes read of any one small file on the share
STALE = (0.01, 0.05, 0.2, 0.0)  # s until a name that was replaced or removed meanwhile is looked up anew
# Somebody's doing, and not a share's bad day: nothing there, or what is closed, a link to nowhere, to itself or to what
# can be no name, a socket, a file on which its owner has a lease. It counts as absent.
ABSENT = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
          errno.EWOULDBLOCK)  # fmt: skip
_LOG = re.compile(r"[a-z]{1,20}\.log")  # mlbox's own; who works inside may add others, with any letters in their names
_LOG_TAIL = 4096  # bytes of each log
_LOGS = 32  # of one folder; a session has five or so


def private_folder(path: Path, mode: int = 0o700) -> Path:
    """Make `path` ours, open to nobody (or as `mode` says), or raise: one that somebody else prepared is not used."""
    with suppress(FileExistsError):  # something else of that name: told below
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own(path):
        raise errors.HostUnready(f"{path} is not a folder of yours", "ask its owner, or an administrator, to remove it")
    if path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)
    return path


def make_folder(path: Path, mode: int = 0o755) -> None:
    """With those above it that are missing: whatever the umask, nobody else may write to what is made."""
    missing = 0
    for pause in (0.0, 0.02, 0.1, 0.5, 1.0, 2.0):
        try:
            path.mkdir(mode=mode & ~0o022)
            return
        except FileNotFoundError:
            missing += 1
            if missing > 2:  # not for ever: an old view of a share may have the one above it, and not take a new one
                raise
            make_folder(path.parent)
        except FileExistsError:
            if os.path.lexists(path):
                if path.is_dir():
                    return
                raise
            time.sleep(pause)  # one that another host makes just now is not to be seen at once, or is gone again
    if not path.is_dir():
        path.mkdir(mode=mode & ~0o022)


def is_own(path: Path, uid: int | None = None) -> bool:
    """Whether it is a folder, not a link to one, of this user's (or of `uid`'s): then only that one can replace it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == (os.getuid() if uid is None else uid)


def now(folder: Path) -> float:
    """The time by the clock that dates what is written to a folder (s since 1970): another machine's, on a share."""
    make_folder(folder)
    path = folder / f".now.{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, b"\n")
        os.fsync(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """Whether anything has this name. Raises OSError where that can't be known just now."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return False
    return True


def stays_empty(path: Path) -> bool:
    """A file, not as one that is being written, here or on another host."""
    for pause in (0.01, 0.1, 0.5, 1.1):
        if path.is_symlink() or not path.is_file() or path.stat().st_size:
            return False
        time.sleep(pause)
    return True


def status(path: Path) -> os.stat_result | None:
    """None where there is no such file. GlusterFS may have none for a moment while another host replaces it, and lists
    it all the same: where it goes on like that, FileNotFoundError. Raises OSError."""
    for pause in STALE:
        with suppress(FileNotFoundError):
            return path.lstat()
        if not path.parent.is_dir() or path.name not in os.listdir(path.parent):
            return None
        time.sleep(pause)
    return path.lstat()


def keep_young(folder: Path | str, above: int | None = None, deep: int = 16) -> None:
    """Systems that remove old files from /tmp leave these alone. A container may put a link, or a FIFO, in the place of
    any, and nest folders as deep as it likes: ours are fewer than `deep`. `above`: of the folder that it is in."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        try:
            for name in os.listdir(descriptor):
                with suppress(OSError):  # a container's root owns some; a socket in use is nowhere removed
                    os.utime(name, dir_fd=descriptor, follow_symlinks=False)
                if deep:
                    keep_young(name, descriptor, deep - 1)
            os.utime(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """What was created or renamed in it is still there after a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- in a folder that a container writes to, too: what is in it may be a link to anything of this host's, or a FIFO


_PATH = getattr(os, "O_PATH", os.O_RDONLY)  # not on macOS, where no container shares a folder with its host


def open_itself(path: Path, flags: int, mode: int = 0o600) -> int:
    """What has this name in this very folder, whatever either is replaced with meanwhile. The folder need not be one
    that may be listed. Raises OSError."""
    folder = os.open(path.parent, _PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def _itself(path: Path, flags: int) -> Iterator[int]:
    descriptor = open_itself(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def end(path: Path, most: int = MAX_FILE) -> bytes:
    """The last `most` bytes of a regular file; of anything else, nothing."""
    with suppress(OSError), _itself(path, _PATH) as found:  # to open a device may be to use it
        status = os.fstat(found)
        if stat.S_ISREG(status.st_mode):
            descriptor = found if _PATH == os.O_RDONLY else os.open(f"/proc/self/fd/{found}", os.O_RDONLY)
            try:
                return os.pread(descriptor, most, max(0, status.st_size - most))
            finally:
                if descriptor != found:
                    os.close(descriptor)
    return b""


def own_folder(path: Path) -> None:
    """It is there and ours. What a container's root left of this name, which only root can empty, gives way."""
    if path.is_symlink() or (path.exists() and not is_own(path)):
        path.rename(path.with_name(f".{path.name}.{time.time_ns()}"))
    path.mkdir(mode=0o700, exist_ok=True)


def logs(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if _LOG.fullmatch(name)][:_LOGS]
    except OSError:
        return []


def tails(folder: Path) -> dict[str, str]:
    """The ends of its logs, by their names."""
    return {path.stem: end(path, _LOG_TAIL).decode(errors="replace") for path in logs(folder)}


def keep_socket(path: Path, folder: Path) -> None:
    """The socket of this name is in `folder`, too: one more link to it, whatever its own is replaced with from then on.
    Raises OSError where it is none."""
    made = folder / f".{path.name}"
    made.unlink(missing_ok=True)
    inside = os.open(path.parent, _PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.link(path.name, made, src_dir_fd=inside, follow_symlinks=False)
    finally:
        os.close(inside)
    if not stat.S_ISSOCK(made.lstat().st_mode):
        made.unlink()
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), str(path))
    os.replace(made, folder / path.name)


def connect(connection: socket.socket, path: Path) -> None:
    """To the socket of this name. Raises OSError, also where it is a link to one."""
    if not hasattr(os, "O_PATH"):  # macOS, where no container shares a folder of sockets with its host
        connection.connect(str(path))
        return
    with _itself(path, _PATH) as descriptor:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), str(path))
        connection.connect(f"/proc/self/fd/{descriptor}")


def write_whole(path: Path, content: bytes, mode: int = 0o600, by: Path | None = None, lasting: bool = True) -> None:
    """The file appears whole or not at all (temporary name, there or in the folder `by`; fsync, rename).

    Not `lasting`: what nobody asks for after a power cut, or what is made anew then; it need not wait for a disk."""
    temporary = (by or path.parent) / f".{path.name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path, owner: int | None = None) -> Any:
    """A small regular file of JSON; None where it is absent, torn, too large, something else, or not `owner`'s (uid).

    On a shared filesystem another host may replace or remove it between two calls of ours: these then fail with ESTALE
    or ENOENT, even close. Asked again, its name is looked up anew; what is never to be had counts as absent."""
    found: bytes | None = None
    for pause in STALE:
        try:
            found = content(path, owner)
            break
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            time.sleep(pause)
    if found is None or len(found) > MAX_FILE:
        return None
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        return None


def content(path: Path, owner: int | None = None) -> bytes | None:
    """Of a small regular file, at most a byte more than MAX_FILE; None where it is absent, something else, or not
    `owner`'s (uid). Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or owner not in (None, found.st_uid):
            return None
        read = b""
        while len(read) <= MAX_FILE and (data := os.read(descriptor, MAX_FILE + 1 - len(read))):
            read += data
        return read
    finally:
        with suppress(OSError):  # it was only read
            os.close(descriptor)


def size_of(folder: Path) -> int:
    """Bytes on disk; what vanishes meanwhile counts nothing."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(top, name)).st_blocks * 512
    return total
