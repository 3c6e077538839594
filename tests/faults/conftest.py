"""As in tests/host: neither the real home, nor this machine's leases."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest
from queuebox import program
from trials import FAULTS, Fault

from mlbox.host import attempts, lease, unable


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = homes.fresh(tmp_path / "home", monkeypatch)
    monkeypatch.setattr(lease, "FOLDER", tmp_path / "leases")
    monkeypatch.setattr(sys, "argv", [str(program(tmp_path))])
    monkeypatch.setattr(attempts, "_PAUSE", 0.05)
    monkeypatch.setattr(unable, "REST", 1.0)  # s that what an error kept from starting is passed over
    return folder


@pytest.fixture
def roots() -> Iterator[Path]:
    """In memory where there is such a place: fsync costs nothing there, and the order of calls is the same."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)
        homes.forget(Path(folder))


@pytest.fixture(params=list(FAULTS))
def fault(request: pytest.FixtureRequest) -> Fault:
    return FAULTS[request.param]
