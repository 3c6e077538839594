"""The code that goes along with a job: the folder as it is now, and where it came from.

In a git repository: what git tracks, with all changes, and new files that it does not ignore, of its submodules too.
Elsewhere: the whole folder. Either way nothing that waits in line changes when the files do.
"""

from __future__ import annotations

import base64
import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mlbox import errors
from mlbox.core import text
from mlbox.core.code import MOST_FILES, MOST_UNPACKED, stays_inside
from mlbox.core.job import JobSpec

LARGEST = 32 << 20  # bytes, packed; it travels inside the request
_LARGEST_FILES = 20_000
_LEAVE_OUT = "leave it out (.gitignore), name another --code folder, or use --folder, --no-code"


def check(name: str) -> Path:
    """The folder, as far as it can be judged without a look into it. Raises Usage."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise errors.Usage(f"there is no folder {folder}", "--code DIR, or --no-code")
    if name == "." and folder.resolve() == Path.home().resolve():
        raise errors.Usage(
            "you are in your home folder, and all of it, keys too, would go along as the job's code",
            "submit from your project's folder or name it with --code; --no-code sends nothing (--code ~ does send it)",
        )
    return folder


def pack(name: str) -> tuple[str, dict[str, str]]:
    """The folder as base64 of a .tgz, and its provenance. The same files give the same bytes. Raises Usage."""
    folder = check(name)
    seen = _provenance(folder)
    files = _tracked(str(folder)) if seen else []
    if not files:  # of a repository around it that ignores all of it, too
        seen, files = {}, _all(folder)
    buffer = io.BytesIO()
    compressed = gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0)
    with compressed, tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _Packing(folder, archive, buffer).add(files)
    if buffer.tell() > LARGEST:
        raise _too_large(folder)
    return base64.b64encode(buffer.getvalue()).decode(), seen


def _too_large(folder: Path) -> errors.Usage:
    return errors.Usage(
        f"the code in {folder.resolve()} is larger than {LARGEST >> 20} MiB, packed",
        "leave data out (.gitignore), name a smaller --code folder, or keep it on the host and use --folder",
    )


class _Packing:
    """What a host would not unpack is said now, not when the job's turn has come."""

    def __init__(self, folder: Path, archive: tarfile.TarFile, packed: io.BytesIO) -> None:
        self._folder, self._archive, self._packed = folder, archive, packed
        self._count, self._total = 0, 0

    def add(self, paths: Iterable[str]) -> None:
        for path in sorted(paths):
            try:
                self._add(path.rstrip("/"), os.lstat(self._folder / path))
            except FileNotFoundError:
                continue  # tracked, and deleted since
            except OSError as error:  # closed to us; or it shrank meanwhile, which has no number
                why = error.strerror or "it was written to at this moment"
                raise errors.Usage(f"{text.safe(path)} can't be sent along: {why}", _LEAVE_OUT) from None
            if self._packed.tell() > LARGEST:
                raise _too_large(self._folder)

    def _add(self, path: str, seen: os.stat_result) -> None:
        entry = tarfile.TarInfo(path)
        entry.mode = 0o755 if seen.st_mode & 0o100 else 0o644
        if stat.S_ISLNK(seen.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(self._folder / path)
            if not stays_inside(path, entry.linkname):
                where = f"{text.safe(path)}, a link to {text.safe(entry.linkname)}, leads out of the code's folder"
                raise errors.Usage(f"{where}, so no host takes it", _LEAVE_OUT)
            self._put(entry)
        elif stat.S_ISDIR(seen.st_mode):
            if os.path.lexists(self._folder / path / ".git"):  # a submodule, or a repository that is none
                self.add(f"{path}/{below}" for below in _tracked(str(self._folder / path)))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                self._put(entry)
        elif stat.S_ISREG(seen.st_mode):
            entry.size = seen.st_size
            with open(self._folder / path, "rb") as file:
                self._put(entry, file)

    def _put(self, entry: tarfile.TarInfo, file: BinaryIO | None = None) -> None:
        self._count, self._total = self._count + 1, self._total + entry.size
        if self._total > MOST_UNPACKED or self._count > MOST_FILES:
            beyond = (
                f"more than {MOST_FILES} files" if self._count > MOST_FILES else f"{MOST_UNPACKED >> 30} GiB or more"
            )
            raise errors.Usage(f"the code in {self._folder.resolve()} is {beyond}", _LEAVE_OUT)
        self._archive.addfile(entry, file)


def _git(folder: Path | str, *words: str) -> str:
    """Empty where git, or a repository, is not there."""
    return _run_git(folder, words)[0]


def _heeded(folder: Path | str, *words: str) -> str:
    """The same for what says which files are ignored. Raises Usage where git fails in a repository (it takes the folder
    for another user's; on a Mac without the command line tools it does nothing): secrets would go along unseen."""
    said, why = _run_git(folder, words)
    here = Path(folder).resolve()
    if why and _is_in_repository(here):
        raise errors.Usage(
            f"the code in {here} is in a git repository, but git fails there: {why}",
            "mend git, so that what .gitignore names stays here, or --no-code",
        )
    return said


def _run_git(folder: Path | str, words: tuple[str, ...]) -> tuple[str, str]:
    """What it said, or why it failed."""
    try:
        done = subprocess.run(("git", "-C", str(folder), *words), stdin=subprocess.DEVNULL, capture_output=True)
    except FileNotFoundError:
        return "", "it is not installed"
    if done.returncode:
        return "", text.safe(done.stderr.decode(errors="replace").strip()) or f"it ended with {done.returncode}"
    return done.stdout.decode(errors="surrogateescape"), ""


def _is_in_repository(folder: Path) -> bool:
    for above in (folder, *folder.parents):
        if (above / ".git/HEAD").exists() or (above / ".git").is_file():  # a folder without HEAD is none to git either
            return True
        if os.path.ismount(above):  # git looks no further either
            break
    return False


def _provenance(folder: Path) -> dict[str, str]:
    """Empty outside a repository."""
    if _heeded(folder, "rev-parse", "--is-inside-work-tree").strip() != "true":
        return {}
    said = {
        "repository": _git(folder, "config", "--get", "remote.origin.url"),
        "commit": _git(folder, "rev-parse", "HEAD"),
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "changed": ", ".join(_git(folder, "status", "--porcelain", "-z", "--", ".").split("\0")[:100]),
    }
    return {name: value.strip()[:4000] for name, value in said.items() if value.strip()} or {"commit": "none yet"}


def _tracked(folder: str) -> list[str]:
    listed = _heeded(folder, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", ".")
    return [name for name in dict.fromkeys(listed.split("\0")) if name]


def _all(folder: Path) -> list[str]:
    found: list[str] = []
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in ("__pycache__", ".venv", "node_modules", ".git"))
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        found += [os.path.relpath(os.path.join(top, name), folder) for name in (*names, *links)]
        if not (names or folders) and top != str(folder):  # a place for what the job writes
            found.append(os.path.relpath(top, folder))
        if len(found) > _LARGEST_FILES:
            raise errors.Usage(
                f"{folder.resolve()} holds more than {_LARGEST_FILES} files, and is no git repository",
                "submit from your project's folder, name it with --code, or use --no-code",
            )
    return found


def with_provenance(spec: JobSpec, seen: dict[str, str]) -> JobSpec:
    return replace(spec, provenance=seen)
