"""A process that keeps a job lives on, whatever becomes of those around it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlbox import errors
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


def test_to_ask_for_a_lock_makes_no_file(tmp_path: Path) -> None:
    """In a folder that is about to vanish it would be in the way."""
    assert not keeping.is_held(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_who_is_alive_and_has_not_signed_is_waited_for(tmp_path: Path) -> None:
    looks = iter([True, True, False])
    keeping.tell_process(lambda: next(looks), tmp_path / "pid", "runner")
    assert next(looks, None) is None


def test_a_pid_that_is_another_process_now_gets_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "PATIENCE", 0.0)
    with subprocess.Popen(("sleep", "60")) as other:
        (tmp_path / "pid").write_text(f'{{"pid": {other.pid}, "started": "1"}}')
        with pytest.raises(errors.MlboxError, match="the runner can't be found"):
            keeping.tell_process(lambda: True, tmp_path / "pid", "runner")
        other.kill()
        assert other.wait() == -signal.SIGKILL  # and of nothing else
