"""No call that touches a file escapes the faults: what Python code does by `os` is counted (tests/kit/calls.py), and
what C does by itself is not used here."""

from __future__ import annotations

import ast
import fcntl
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from calls import NO_FILE, Calls
from queuebox import REPOSITORY, Box
from trials import Trial, victim

from mlbox.host import code

# They touch no file, or by `os` and `open` alone, or run other programs, or read the system's own.
BY_OS = set(
    "__future__ _thread base64 collections collections.abc concurrent.futures contextlib dataclasses datetime difflib "
    "errno functools gc gzip hashlib hmac importlib itertools json math pathlib posixpath psutil pwd pynvml random re "
    "secrets select selectors shlex shutil signal stat struct subprocess sys tarfile termios threading time traceback "
    "typing urllib.error urllib.request yaml zlib".split()
)
# The others, and what of them is used: of `os` not what scandir gives, which looks at files by itself; a session's
# sockets, which no job has; a library's functions.
ONLY = {
    "codecs": r"getincrementaldecoder",
    "ctypes": r"CDLL",
    "fcntl": r"flock|ioctl|LOCK_\w+",
    "io": r"BytesIO|TextIOBase",
    "os": r"(?!scandir|DirEntry)\w+",
    "socket": r"\w+",
}


def escapes(path: Path) -> Iterator[tuple[str, int, str]]:
    """Where a module uses what the faults may not meet."""
    tree = ast.parse(path.read_text())
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        used: list[str] = []
        if isinstance(node, ast.Import):
            used = [name.name for name in node.names if name.name not in {*BY_OS, *ONLY} and not _ours(name.name)]
        elif isinstance(node, ast.ImportFrom):
            used = [str(node.module)] if node.module not in BY_OS and not _ours(str(node.module)) else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ONLY:
            of, name = node.value.id, node.attr
            kept = of == "os" and id(node) not in called and callable(getattr(os, name)) and not _is_plain(name)
            used = [f"{of}.{name}"] if kept or not re.fullmatch(ONLY[of], name) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "__import__":
            used = ["__import__"]
        yield from ((str(path.relative_to(REPOSITORY)), getattr(node, "lineno", 0), name) for name in used)


def _ours(module: str) -> bool:
    return module.split(".")[0] == "mlbox"


def _is_plain(name: str) -> bool:
    """Kept under a name of one's own it would be called past the faults; a type or what touches no file may be."""
    return isinstance(getattr(os, name), type) or NO_FILE.fullmatch(name) is not None


def test_what_the_host_uses() -> None:
    package = REPOSITORY / "mlbox"
    there = [path for room in ("host", "core") for path in (package / room).rglob("*.py")]
    found = [found for path in (*there, package / "entry.py", package / "errors.py") for found in escapes(path)]
    assert found == []


@pytest.mark.parametrize(
    "line, name",
    [
        ("import mmap", "mmap"), ("from os import write", "os"), ("from posix import write", "posix"),
        ("import io\nio.FileIO('x')", "io.FileIO"), ("import os\nwrite = os.write", "os.write"),
        ("import os\nlist(os.scandir())", "os.scandir"), ("import fcntl\nfcntl.fcntl(1, 2)", "fcntl.fcntl"),
    ],
)  # fmt: skip
def test_what_would_escape_is_named(line: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    (tmp_path / "new.py").write_text(line + "\n")
    assert list(escapes(tmp_path / "new.py")) == [("new.py", line.count("\n") + 1, name)]


def _descriptor(path: Path) -> int:
    return os.open(path, os.O_RDWR)


def _extract(path: Path) -> None:
    (path.parent / "x.tgz").write_bytes(code.pack({"inside": b"1"}))
    with tarfile.open(path.parent / "x.tgz") as archive:
        archive.extractall(path.parent)


# New ways to a file, none of which is named in tests/kit/calls.py; and what each consists of.
WAYS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "pwrite": (lambda path: os.pwrite(_descriptor(path), b"1", 0), ["open", "pwrite"]),
    "ftruncate": (lambda path: os.ftruncate(_descriptor(path), 0), ["open", "ftruncate"]),
    "lockf": (lambda path: fcntl.lockf(_descriptor(path), fcntl.LOCK_EX), ["open", "lockf"]),
    "copyfile": (lambda path: shutil.copyfile(path, path.with_suffix(".new")), ["open", "open", "sendfile", "close"]),
    "read": (lambda path: path.read_text(), ["open", "read", "close"]),
    "write": (lambda path: path.write_text("1"), ["open", "write", "close"]),
    "append": (lambda path: print("1", file=path.open("a", buffering=1)), ["open", "write"]),
    "truncate": (lambda path: path.open("r+").truncate(), ["open", "ftruncate"]),
    "link": (lambda path: path.with_suffix(".link").symlink_to(path), ["symlink"]),
    "extract": (_extract, ["open", "write", "open", "read", "open", "write", "chmod"]),
    "nothing": (lambda path: (os.pipe(), Path("/proc/self/stat").read_text(), os.getpid()), []),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_a_new_call_is_counted(tmp_path: Path, way: str) -> None:
    path = tmp_path / "file"
    path.write_text("12")
    trial, (act, wanted) = Trial(Box(tmp_path / "root"), 1 << 30, 0), WAYS[way]

    def all_of(calls: Calls) -> None:
        calls.begin()
        act(path)

    victim(trial, all_of)
    left = iter(trial.names)
    assert all(name in left for name in wanted) and bool(wanted) == (trial.names != [""]), trial.names
