"""No test here touches the real home; a session's folders lie where a socket's path is short."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    return folder


@pytest.fixture
def run(home: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mlbox-test-"))
    for name in ("s", "conf", "log"):
        (folder / name).mkdir()
    yield folder
    shutil.rmtree(folder)
