"""What the small file on a host runs, as a process of its own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import homes
import pytest
from queuebox import box, program

from mlbox.host import lease


@pytest.mark.parametrize("umask", ["077", "002", "000"])
def test_whatever_the_umask_others_read_a_users_hints_and_write_none(
    umask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They reckon with what it holds, and whose it is. What its jobs make is as it has it."""
    homes.fresh(tmp_path / "home", monkeypatch)
    monkeypatch.setattr(lease, "FOLDER", tmp_path / "leases")
    monkeypatch.setenv("TEST_BOX_LEASES", str(tmp_path / "leases"))
    with box(tmp_path / "root") as queue:
        queue.lab("queues: {hold: {}, default: {}}\n")
        (queue.root / "paused").mkdir()
        (queue.root / "paused/default").touch()
        job = queue.sh(f"umask; echo >{tmp_path}/made")
        (queue.root / "paused/default").unlink()
        tick = ("/bin/sh", "-c", f'umask {umask}; exec "$@"', "sh", sys.executable, str(program(tmp_path)), "tick")
        subprocess.run((*tick, "--root", str(queue.root)), check=True)
        queue.end(job)
        assert int(queue.output(job), 8) == int(umask, 8)
        assert stat.S_IMODE(os.stat(tmp_path / "made").st_mode) == 0o666 & ~int(umask, 8)
        for path in (*queue.found.on().iterdir(), *job.folder.glob("ev/0*"), job.folder / "ev"):
            assert path.stat().st_mode & 0o066 == 0o044, path
