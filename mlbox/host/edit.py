"""A file of ROOT that people edit, and mlbox too, on several hosts at once: no edit undoes another.

    read → change → rename      one at a time on each host (a kernel lock); looked at once more right before the rename
    stands?                     after as long as another host may show, and change, the file as it was; else again

No lock file: whoever died with it would have to be told from one who is slow (ARCHITECTURE, the queue). What remains is
another host that stands still for longer than that between its last look and its rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from mlbox import errors
from mlbox.host import files, here, lease

_TRIES = 10


def change(path: Path, edit: Callable[[str], str], settle: Callable[[], None]) -> None:
    """`edit`: from the file's text (empty: there is none) to what it should be. `settle` returns when this host sees it
    as others last wrote it. Raises HostUnready where others change it all the time, and what `edit` raises."""
    settle()
    for _ in range(_TRIES):
        with _alone():
            old = _read(path)
            new = edit(old or "")
            if new == (old or ""):
                return
            replaced = _replace(path, old, new)
        if replaced:
            settle()
    raise errors.HostUnready(f"others change {path} all the time", "run the same command again in a moment")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    descriptor = lease.lock_file("edit")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _replace(path: Path, old: str | None, new: str) -> bool:
    """Its mode and group are kept. False where it has changed meanwhile."""
    made = path.with_name(f".{path.name}.{here.host_name()}.{os.getpid()}")
    files.write_whole(made, new.encode(), 0o644)
    try:
        if old is not None:
            before = path.stat()
            with contextlib.suppress(OSError):  # of a group that this user is not in
                os.chown(made, -1, before.st_gid)
            made.chmod(stat.S_IMODE(before.st_mode))
        if _read(path) != old:
            return False
        os.replace(made, path)
        files.sync_folder(path.parent)
        return True
    finally:
        made.unlink(missing_ok=True)
