"""The guest as a process: how it ends where it can't begin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mlbox


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "No such file or directory: "),  # its folder is not there
        ({"env": ["A=1"]}, "ValueError"),
    ],
)
def test_why_it_ended_is_said(tmp_path: Path, config: dict[str, object], words: str) -> None:
    """Nobody else does: its parent knows the exit code."""
    usual = {
        "home": "/",
        "shell": "/bin/sh",
        "path": "",
        "env": {},
        "session": "x",
        "key": "",
        "run": str(tmp_path / "no"),
    }
    (tmp_path / "guest.json").write_text(json.dumps({**usual, "jupyter": [], "vscode": [], "ssh": None, **config}))
    program = "import sys; from mlbox.guest.main import main; sys.exit(main(sys.argv[1]))"
    done = subprocess.run(
        (sys.executable, "-c", program, str(tmp_path / "guest.json")),
        cwd=Path(mlbox.__file__).parents[1], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and words in done.stderr, done
