"""Messages with open descriptors, and the socket that answers a ping."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlbox import descriptors
from mlbox.core.proof import proof
from mlbox.guest import control

OWNER = (os.getuid(), os.getgid())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, two:
        yield one, two


@pytest.mark.parametrize("count", [0, 1, 8, 64])
def test_descriptors_arrive_with_their_message(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, count: int
) -> None:
    files = []
    for number in range(count):
        (tmp_path / str(number)).write_text(str(number))
        files.append(os.open(tmp_path / str(number), os.O_RDONLY))
    descriptors.send(pair[0], {"leases": list(range(count))}, files)
    for descriptor in files:
        os.close(descriptor)
    data, found = descriptors.receive(pair[1])
    assert json.loads(data) == {"leases": list(range(count))}
    assert [os.read(descriptor, 9).decode() for descriptor in found] == [str(n) for n in range(count)]
    for descriptor in found:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(descriptor)


def test_the_other_end_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert descriptors.receive(pair[1]) == (b"", [])
    with pytest.raises(OSError):
        descriptors.send(pair[1], {"a": 1})


def test_messages_are_lines(pair: tuple[socket.socket, socket.socket]) -> None:
    descriptors.send(pair[0], {"text": "a\nb"})
    descriptors.send(pair[0], {"b": 2})
    data, _ = descriptors.receive(pair[1])
    assert [json.loads(line) for line in data.splitlines()] == [{"text": "a\nb"}, {"b": 2}]


# ---- guest.sock ----------------------------------------------------------------------------------


@pytest.fixture
def guest(run: Path) -> tuple[Path, list[str]]:
    ready: list[str] = []
    control.serve(run / "s/guest.sock", lambda: list(ready), OWNER, "k3y")
    return run / "s/guest.sock", ready


def ask(path: Path, *lines: bytes) -> list[object]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        connection.sendall(b"".join(line + b"\n" for line in lines))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile() as file:
            return [json.loads(line) for line in file]


def test_ping_says_what_is_ready(guest: tuple[Path, list[str]]) -> None:
    path, ready = guest
    assert ask(path, b'{"op": "ping"}') == [{"ok": True, "ready": []}]
    ready.append("jupyter")
    assert ask(path, b'{"op": "ping"}', b'{"op": "ping"}') == [{"ok": True, "ready": ["jupyter"]}] * 2


def test_who_brings_a_nonce_gets_a_proof(guest: tuple[Path, list[str]]) -> None:
    [said] = ask(guest[0], b'{"op": "ping", "nonce": "n1"}')
    assert said == {"ok": True, "ready": [], "proof": proof("k3y", "n1")}
    assert ask(guest[0], b'{"op": "ping", "nonce": 7}') == [{"ok": True, "ready": []}]
    assert ask(guest[0], b'{"op": "ping", "nonce": "\\ud800"}') == []


def test_what_is_not_known_is_not_ok(guest: tuple[Path, list[str]]) -> None:
    assert ask(guest[0], b'{"op": "dance"}') == [{"ok": False, "ready": []}]


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"\xff", b"7"], ids=repr)
def test_nonsense_ends_its_connection_and_no_other(guest: tuple[Path, list[str]], line: bytes) -> None:
    assert ask(guest[0], line) == []
    assert ask(guest[0], b'{"op": "ping"}') == [{"ok": True, "ready": []}]


def test_the_socket_is_the_owner_s_alone(guest: tuple[Path, list[str]]) -> None:
    assert stat.S_IMODE(guest[0].stat().st_mode) == 0o600


def test_a_socket_left_behind_is_replaced(run: Path) -> None:
    (run / "s/guest.sock").write_text("left behind")
    control.serve(run / "s/guest.sock", lambda: [], OWNER, "k3y")
    assert ask(run / "s/guest.sock", b'{"op": "ping"}') == [{"ok": True, "ready": []}]


@pytest.mark.skipif(os.getuid() != 0, reason="only a container's root gives files away")
def test_what_root_makes_is_given_to_the_owner(run: Path) -> None:
    (run / "s/x").write_text("")
    control.give(run / "s/x", (65534, 65534))
    found = (run / "s/x").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o600)


# ---- ports inside --------------------------------------------------------------------------------


def connect(path: Path, port: object, more: bytes = b"") -> tuple[socket.socket, object]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(str(path))
    connection.sendall(json.dumps({"op": "connect", "port": port}).encode() + b"\n" + more)
    answer = b"".join(iter(lambda: connection.recv(1), b"\n"))
    return connection, json.loads(answer)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_goes_on_as_one_to_a_port_inside(guest: tuple[Path, list[str]], address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        service = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"no {address} here")
    with service:
        connection, answer = connect(guest[0], service.getsockname()[1], b"early ")
        assert answer == {"ok": True}
        inside, _ = service.accept()
        with inside, connection:
            connection.sendall(b"words")
            connection.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: inside.recv(100), b"")) == b"early words"
            inside.sendall(b"and back")
            inside.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: connection.recv(100), b"")) == b"and back"


def test_a_port_where_nobody_listens_yet_is_refused_and_later_not(guest: tuple[Path, list[str]]) -> None:
    with socket.socket() as service:
        service.bind(("127.0.0.1", 0))  # so it is nobody else's meanwhile
        port = service.getsockname()[1]
        connection, answer = connect(guest[0], port)
        with connection:
            assert answer == {"ok": False} and connection.recv(1) == b""
        service.listen()
        connection, answer = connect(guest[0], port)
        connection.close()
        assert answer == {"ok": True}


@pytest.mark.parametrize("port", [0, 65536, -1, "22", None, 1.5, [22]], ids=repr)
def test_what_is_no_port_is_refused(guest: tuple[Path, list[str]], port: object) -> None:
    connection, answer = connect(guest[0], port)
    with connection:
        assert answer == {"ok": False} and connection.recv(1) == b""
    assert ask(guest[0], b'{"op": "ping"}') == [{"ok": True, "ready": []}]
