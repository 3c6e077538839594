"""No test here touches the real home; a session's folders lie where a socket's path is short."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.fresh(tmp_path / "home", monkeypatch)


@pytest.fixture
def run(home: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mlbox-test-"))
    for name in ("s", "conf", "log", "guest"):
        (folder / name).mkdir()
    yield folder
    shutil.rmtree(folder)
