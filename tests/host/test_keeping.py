"""A process that keeps a job lives on, whatever becomes of those around it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from queuebox import until

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


def test_who_is_alive_and_has_not_signed_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True, True, False])
    monkeypatch.setattr(keeping, "is_held", lambda lock: next(looks))
    keeping.tell_process(tmp_path / "lock", tmp_path / "pid", "runner")
    assert next(looks, None) is None


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="the kernel does not tell who has a lock")
def test_who_signed_what_is_gone_is_found_by_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody else is told who has the file open, or waits for its lock."""
    monkeypatch.setattr(keeping, "PATIENCE", 0.0)
    lock = tmp_path / "lock"
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); input()"
    with subprocess.Popen((sys.executable, "-c", hold, lock), stdin=-1, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with lock.open() as looked_at:
            keeping.tell_process(lock, tmp_path / "pid", "runner")
            assert holder.wait() == -signal.SIGTERM
            assert not looked_at.closed


def test_a_pid_that_is_another_process_now_gets_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "PATIENCE", 0.0)
    with subprocess.Popen(("sleep", "60")) as other:
        (tmp_path / "pid").write_text(f'{{"pid": {other.pid}, "started": "1"}}')
        monkeypatch.setattr(keeping, "is_held", lambda lock: True)
        with pytest.raises(errors.MlboxError, match="the runner can't be found"):
            keeping.tell_process(tmp_path / "lock", tmp_path / "pid", "runner")
        other.kill()
        assert other.wait() == -signal.SIGKILL  # and of nothing else


def test_garbage_of_before_closes_no_file_of_a_keepers(tmp_path: Path) -> None:
    """Its numbers were closed at the fork, and are a lease's by the time that it is collected."""

    class Cycle:
        def __init__(self) -> None:
            self.file, self.itself = (tmp_path / "before").open("w"), self

    def body() -> None:
        opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(64)]
        gc.collect()
        for descriptor in opened:
            os.fstat(descriptor)
        (tmp_path / "said").write_text("all are open")

    Cycle()
    keeping.detach(body, tmp_path / "log", ())
    until((tmp_path / "said").exists)
