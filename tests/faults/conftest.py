"""As in tests/host: neither the real home, nor this machine's leases."""

from __future__ import annotations

import sys
from pathlib import Path

import homes
import pytest
from queuebox import program

from mlbox.host import attempts, lease


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = homes.fresh(tmp_path / "home", monkeypatch)
    monkeypatch.setattr(lease, "FOLDER", tmp_path / "leases")
    monkeypatch.setattr(sys, "argv", [str(program(tmp_path))])
    monkeypatch.setattr(attempts, "_PAUSE", 0.05)
    return folder
