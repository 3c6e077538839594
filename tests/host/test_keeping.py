"""A process that keeps a job lives on, whatever becomes of those around it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mlbox.host import keeping


def test_a_log_on_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    def body() -> None:
        print("on the way", file=sys.stderr)
        print("done")
        (tmp_path / "done").touch()

    keeping.detach(body, Path("/dev/full"), ())
    deadline = time.monotonic() + 20
    while not (tmp_path / "done").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
