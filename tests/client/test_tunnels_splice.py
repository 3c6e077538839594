"""Splices over TCP (a client) and a unix socket pair (the tunnel), as in life."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from mlbox import splice as splice_module
from mlbox.splice import Splice, Splices
from tests.client.kit import HalfEnded


class Joined:
    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.client = socket.create_connection(server.getsockname())
            near, _ = server.accept()
        far, self.service = socket.socketpair()
        self.client.settimeout(20)
        self.service.settimeout(20)
        self.splice = Splice(near, far)
        self.thread = threading.Thread(target=self.splice.run, args=(b"head ",), daemon=True)
        self.thread.start()

    def ended(self) -> bool:
        self.thread.join(20)
        return not self.thread.is_alive()


@pytest.fixture
def joined() -> Iterator[Joined]:
    one = Joined()
    assert one.service.recv(5) == b"head "
    yield one
    one.splice.cut()
    assert one.ended()
    one.client.close()
    one.service.close()


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def test_the_client_ends_its_half_and_hears_everything(joined: Joined) -> None:
    data = os.urandom(8_000_000)

    def store() -> None:
        joined.service.sendall(read_all(joined.service))
        joined.service.close()

    service = threading.Thread(target=store)
    service.start()
    joined.client.sendall(data)
    joined.client.shutdown(socket.SHUT_WR)
    assert read_all(joined.client) == data
    service.join()
    assert joined.ended()


def test_the_service_ends_its_half_and_hears_everything(joined: Joined) -> None:
    joined.service.sendall(b"bye")
    joined.service.shutdown(socket.SHUT_WR)
    assert read_all(joined.client) == b"bye"
    joined.client.sendall(b"still here")
    assert joined.service.recv(10) == b"still here"
    joined.client.close()
    assert joined.service.recv(1) == b""
    assert joined.ended()


def test_an_early_answer_reaches_a_client_that_is_still_sending(joined: Joined) -> None:
    """413 Payload Too Large, and the server closes: the answer must not be lost in a reset."""
    answer = os.urandom(300_000)
    stop = threading.Event()

    def upload() -> None:
        try:
            while not stop.is_set():
                joined.client.sendall(bytes(1 << 16))
        except OSError:
            pass

    uploader = threading.Thread(target=upload)
    uploader.start()
    joined.service.recv(1 << 16)
    joined.service.sendall(answer)
    joined.service.close()
    assert read_all(joined.client) == answer
    stop.set()
    uploader.join()
    joined.client.close()
    assert joined.ended()


def test_a_dead_tunnel_ends_an_idle_client(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice_module, "LINGER", 0.05)
    joined.service.close()
    assert joined.client.recv(1) == b""
    assert joined.ended()  # though the client doesn't close


def test_a_reset_client_ends_the_tunnel(joined: Joined) -> None:
    joined.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    joined.client.close()
    assert joined.service.recv(1) == b""
    assert joined.ended()  # though the service doesn't close


def test_a_client_that_left_stops_an_endless_answer(joined: Joined) -> None:
    joined.client.close()
    with pytest.raises(OSError):
        while True:
            joined.service.sendall(bytes(1 << 16))
    assert joined.ended()


def test_cut_ends_blocked_copies(joined: Joined) -> None:
    joined.service.settimeout(0)
    with pytest.raises(BlockingIOError):
        while True:
            joined.service.send(bytes(1 << 16))  # until everything up to the client, who doesn't read, is full
    joined.splice.cut()
    assert joined.ended()


def test_cut_ends_a_client_that_said_all_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", HalfEnded)
    stuck = Joined()
    stuck.client.shutdown(socket.SHUT_WR)
    stuck.service.settimeout(0)
    with pytest.raises(BlockingIOError):
        while True:
            stuck.service.send(bytes(1 << 16))
    stuck.splice.cut()
    assert stuck.ended()
    stuck.client.close()
    stuck.service.close()


def test_those_that_are_cut_take_no_more(joined: Joined) -> None:
    running = Splices()
    assert running.idle()
    assert running.add(joined.splice)
    assert not running.idle()
    running.remove(joined.splice)
    assert running.idle()
    assert running.add(joined.splice)
    assert (running.over, running.cut(), running.over) == (False, 1, True)
    assert joined.ended()
    assert not running.add(joined.splice)
