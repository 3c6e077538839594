"""The guest is who says hello in the session's name; who else comes to its socket changes nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlbox import descriptors
from mlbox.host.visitors import Visitor, Visitors

HELLO = {"hello": "S", "leases": ["GPU-1"], "services": {}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keeper.sock"


@pytest.fixture
def visitors(path: Path) -> Iterator[Visitors]:
    made = Visitors(path, "S")
    yield made
    for one in made.sockets:
        one.close()


def dial(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.connect(str(path))
    return made


def turn(visitors: Visitors) -> Visitor | None:
    """All that is to be had just now."""
    import select

    while ready := select.select(visitors.sockets, (), (), 0)[0]:
        came = visitors.open(ready)
        if came is not None:
            return came
    return None


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.0\r\n\r\n", b'{"hello": "another"}\n', b"[1]\n", b'{"service": "ssh", "state": "failed"}\n'],
    ids=str,
)
def test_a_stray_connection_is_no_guest(visitors: Visitors, path: Path, said: bytes) -> None:
    with dial(path) as stray:
        stray.sendall(said)
        assert turn(visitors) is None
        if said:
            stray.settimeout(5)
            assert stray.recv(1) == b""
    assert turn(visitors) is None
    assert len(visitors.sockets) == 1


def test_the_guest_is_told_with_all_that_it_said_and_brought(visitors: Visitors, path: Path) -> None:
    with dial(path) as silent, dial(path) as guest, open(os.devnull) as lease:
        descriptors.send(guest, HELLO, [lease.fileno()])
        descriptors.send(guest, {"service": "ssh", "state": "ready"})
        came = turn(visitors)
        assert came is not None
        assert came.said.startswith(b'{"hello": "S"') and len(came.brought) == 1
        assert os.path.samestat(os.fstat(came.brought[0]), os.fstat(lease.fileno()))
        assert len(visitors.sockets) == 2  # the silent one may still say something
        came.close()
        silent.sendall(b'{"hello": ')
        assert turn(visitors) is None
        silent.sendall(b'"S"}\n')
        again = turn(visitors)
        assert again is not None
        again.close()


def test_visitors_can_t_keep_the_guest_out(visitors: Visitors, path: Path) -> None:
    silent = []
    for _ in range(30):
        silent.append(dial(path))
        assert turn(visitors) is None
    assert len(visitors.sockets) < 10
    with dial(path) as guest:
        descriptors.send(guest, HELLO)
        came = turn(visitors)
        assert came is not None
        came.close()
    for one in silent:
        one.close()


def test_what_a_stray_connection_brought_is_closed(visitors: Visitors, path: Path) -> None:
    read, write = os.pipe()
    with dial(path) as stray:
        descriptors.send(stray, {"hello": "another"}, [write])
        os.close(write)
        assert turn(visitors) is None
    assert os.read(read, 1) == b""  # nobody has the other end any more
    os.close(read)
