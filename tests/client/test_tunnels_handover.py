"""Connections given to an ssh: what is said to it, over a real control socket. With ssh itself: test_tunnels_ssh.py,
where this machine's is new enough, and tests/lab/test_handover.py."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from mlbox.client.tunnels.handover import Handover, takes_connections, version
from mlbox.splice import let_go

OPENED, DENIED, FAILED = 0x80000006, 0x80000002, 0x80000003
TARGET = "/run/s/jupyter.sock"


class Master:
    """The other end, as OpenSSH's PROTOCOL.mux has it: one conversation. Given descriptors wait in `given`."""

    def __init__(self, path: Path, then: Callable[[Master], None]) -> None:
        self.path = str(path)
        self.given: list[int] = []
        self.said = b""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._then = then
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.conversation, _ = self._listener.accept()
        with self.conversation:
            self.conversation.settimeout(20)
            self.say(struct.pack(">II", 1, 4) + b"\0\0\0\4info\0\0\0\1" + b"0")  # extensions may follow the version
            self.said = self.hear() + self.hear()
            for _ in range(2):
                byte, descriptors, _, _ = socket.recv_fds(self.conversation, 1, 1)
                assert byte == b"\0"
                self.given += descriptors
            self._then(self)
        for descriptor in self.given:
            os.close(descriptor)

    def say(self, message: bytes) -> None:
        self.conversation.sendall(struct.pack(">I", len(message)) + message)

    def hear(self) -> bytes:
        (length,) = struct.unpack(">I", self.conversation.recv(4, socket.MSG_WAITALL))
        return self.conversation.recv(length, socket.MSG_WAITALL)

    def answer(self, kind: int) -> None:
        self.say(struct.pack(">III", kind, 1, 0))

    def await_end(self) -> None:
        assert self.conversation.recv(1) == b""

    def close(self) -> None:
        self._listener.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


class Joined:
    """A client's connection, and its Handover at work in a thread."""

    def __init__(self, control: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.client = socket.create_connection(server.getsockname())
            self.near, _ = server.accept()
        self.client.settimeout(20)
        self.client.sendall(b"question")
        self.handover = Handover(control, TARGET, self.near)
        self.taken: list[bool] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self.handover:
            self.taken.append(self.handover.run())

    def ended(self) -> bool:
        self.thread.join(20)
        return self.taken[0]


@contextlib.contextmanager
def conversation(path: Path, then: Callable[[Master], None]) -> Iterator[tuple[Master, Joined]]:
    with contextlib.closing(Master(path / "control", then)) as master:
        joined = Joined(master.path)
        with joined.client, joined.near:
            yield master, joined


def test_ssh_reads_and_writes_it_and_ends_it(tmp_path: Path) -> None:
    def carry(master: Master) -> None:
        master.answer(OPENED)
        read, write = master.given
        assert os.read(read, 100) == b"question"
        os.write(write, b"answer")

    with conversation(tmp_path, carry) as (master, joined):
        assert joined.client.recv(6, socket.MSG_WAITALL) == b"answer"
        assert joined.ended()
        hello, path = struct.pack(">II", 1, 4), TARGET.encode()
        opening = struct.pack(">IIII", 0x10000008, 1, 0, len(path)) + path + struct.pack(">I", 0xFFFFFFFE)
        assert master.said == hello + opening


@pytest.mark.parametrize("kind", [DENIED, FAILED])
def test_what_the_host_refuses_is_as_it_was(tmp_path: Path, kind: int) -> None:
    def refuse(master: Master) -> None:
        os.set_blocking(master.given[0], False)  # as ssh does
        master.answer(kind)

    with conversation(tmp_path, refuse) as (_, joined):
        assert not joined.ended()
        assert os.get_blocking(joined.near.fileno())
        assert joined.near.recv(100) == b"question"


@pytest.mark.parametrize("words", [b"", b"\0\0\0\2xx", b"\xff\xff\xff\xff", b"\0\0\0\x0c"])
def test_an_ssh_that_ends_or_says_something_else_did_not_take_it(tmp_path: Path, words: bytes) -> None:
    with conversation(tmp_path, lambda master: master.conversation.sendall(words)) as (_, joined):
        assert not joined.ended()
        assert joined.near.recv(100) == b"question"


def test_it_is_cut_while_the_host_says_nothing(tmp_path: Path) -> None:
    asked = threading.Event()

    def wait(master: Master) -> None:
        asked.set()
        master.await_end()

    with conversation(tmp_path, wait) as (_, joined):
        assert asked.wait(20)
        joined.handover.cut()
        assert not joined.ended()
        joined.handover.cut()  # any number of times


def test_it_is_cut_while_it_is_carried(tmp_path: Path) -> None:
    def carry(master: Master) -> None:
        master.answer(OPENED)
        os.write(master.given[1], b"answer")
        master.await_end()

    with conversation(tmp_path, carry) as (_, joined):
        assert joined.client.recv(6, socket.MSG_WAITALL) == b"answer"
        joined.handover.cut()
        assert joined.ended()


def test_a_client_that_still_sends_gets_the_whole_answer(tmp_path: Path) -> None:
    """From what has answered and closed; ssh then leaves, and what it did not read would reset the connection."""
    answer = b"x" * 400_000

    def carry(master: Master) -> None:
        master.answer(OPENED)
        assert os.read(master.given[0], 8) == b"question"
        view = memoryview(answer)
        while view:
            view = view[os.write(master.given[1], view) :]

    with conversation(tmp_path, carry) as (_, joined):
        sender = threading.Thread(target=lambda: joined.client.sendall(bytes(8_000_000)))
        sender.start()
        assert joined.ended()
        ending = threading.Thread(target=let_go, args=(joined.near,))
        ending.start()
        assert b"".join(iter(lambda: joined.client.recv(65536), b"")) == answer
        sender.join(20)
        joined.client.shutdown(socket.SHUT_WR)
        ending.join(20)
        assert not sender.is_alive() and not ending.is_alive()


def test_without_a_control_socket_nothing_is_taken(tmp_path: Path) -> None:
    joined = Joined(str(tmp_path / "none"))
    with joined.client, joined.near:
        assert not joined.ended()
        assert joined.near.recv(100) == b"question"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("OpenSSH_10.0p2 Debian-7+deb13u4, OpenSSL 3.5.9 29 Sep 2026", (10, 0)),
        ("OpenSSH_9.9p1, LibreSSL 3.3.6", (9, 9)),
        ("OpenSSH_for_Windows_9.5p1, LibreSSL 3.8.2", (9, 5)),
        ("Dropbear v2022.83", None),
        ("", None),
    ],
)
def test_which_version_an_ssh_is(said: str, found: tuple[int, int] | None) -> None:
    assert version(said) == found


@pytest.mark.parametrize(("said", "takes"), [("OpenSSH_9.4p1", True), ("OpenSSH_9.3p2", False), ("Dropbear", False)])
def test_who_takes_connections(said: str, takes: bool, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    ssh.chmod(0o755)
    assert takes_connections(str(ssh)) == takes
    assert not takes_connections(str(tmp_path / "none"))
