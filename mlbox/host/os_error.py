"""What an operating system's error means to whoever asked: which kind of failure it is, and what to try."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mlbox import errors
from mlbox.core import text

_CLOSED = (errno.EACCES, errno.EPERM)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AWAY = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)


def told(host: str, error: OSError) -> errors.MlboxError:
    what = f"{error.filename}: {error.strerror}" if isinstance(error.filename, str) and error.strerror else str(error)
    what = f"{host}: {text.safe(what)}"
    if error.errno in _FULL:
        return errors.Refused(what, hint(error))
    known = (*_CLOSED, errno.EROFS, *_NOT_THERE, *_AWAY)
    return (errors.HostUnready if error.errno in known else errors.MlboxError)(what, hint(error))


def hint(error: OSError) -> str:
    if error.errno in _CLOSED:
        return "you may not do that there: another folder, or ask its owner or an administrator for the right"
    if error.errno == errno.EROFS:
        return "nothing can be written there until its filesystem is mounted for writing again; or another folder"
    if error.errno in _NOT_THERE:
        return "is the path right, and its filesystem mounted? Not every place lets a folder be made: another one"
    if error.errno in _FULL:
        return "make room there, perhaps with `mlbox jobs prune` and `mlbox image prune`"
    if error.errno in _AWAY:
        return "is its filesystem mounted, and does its server answer?"
    return "is a disk full, or a folder not yours?"


def check_open(root: Path) -> None:
    """Raises HostUnready where this user is let into ROOT by nobody: it looks like an empty one, and is none."""
    for path, right in (*((one, os.X_OK) for one in (*reversed(root.parents), root)), (root / "mlbox.json", os.R_OK)):
        if os.access(path, right):
            continue
        try:
            found = os.stat(path)
        except OSError:  # not there, or a link to nowhere
            return
        from mlbox.host import peer  # with sockets, which nothing else here needs

        owner, mode = peer.name(found.st_uid), stat.S_IMODE(found.st_mode)
        said = f"{path} is closed to you: it is {owner}'s, and its mode is {mode:04o}"
        opens = (
            f"chmod 1777 {root}, then mlbox init again"
            if path == root
            else f"chmod a+{'x' if right == os.X_OK else 'r'} {path}"
        )
        raise errors.HostUnready(said, f"{owner} opens it by: {opens}")
