"""Unpack a single file of mlbox once (there: mlbox_unpack.py), to keep .pyc files and load native code.

    <cache>/mlbox/                                  0700, ours
    <cache>/mlbox/mlbox-host-<sha16>-linux-x86_64/  whole or absent: unpacked elsewhere, then renamed

In the zip, `native/psutil/` is psutil's Python, `native/<sys.platform>-<machine>/psutil/` its compiled part.
The two meet in `psutil/` only here, so `import psutil` works where a build for this machine was carried,
and is a plain ModuleNotFoundError elsewhere, also when running from the zip.

Nothing here may fail the program: any OSError (read-only home, full disk, quota) means "run from the zip".
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from typing import Callable

KEEP_NEWEST = 3
KEEP_DAYS = 30
LEFTOVER_DAYS = 1
TEMPORARY = ".unpacking-"


def unpack(archive: str, folder: str, is_private: Callable[[str], bool]) -> bool:
    """Make `folder` from `archive`; True when it is there, whole and private, whoever made it."""
    parent = os.path.dirname(folder)
    temporary = ""
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        _make_private(parent, is_private)
        temporary = tempfile.mkdtemp(prefix=TEMPORARY, dir=parent)
        _extract(archive, temporary, native="-".join(folder.rsplit("-", 2)[1:]))
        _set_aside(folder, is_private)
        os.rename(temporary, folder)
        remove_old(parent, folder)
    except (OSError, zipfile.BadZipFile):
        # Also the loser's way out when two processes unpack at once: the winner's folder is as good.
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return is_private(folder) and is_private(parent)


def _make_private(parent: str, is_private: Callable[[str], bool]) -> None:
    """A cache folder made under umask 002 is ours but writable by the group: close it, then it will do."""
    if is_private(parent):
        return
    if os.path.islink(parent) or os.lstat(parent).st_uid != os.geteuid():
        raise PermissionError(parent)
    os.chmod(parent, 0o700)


def _set_aside(folder: str, is_private: Callable[[str], bool]) -> None:
    """Others could have written into what is there, so it is not run and not kept."""
    if not os.path.lexists(folder) or is_private(folder):
        return
    aside = tempfile.mkdtemp(prefix=TEMPORARY, dir=os.path.dirname(folder))
    os.rename(folder, os.path.join(aside, "untrusted"))
    shutil.rmtree(aside, ignore_errors=True)


def target(name: str, native: str, carried: bool) -> str:
    """Where an entry of the zip goes, relative to the folder; empty for what this machine doesn't need."""
    if not name.startswith("native/"):
        return "" if name in ("__main__.py", "mlbox_unpack.py") else name
    for prefix in ("native/psutil/", f"native/{native}/psutil/"):
        if carried and name.startswith(prefix):
            return "psutil/" + name[len(prefix) :]
    return ""


def _extract(archive: str, folder: str, native: str) -> None:
    written = []
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        carried = any(name.startswith(f"native/{native}/") for name in names)
        for name in names:
            relative = target(name, native, carried)
            if relative:
                path = os.path.join(folder, *relative.split("/"))
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                _write(path, packed.read(name))
                written.append(path)
    for path in written:
        # A power cut after the rename must not leave empty modules behind for good.
        _sync(path)


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_old(parent: str, folder: str) -> None:
    """Remove versions unused for KEEP_DAYS (never the newest KEEP_NEWEST), and what crashes left behind."""
    name = os.path.basename(folder).rsplit("-", 3)[0]
    now = time.time()
    versions = []
    for entry in list(os.scandir(parent)):
        if not entry.is_dir(follow_symlinks=False):
            continue
        age = (now - entry.stat(follow_symlinks=False).st_mtime) / 86400
        if entry.name.startswith(TEMPORARY) and age > LEFTOVER_DAYS:
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name.rsplit("-", 3)[0] == name:
            versions.append((age, entry.path))
    for age, path in sorted(versions)[KEEP_NEWEST:]:
        if age > KEEP_DAYS:
            shutil.rmtree(path, ignore_errors=True)
