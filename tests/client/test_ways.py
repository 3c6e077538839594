"""What `ssh NAME` left goes once nobody uses it, and not before."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest

from mlbox.client import proxy, ssh_config, state, ways

ID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKFGcLNm3cJkOlm3cQgvRzRjHJzI0SqGpDtE7N9kXf3d"
HASH = "0123456789abcdef"


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    homes.fresh(tmp_path / "home", monkeypatch)
    folder = tempfile.mkdtemp(prefix="mb", dir="/tmp")  # short: the names of sockets are
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    yield state.runtime()
    homes.remove(folder)


def bound(path: Path, listening: bool = False) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    if listening:
        made.listen(0)
    return made


def enter(local: Path) -> None:
    facts = {"user": "ada", "host_key": KEY, "socket": "/tmp/s.sock"}
    way = {"ssh": ["ssh"], "host": "gpu1", "control": "/run/c", "local": str(local), "moves": False}
    ssh_config.enter(ID, "kind-otter", facts, way, [])


def test_a_session_s_socket_goes_with_its_entry(runtime: Path) -> None:
    own = runtime / f"{HASH}f"
    bound(own).close()
    enter(own)
    ways.sweep({str(own)})
    assert own.exists()
    ssh_config.drop(ID)
    assert not own.exists()
    ssh_config.drop(ID)  # an entry without a place


def test_what_others_left_goes_when_a_session_ends(runtime: Path) -> None:
    dead, living = runtime / f"{HASH}f", runtime / f"{HASH[::-1]}f"
    bound(dead).close()
    (runtime / "other.f").write_text("")
    with bound(living, listening=True), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(living))  # its backlog is full now
        ssh_config.drop(ID)
        assert sorted(path.name for path in runtime.iterdir()) == sorted([living.name, "other.f"])


def test_a_lock_goes_unless_somebody_has_it_or_its_connection_is_up(runtime: Path) -> None:
    free, held, up = (runtime / f"{digit * 16}p.lock" for digit in "abc")
    for path in (free, held, up):
        path.write_text("")
    up.with_suffix("").write_text("")
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ways.sweep(())
    assert not free.exists() and held.exists() and up.exists()


def test_who_waited_for_a_lock_that_was_swept_takes_the_one_that_is_there(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = runtime / f"{HASH}p.lock", fcntl.flock

    def swept_meanwhile(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", swept_meanwhile)
    lock = proxy._lock(str(path))
    assert os.path.samestat(os.fstat(lock), path.stat())
    os.close(lock)
