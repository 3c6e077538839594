"""Code as it was submitted (of a session in a queue: its .vsix files): an archive per content, unpacked anew for every
attempt.

Editing the files after `submit` changes nothing that waits. The archive is the laptop's; it is unpacked with its
paths checked: nothing outside the folder, no links out of it, no devices.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlbox import errors
from mlbox.core.code import MOST_FILES, MOST_UNPACKED, stays_inside
from mlbox.host import files, store, uses

if TYPE_CHECKING:
    import tarfile


def keeping(found: store.Store, wait: bool = True) -> AbstractContextManager[bool | None]:
    """While jobs are made that need code, none is removed; and the other way round (uses.of_folder)."""
    return uses.of_folder(found.own() / "code", wait)


def keep(found: store.Store, archive: bytes) -> str:
    """Store it once; its sha256. Under `keeping`, until a job's spec names it."""
    digest = hashlib.sha256(archive).hexdigest()
    path = _path(found, digest)
    if path.exists():
        os.utime(path)
    else:
        files.make_folder(path.parent, 0o700)
        files.write_whole(path, archive)
    return digest


def pack(contents: Mapping[str, bytes]) -> bytes:
    """An archive of these files; the same ones give the same bytes."""
    import gzip
    import tarfile

    buffer = io.BytesIO()
    # Hardly packed: what a session brings along (.vsix) is packed itself.
    compressed = gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=1)
    with compressed, tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(contents.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def kept(found: store.Store) -> list[tuple[str, os.stat_result]]:
    """The digests of all that is there."""
    return [(path.stem, status) for path, status in _files(found, "*.tgz")]


def halves(found: store.Store) -> list[tuple[str, os.stat_result]]:
    """The names of what was being stored, as it is just now or as a crash left it."""
    return [(path.name, status) for path, status in _files(found, ".*.tgz.*")]


def _files(found: store.Store, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in (found.own() / "code").glob(pattern):
        with suppress(OSError):
            yield path, path.stat()


def forget(found: store.Store, name: str, needed: Callable[[], set[str]]) -> bool:
    """By its digest, or a half by its name. Unless a job that has not ended needs it, also one that was made just now:
    then False."""
    with keeping(found, wait=False) as nobody:
        if not nobody or name in needed():
            return False
        (_path(found, name) if name[0] != "." else found.own() / "code" / name).unlink(missing_ok=True)
        return True


def _path(found: store.Store, digest: str) -> Path:
    return found.own() / "code" / f"{digest}.tgz"


def unpack(found: store.Store, digest: str, folder: Path) -> None:
    """Raises Refused where the archive is not what was submitted."""
    import tarfile  # whoever submits a job needs no tar
    import zlib

    path = _path(found, digest)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise errors.Refused(f"the job's code is gone: {path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise errors.Refused(f"the job's code is damaged: {path}")
    try:
        _extract(content, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise errors.Refused(f"the job's code can't be unpacked: {path}: {error}") from None


def _extract(content: bytes, folder: Path) -> None:
    import tarfile

    # Newer Pythons warn without one. The checks here are stricter, and the same on the oldest Python.
    filtered: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    total, count = 0, 0
    links: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            count += 1
            if count > MOST_FILES:
                raise errors.Refused(f"the job's code has more than {MOST_FILES} files")
            total += member.size
            if total > MOST_UNPACKED:
                raise errors.Refused(f"the job's code is larger than {MOST_UNPACKED >> 30} GiB")
            if not _harmless(member, links):
                raise errors.Refused(f"the job's code holds {member.name!r}, which may not be unpacked")
            if member.issym():
                links.add(os.path.normpath(member.name))
            member.mode = (member.mode | 0o600 | (0o100 if member.isdir() else 0)) & 0o777
            archive.extract(member, folder, numeric_owner=True, **filtered)


def _harmless(member: tarfile.TarInfo, links: set[str]) -> bool:
    """A file, a folder, or a link that stays inside; never written through an earlier link."""
    if os.path.isabs(member.name) or ".." in member.name.split("/") or "\0" in member.name:
        return False
    parts = os.path.normpath(member.name).split("/")
    if any("/".join(parts[:end]) in links for end in range(1, len(parts) + 1)):
        return False
    if member.issym():
        return stays_inside(member.name, member.linkname)
    return member.isreg() or member.isdir()
