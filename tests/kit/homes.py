"""A home of a test's own, so that none touches the real one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from mlbox.core import ids
from mlbox.host import here
from mlbox.host.idle import name_of_ticks

PATIENCE = 20.0  # s


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `folder`, and has HOME and the XDG folders lead into it."""
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    return folder


def remove(folder: Path | str) -> None:
    """With what is in it, which whoever was killed a moment ago may be removing too (ssh its sockets)."""
    deadline = time.monotonic() + PATIENCE
    while os.path.lexists(folder):
        assert time.monotonic() < deadline, (folder, list(os.walk(folder)))
        shutil.rmtree(folder, ignore_errors=True)


def forget(top: Path) -> None:
    """What the per-boot folder, which all tests and the real mlbox share, has of ROOTs below `top`."""
    names = set[str]()
    for folder, folders, files in os.walk(top):
        names.update(name[-8:].lower() for name in folders if ids.is_ulid(name))
        names.update({name_of_ticks(folder)} if "mlbox.json" in files else ())
    left = (path for path in here.boot_folder().glob("*") if path.name.partition(".")[0] in names)
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
