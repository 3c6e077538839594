"""The keeper's end of its line to the guest: leases go both ways, and nobody's words break it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mlbox import descriptors
from mlbox.host import link as host_link
from mlbox.host.link import GuestLink, answers

PATIENCE = 20.0  # s


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mb", dir="/tmp"))  # short: the names of sockets are
    yield folder / "keeper.sock"
    shutil.rmtree(folder)


def file(folder: Path, name: str) -> int:
    return os.open(folder / name, os.O_RDWR | os.O_CREAT)


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def dial(link: GuestLink, path: Path, brought: Sequence[int] = (), **hello: object) -> socket.socket:
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    guest.settimeout(PATIENCE)
    guest.connect(str(path))
    link.turn((), PATIENCE)
    descriptors.send(guest, {"hello": "id", **hello}, brought)
    link.turn((), PATIENCE)
    return guest


def test_the_guest_gets_the_leases(path: Path, tmp_path: Path) -> None:
    link = GuestLink({"GPU-1": file(tmp_path, "1"), "GPU-2": file(tmp_path, "2")}, "id")
    link.listen(path)
    guest = dial(link, path)
    said, got = descriptors.receive(guest)
    assert json.loads(said) == {"leases": ["GPU-1", "GPU-2"]}
    assert [same(a, b) for a, b in zip(got, (file(tmp_path, "1"), file(tmp_path, "2")))] == [True, True]


def test_a_keeper_that_adopts_gets_back_what_it_has_not(path: Path, tmp_path: Path) -> None:
    own = file(tmp_path, "1")
    leases = {"GPU-1": own}
    link = GuestLink(leases, "id")
    link.listen(path)
    brought = [file(tmp_path, "1"), file(tmp_path, "2")]
    dial(link, path, brought, leases=["GPU-1", "GPU-2"], services={"ssh": {"state": "ready"}})
    assert leases["GPU-1"] == own and same(leases["GPU-2"], brought[1])
    assert link.all_ready(["ssh"]) and not link.all_ready(["ssh", "jupyter"])


def test_services_as_they_were_last_said_in_whatever_pieces(path: Path) -> None:
    link = GuestLink({}, "id")
    link.listen(path)
    guest = dial(link, path)
    words = b'{"service": "ssh", "state": "ready"}\n{"service": "jupyter", "state": "failed", "why": "no"}\n'
    for piece in (b"no JSON\n7\n", words[:50], words[50:]):
        guest.sendall(piece)
        link.turn((), PATIENCE)
    assert link.services["ssh"] == {"state": "ready"}
    assert link.failed() == {"jupyter": {"state": "failed", "why": "no"}}


@pytest.mark.parametrize(
    "hello",
    [
        {"leases": 3}, {"leases": ["no GPU"]}, {"leases": [["GPU-1"]]}, {"leases": {"GPU-1": 0}}, {"services": [1]},
        {"services": {"ssh": {}, "jupyter": "ready", "vscode": {"state": 1}}},
    ],
)  # fmt: skip
def test_an_odd_hello_is_passed_over_and_what_it_brought_is_closed(
    path: Path, tmp_path: Path, hello: dict[str, object]
) -> None:
    leases: dict[str, int] = {}
    link = GuestLink(leases, "id")
    link.listen(path)
    gc.collect()  # other tests' connections
    before = len(os.listdir("/proc/self/fd"))
    brought = [file(tmp_path, "1")]
    guest = dial(link, path, brought, **hello)
    assert (leases, link.services, link.failed()) == ({}, {}, {})
    descriptors.send(guest, {"service": "ssh", "state": "failed"}, brought)
    link.turn((), PATIENCE)
    assert link.failed() == {"ssh": {"state": "failed", "why": ""}}
    assert len(os.listdir("/proc/self/fd")) == before + 3  # the connection's two ends, and our own file


def test_a_line_without_an_end_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_link, "_LONGEST", 10)
    link = GuestLink({}, "id")
    link.listen(path)
    guest = dial(link, path, [])
    for words in (b"x" * 11, b'{"service": "ssh", "state": "ready"}\n'):
        guest.sendall(words)
        link.turn((), PATIENCE)
    assert link.services == {"ssh": {"state": "ready"}}


def test_the_guest_s_end_is_heard_and_it_may_come_back(path: Path) -> None:
    link = GuestLink({}, "id")
    link.listen(path)
    dial(link, path).close()
    link.turn((), PATIENCE)
    assert not link.connected
    first = dial(link, path)
    first.sendall(b'{"service": "ssh", "sta')  # and it is cut off
    link.turn((), PATIENCE)
    second = dial(link, path)
    second.sendall(b'{"service": "ssh", "state": "ready"}\n')
    link.turn((), PATIENCE)
    assert link.connected and link.all_ready(["ssh"])
    while first.recv(4096):  # the keeper has let go of it
        pass


def test_a_stray_connection_cuts_nobody_off(path: Path) -> None:
    link = GuestLink({}, "id")
    link.listen(path)
    guest = dial(link, path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stray:
        stray.connect(str(path))
        link.turn((), PATIENCE)
        stray.sendall(b'{"service": "ssh", "state": "failed", "why": "no"}\n')
        link.turn((), PATIENCE)
    guest.sendall(b'{"service": "ssh", "state": "ready"}\n')
    link.turn((), PATIENCE)
    assert link.connected and link.all_ready(["ssh"]) and not link.failed()


def test_a_guest_answers_or_is_not_there(path: Path) -> None:
    assert not answers(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        assert not answers(path)  # what is left of one that was killed
