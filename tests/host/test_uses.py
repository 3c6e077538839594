"""A layer in use is never removed: kernel locks, tried with real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlbox.host import lease, uses


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lease, "FOLDER", tmp_path / "leases")
    monkeypatch.setattr(uses, "FOLDER", tmp_path / "uses")
    yield
    for descriptor in uses._HELD.values():
        os.close(descriptor)
    uses._HELD.clear()


def child(act: Callable[[], object]) -> tuple[int, int]:
    """A process that acts, says so, and stays; its pid, and where its word arrives."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        act()
        os.write(write, b"x")
        signal.pause()
    finally:
        os._exit(1)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_in_use_until_its_last_user_is_gone() -> None:
    users = [child(lambda: uses.begin("a1")) for _ in range(2)]
    for _, word in users:
        assert os.read(word, 1) == b"x"
    for pid, word in users:
        with uses.nobody("a1") as nobody, uses.nobody("b2") as other:
            assert not nobody and other
        end(pid)
        os.close(word)
    with uses.nobody("a1") as nobody:
        assert nobody


def test_who_begins_while_another_removes_waits_for_the_end() -> None:
    go_r, go_w = os.pipe()  # a child that is born later would inherit the lock

    def wait_and_begin() -> None:
        os.read(go_r, 1)
        uses.begin("a1")

    pid, word = child(wait_and_begin)
    with uses.nobody("a1") as nobody:
        assert nobody
        os.write(go_w, b"x")
        deadline = time.monotonic() + 20
        while f" {pid} " not in Path("/proc/locks").read_text().replace("-> FLOCK", "FLOCK"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.set_blocking(word, False)
        with pytest.raises(BlockingIOError):
            os.read(word, 1)
    os.set_blocking(word, True)
    assert os.read(word, 1) == b"x"
    for descriptor in (go_r, go_w):
        os.close(descriptor)
    end(pid)
    os.close(word)


def test_nobody_finds_half_a_layer(tmp_path: Path) -> None:
    """A user and a remover, as fast as they can: a user who has begun either has a whole one, or makes it."""
    layer, stop = tmp_path / "layer", threading.Event()

    def use() -> None:
        for _ in range(200):
            uses.begin("a1")
            if not layer.exists():
                layer.write_text("whole")
            if layer.read_text() != "whole":
                os._exit(3)
            os.close(uses._HELD.pop("a1"))
        os._exit(0)

    pid = os.fork()  # one: layers are built under a lock of their own (host/prepare.py)
    if not pid:
        try:
            use()
        finally:
            os._exit(4)

    def remove() -> None:
        while not stop.is_set():
            with uses.nobody("a1") as nobody:
                if nobody:
                    layer.unlink(missing_ok=True)

    remover = threading.Thread(target=remove)
    remover.start()
    status = os.waitpid(pid, 0)[1]
    stop.set()
    remover.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_last_use_is_that_of_any_user() -> None:
    assert uses.last("a1") == 0
    uses.begin("a1")
    mine = uses.last("a1")
    assert abs(mine - time.time()) < 60
    (uses.FOLDER / "a1.4711").touch()
    os.utime(uses.FOLDER / "a1.4711", (mine + 500, mine + 500))
    assert uses.last("a1") == mine + 500
    uses.forget("a1")
    assert uses.last("a1") == mine + 500 and not (uses.FOLDER / f"a1.{os.getuid()}").exists()


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_that_somebody_put_there_leads_nowhere(tmp_path: Path, dangling: bool) -> None:
    target = tmp_path / "target"
    if not dangling:
        target.touch()
        os.utime(target, (5, 5))
    uses.FOLDER.mkdir()
    (uses.FOLDER / f"a1.{os.getuid()}").symlink_to(target)
    uses.begin("a1")
    assert target.exists() != dangling and (dangling or target.stat().st_mtime == 5)


def test_nor_does_the_folder_where_that_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    uses.FOLDER.symlink_to(tmp_path / "mine")
    uses.begin("a1")
    assert os.listdir(tmp_path / "mine") == []
