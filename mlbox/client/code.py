"""The code that goes along with a job: the folder as it is now, and where it came from.

In a git repository: what git tracks, with all changes, and new files that it does not ignore. Elsewhere: the
whole folder. Either way nothing that waits in line changes when the files do.
"""

from __future__ import annotations

import base64
import gzip
import io
import os
import stat
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

from mlbox import errors
from mlbox.core.job import JobSpec

LARGEST = 32 << 20  # bytes, packed; it travels inside the request
_LARGEST_FILES = 20_000


def pack(name: str) -> tuple[str, dict[str, str]]:
    """The folder as base64 of a .tgz, and its provenance. The same files give the same bytes. Raises Usage."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise errors.Usage(f"there is no folder {folder}", "--code DIR, or --no-code")
    seen = _provenance(folder)
    files = _tracked(folder) if seen else _all(folder)
    buffer = io.BytesIO()
    compressed = gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0)
    with compressed, tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(files):
            _add(archive, folder, path)
            if buffer.tell() > LARGEST:
                raise _too_large(folder)
    if buffer.tell() > LARGEST:
        raise _too_large(folder)
    return base64.b64encode(buffer.getvalue()).decode(), seen


def _too_large(folder: Path) -> errors.Usage:
    return errors.Usage(
        f"the code in {folder.resolve()} is larger than {LARGEST >> 20} MiB, packed",
        "leave data out (.gitignore), name a smaller --code folder, or keep it on the host and use --folder",
    )


def _add(archive: tarfile.TarFile, folder: Path, path: str) -> None:
    try:
        seen = (folder / path).lstat()
    except OSError:
        return  # tracked, and deleted since
    entry = tarfile.TarInfo(path)
    entry.mode = 0o755 if seen.st_mode & 0o100 else 0o644
    if stat.S_ISLNK(seen.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(folder / path)
        archive.addfile(entry)
    elif stat.S_ISREG(seen.st_mode):
        entry.size = seen.st_size
        with (folder / path).open("rb") as file:
            archive.addfile(entry, file)


def _git(folder: Path, *words: str) -> str:
    """Empty where git, or a repository, is not there."""
    try:
        done = subprocess.run(("git", "-C", str(folder), *words), stdin=subprocess.DEVNULL, capture_output=True)
    except FileNotFoundError:
        return ""
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else ""


def _provenance(folder: Path) -> dict[str, str]:
    """Empty outside a repository."""
    if _git(folder, "rev-parse", "--is-inside-work-tree").strip() != "true":
        return {}
    said = {
        "repository": _git(folder, "config", "--get", "remote.origin.url"),
        "commit": _git(folder, "rev-parse", "HEAD"),
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "changed": ", ".join(_git(folder, "status", "--porcelain", "-z", "--", ".").split("\0")[:100]),
    }
    return {name: value.strip()[:4000] for name, value in said.items() if value.strip()} or {"commit": "none yet"}


def _tracked(folder: Path) -> list[str]:
    listed = _git(folder, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", ".")
    return [name for name in dict.fromkeys(listed.split("\0")) if name]


def _all(folder: Path) -> list[str]:
    found: list[str] = []
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in ("__pycache__", ".venv", "node_modules", ".git"))
        found += [os.path.relpath(os.path.join(top, name), folder) for name in names]
        if len(found) > _LARGEST_FILES:
            raise errors.Usage(
                f"{folder.resolve()} holds more than {_LARGEST_FILES} files, and is no git repository",
                "submit from your project's folder, name it with --code, or use --no-code",
            )
    return found


def with_provenance(spec: JobSpec, seen: dict[str, str]) -> JobSpec:
    return replace(spec, provenance=seen)
