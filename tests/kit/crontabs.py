"""A crontab of a test's own: the program is a false one, and what it keeps a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_PROGRAM = """#!/bin/sh
if [ "$1" != -l ]; then exec cat >"$CRONTAB"; fi
cat "$CRONTAB" 2>/dev/null || { echo "$NONE" >&2; exit 1; }
"""


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, which is not there yet. $NONE: what the program says then."""
    program = folder / "bin/crontab"
    program.parent.mkdir()
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("CRONTAB", str(folder / "crontab"))
    monkeypatch.setenv("NONE", "no crontab for ada")
    return folder / "crontab"
