"""A home of a test's own, so that none touches the real one."""

from __future__ import annotations

from pathlib import Path

import pytest


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `folder`, and has HOME and the XDG folders lead into it."""
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    return folder
