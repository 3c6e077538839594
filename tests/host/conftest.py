"""No test here touches the real home, or the leases of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest
from queuebox import Box, program
from queuebox import box as open_box

from mlbox.host import attempts, cron, idle, lease


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.fresh(tmp_path / "home", monkeypatch)


@pytest.fixture(autouse=True)
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lease, "FOLDER", tmp_path / "leases")
    return tmp_path / "leases"


@pytest.fixture(autouse=True)
def own_cron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When cron called last is one file of the per-boot folder, which tests beside this one touch."""
    for module in (cron, idle):
        monkeypatch.setattr(module, "HEARD", f"{idle.name_of_ticks(str(tmp_path / 'root'))}.cron")


@pytest.fixture
def box(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A queue with ROOT in `tmp_path`, whose jobs end with the test."""
    monkeypatch.setattr(sys, "argv", [str(program(tmp_path))])
    monkeypatch.setattr(attempts, "_PAUSE", 0.1)
    with open_box(tmp_path / "root") as made:
        yield made
