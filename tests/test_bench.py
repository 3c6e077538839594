"""scripts/bench.py, as far as it goes without measuring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "scripts/bench.py"


def test_outside_its_environment_it_says_where_to_start_it() -> None:
    done = subprocess.run((sys.executable, "-S", str(BENCH), "--help"), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("there is no mlbox") and done.stderr.count("\n") == 1 and "make bench" in done.stderr


def test_within_it_shows_its_parts() -> None:
    done = subprocess.run((sys.executable, str(BENCH), "--help"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
