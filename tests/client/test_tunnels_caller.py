"""Whose connection a port of the laptop takes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mlbox.client.tunnels import LocalLink, caller
from tests.client.kit import Host, Opened

NOBODY = 65534
_SAYS = """
import os, socket, sys
os.setgroups([])
os.setuid(int(sys.argv[2]))
with socket.socket() as sock:
    sock.settimeout(20)
    if sys.argv[3]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[3].encode())
    sock.connect(("127.0.0.1", int(sys.argv[1])))
    sock.sendall(b"hi")
    print(sock.recv(2))
"""


@contextlib.contextmanager
def met(address: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the client's end, the port's)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        port = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"no {address} here")
    with port, socket.create_connection(port.getsockname()[:2], 20) as client, port.accept()[0] as taken:
        yield client, taken


@pytest.fixture
def linux() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_its_maker_is_known(linux: None, address: str) -> None:
    with met(address) as (client, taken):
        assert caller._owner(taken.family, taken.getpeername(), taken.getsockname()) == (
            os.geteuid(),
            os.fstat(client.fileno()).st_ino,
        )
        assert caller.is_welcome(taken)


@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
def test_one_that_was_left_is_nobody_s(linux: None, abrupt: bool) -> None:
    """It could have been anybody's, who sends and does not wait."""
    with met() as (client, taken):
        client.sendall(b"delete all")
        if abrupt:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert not caller.is_welcome(taken)


@pytest.mark.parametrize(
    ("owner", "welcome"),
    [((1000, 7), True), ((0, 7), True), ((0, 0), False), ((1001, 7), False), ((1000, 0), False), (None, True)],
)
def test_who_is_welcome(
    linux: None, monkeypatch: pytest.MonkeyPatch, owner: tuple[int, int] | None, welcome: bool
) -> None:
    """None: on no socket of this machine, such as a virtual machine's owner's."""
    monkeypatch.setattr(caller, "_owner", lambda *between: owner)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with met() as (_, taken):
        assert caller.is_welcome(taken) == welcome


def test_where_nobody_tells_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with met() as (_, taken):
        monkeypatch.setattr(sys, "platform", "darwin")
        assert caller.is_welcome(taken)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(caller, "_SOCK_DIAG", 31)  # no such protocol
        assert caller.is_welcome(taken)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS])
def test_who_can_not_be_asked_about_just_now_is_shut_out(
    linux: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*between: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(caller, "_owner", fails)
    with met() as (_, taken):
        assert not caller.is_welcome(taken)


@pytest.mark.parametrize("device", ["", "lo"])
def test_another_user_is_sent_nothing(linux: None, host: Host, device: str) -> None:
    """Nor one whose socket is bound to the interface, which is no other's."""
    if os.getuid() != 0:
        pytest.skip("needs root, to be another user")
    with Opened(lambda n: LocalLink(host.paths())) as opened:
        assert opened.tunnels.wait_up(20)
        port = str(opened.tunnels.port("echo"))

        def say(user: int) -> subprocess.CompletedProcess[str]:
            argv = [sys.executable, "-I", "-S", "-c", _SAYS, port, str(user), device]
            return subprocess.run(argv, capture_output=True, text=True, timeout=60)

        assert say(0).stdout == "b'hi'\n"
        theirs = say(NOBODY)
        assert theirs.stdout == "b''\n" or "ConnectionResetError" in theirs.stderr
