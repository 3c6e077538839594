"""What `make bench` measures over the network can be measured. By how much is not for a test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from labbox import ROOT, SSH_CONFIG

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2", "gpu3")]


PARTS = {
    "c": ("ssh NAME true",),
    "d": (
        "tunnel, 1 stream",
        "tunnel, 20 streams",
        "new connection, p50",
        "the fastest cipher is",
        "were handed to ssh",
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_needs_hosts(part: str) -> None:
    argv = (sys.executable, "scripts/bench.py", "--only", part, "--runs", "1")
    env = {**os.environ, "MLBOX_SSH_CONFIG": str(SSH_CONFIG), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in PARTS[part]:
        assert words in done.stdout + done.stderr
