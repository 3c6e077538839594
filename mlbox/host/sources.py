"""Where VS Code's server and Python packages come from: a folder of the lab's, or elsewhere.

    --sources DIR   a folder on the host holding code-server-<version>-<system>-<arch>.tar.gz and SHA256SUMS; where it
                    holds wheels, pip takes packages from there and from nowhere else
    otherwise       the makers' release, checked against the sum that the session asks for (V@sha256:…), or that mlbox
                    carries (core/release.py); pip's own index

What was fetched is kept in the user's cache under its name, and checked again each time it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from mlbox import errors
from mlbox.core import release as releases
from mlbox.core.session import Spec
from mlbox.host import here, uses
from mlbox.host.engines import Say
from mlbox.host.run import Cancel

_CHUNK = 1024 * 1024


def release(name: str, spec: Spec, say: Say, cancel: Cancel) -> Path:
    """The folder that holds release file `name`, checked. Raises StartFailed where it can't be had."""
    if spec.sources:
        asked = releases.checksum(spec, name) if "@" in spec.vscode_version else ""
        return _from_folder(name, Path(os.path.expanduser(spec.sources)), asked, say, cancel)
    return _from_makers(name, releases.checksum(spec, name), say, cancel)


def wheels(sources: str, say: Say, cancel: Cancel) -> Path | None:
    """The folder, where it holds wheels. Raises StartFailed unless each is as SHA256SUMS says."""
    folder = Path(os.path.expanduser(sources)) if sources else None
    there = sorted(folder.glob("*.whl")) if folder is not None and folder.is_dir() else []
    if folder is None or not there:
        return None
    sums = _sums(folder)
    for done, path in enumerate(there):
        say(f"checking the wheels in {folder}", f"{done} of {len(there)}")
        _check(path, _wanted(sums, path), cancel)
    return folder


def keeping(wait: bool = True) -> AbstractContextManager[bool | None]:
    """While a release of its makers is fetched and used, none is removed; and the other way round (uses.of_folder)."""
    return uses.of_folder(_folder(), wait)


def kept() -> Iterator[tuple[str, os.stat_result]]:
    """The releases that are there, and the halves of those whose download was cut short."""
    for pattern in ("code-server-*.tar.gz", ".code-server-*.tar.gz.*"):
        for path in _folder().glob(pattern):
            with suppress(OSError):
                yield path.name, path.stat()


def forget(name: str) -> bool:
    """False where one is in use."""
    with keeping(wait=False) as nobody:
        if nobody:
            (_folder() / name).unlink(missing_ok=True)
        return bool(nobody)


def _folder() -> Path:
    return here.cache_home() / "sources"


def _digest(path: Path, cancel: Cancel) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            cancel.check()
            block = file.read(_CHUNK)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def _from_folder(name: str, folder: Path, asked: str, say: Say, cancel: Cancel) -> Path:
    """`asked`: the checksum that the session asks for; else the folder's own list says it."""
    if not (folder / name).is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("code-server-*.tar.gz"))) if folder.is_dir() else ""
        hint = (
            f"it holds {there}: choose with --vscode-version" if there else "put it there, with its line in SHA256SUMS"
        )
        raise errors.StartFailed(f"{folder} has no {name}", hint)
    wanted = asked or _wanted(_sums(folder), folder / name)
    say(f"checking {name}")
    _check(folder / name, wanted, cancel)
    return folder


def _sums(folder: Path) -> dict[str, str]:
    """File -> its sha256."""
    try:
        lines = (folder / "SHA256SUMS").read_text().split("\n")
    except OSError:
        raise errors.StartFailed(f"{folder} has no SHA256SUMS", _make_sums(folder)) from None
    pairs = [line.split() for line in lines]
    return {pair[1].removeprefix("*"): pair[0] for pair in pairs if len(pair) == 2}


def _wanted(sums: Mapping[str, str], path: Path) -> str:
    if path.name not in sums:
        message = f"{path.parent}/SHA256SUMS has no line for {path.name}"
        raise errors.StartFailed(message, _make_sums(path.parent))
    return sums[path.name]


def _make_sums(folder: Path) -> str:
    return f"cd {folder}; sha256sum *.tar.gz *.whl > SHA256SUMS"


def _check(path: Path, wanted: str, cancel: Cancel) -> None:
    found = _digest(path, cancel)
    if found != wanted:
        raise errors.StartFailed(
            f"{path.name} is damaged or not what it should be: its sha256 is {found}, not {wanted}",
            f"remove or replace {path}",
        )


def _from_makers(name: str, wanted: str, say: Say, cancel: Cancel) -> Path:
    if not wanted:
        known = ", ".join(sorted({key.split("-")[0] for key in releases.CODE_SERVER_SHA256}))
        hint = (
            f"known: {known}; of others say it (--vscode-version V@sha256:…), or put the file into a folder with "
            "SHA256SUMS and name that with --sources"
        )
        raise errors.StartFailed(f"mlbox knows no checksum for {name}", hint)
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / name).is_file():
        _check(folder / name, wanted, cancel)
        os.utime(folder / name)  # its last use, by which `mlbox image prune` goes
        return folder
    url = releases.CODE_SERVER_URL.format(version=name.split("-")[2], file=name)
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        _download(url, temporary, name, say, cancel)
        _check(temporary, wanted, cancel)
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    return folder


def _download(url: str, path: Path, name: str, say: Say, cancel: Cancel) -> None:
    import urllib.error  # with ssl and more, only where something is fetched
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=15) as answer, path.open("wb") as file:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while True:
                cancel.check()
                block = answer.read(_CHUNK)
                if not block:
                    return
                file.write(block)
                done += len(block)
                say(f"fetching {name}", f"{done >> 20} of {total >> 20} MiB")
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        hint = "a lab without internet keeps the file in a folder: --sources DIR (with SHA256SUMS)"
        raise errors.StartFailed(f"{name} can't be fetched ({reason})", hint) from None
