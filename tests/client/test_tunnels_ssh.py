"""Tunnels over real ssh processes to a private sshd on a loopback port."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlbox.client.tunnels import Link, Service, SshLink, Timing
from mlbox.client.tunnels import link as links
from mlbox.client.tunnels.probe import ping
from mlbox.errors import MlboxError
from tests.client.kit import ECHO, SSHD, Host, Opened, Server, Sshd

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="NO SSHD: install openssh-server to test the tunnels"
)
CALM = Timing(probe_every=0.1, probe_timeout=20, grace=120, backoff_first=0.01, backoff_last=0.1)
QUICK = dataclasses.replace(CALM, probe_timeout=1.5)  # for a stopped ssh


class Lab(Opened):
    """Tunnels through ssh; the links are kept, and while `hold` is set no new one can be made."""

    def __init__(self, sshd: Sshd, host: Host, *services: Service, timing: Timing = CALM) -> None:
        super().__init__(self._make, *services, timing=timing, probe=self._probe)
        self.sshd = sshd
        self.host = host
        self.links: list[SshLink] = []
        self.hold = threading.Event()
        self.stopped: set[str] = set()
        self.config = sshd.config

    def _make(self, generation: int) -> Link:
        if self.hold.is_set():
            raise MlboxError("held")
        forwards = self.host.paths()
        forwards["store"] = str(self.host.folder / "store.sock")
        link = SshLink(("ssh", "-F", str(self.config)), "gpu1", forwards, self.folder, generation)
        self.links.append(link)
        return link

    def _probe(self, path: str, timeout: float, first: bool) -> bool:
        """Only a stopped ssh is silent, however slow this machine is."""
        while not ping(path, timeout, first):
            if path in self.stopped:
                return False
        return True

    def signal(self, link: SshLink, number: signal.Signals) -> None:
        (self.stopped.add if number == signal.SIGSTOP else self.stopped.discard)(link.path("guest"))
        os.kill(link.pid, number)

    @property
    def folder(self) -> Path:
        return self.host.folder / "l"

    def up(self) -> SshLink:
        assert self.tunnels.wait_up(20), self.events.seen
        return self.links[-1]


def await_end(link: SshLink) -> None:
    assert link._waiter is not None
    link._waiter.join(20)
    assert not link.alive()


@pytest.fixture
def lab(sshd: Sshd, host: Host) -> Iterator[Lab]:
    with Lab(sshd, host) as lab:
        lab.up()
        yield lab


@pytest.fixture
def quick(sshd: Sshd, host: Host) -> Iterator[Lab]:
    with Lab(sshd, host, timing=QUICK) as lab:
        lab.up()
        yield lab


def test_eight_megabytes_and_a_half_close(sshd: Sshd, host: Host) -> None:
    def store(connection: socket.socket) -> None:
        data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        connection.sendall(hashlib.sha256(data).digest() + data)

    server = Server(host.folder / "store.sock", store)
    with Lab(sshd, host, Service("store", 0)) as lab, lab.connect("store") as sock:
        data = os.urandom(8_000_000)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        back = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    server.close()
    assert back == hashlib.sha256(data).digest() + data


def test_two_hundred_connections_at_once(lab: Lab) -> None:
    socks = [lab.connect() for _ in range(200)]
    for number, sock in enumerate(socks):
        sock.sendall(b"%08d" % number)
    assert [int(sock.recv(8)) for sock in socks] == list(range(200))
    for sock in socks:
        sock.close()


def test_a_killed_ssh_comes_back_on_the_same_port(lab: Lab) -> None:
    port = lab.tunnels.port("echo")
    with lab.connect() as old:
        assert lab.echoes(old)
        lab.signal(lab.links[0], signal.SIGKILL)
        assert old.recv(1) == b""
    lost = lab.events.wait("lost")
    back = lab.events.wait("back")
    assert (lost.generation, back.generation) == (1, 2)
    assert back.downtime > 0
    assert lab.tunnels.port("echo") == port
    with lab.connect() as new:
        assert lab.echoes(new)


def test_a_connection_made_in_an_outage_waits_and_then_works(lab: Lab) -> None:
    lab.hold.set()
    lab.signal(lab.links[0], signal.SIGKILL)
    lab.events.wait("lost")
    assert lab.events.wait("retrying", 2).reason == "held"
    with lab.connect() as sock:
        sock.sendall(b"patience")
        lab.events.wait("retrying", 4)
        lab.hold.clear()
        assert sock.recv(8) == b"patience"


def test_why_it_was_lost_is_told(sshd: Sshd, host: Host) -> None:
    lab = Lab(sshd, host)
    lab.config = host.folder / "config"
    lab.config.write_text(sshd.config.read_text().replace(f"{sshd.config.parent}/id", "/nonexistent"))
    with lab:
        assert "Permission denied" in lab.events.wait("retrying").reason


def test_silence_opens_a_second_link_and_the_first_may_recover(quick: Lab) -> None:
    lab, first = quick, quick.links[0]
    with lab.connect() as old:
        assert lab.echoes(old)
        lab.signal(first, signal.SIGSTOP)
        try:
            assert lab.events.wait("lost").reason == "no answer for 1.5 s"
            assert lab.events.wait("back").generation == 2
            with lab.connect() as new:
                assert lab.echoes(new)
            assert first.alive()
            old.sendall(b"asleep")
        finally:
            lab.signal(first, signal.SIGCONT)
        assert old.recv(6) == b"asleep"
        assert lab.echoes(old)
    await_end(first)  # its last connection has ended
    assert lab.links[1].alive()
    assert len(lab.links) == 2


def test_silence_longer_than_the_grace_ends_the_first_link(sshd: Sshd, host: Host) -> None:
    timing = dataclasses.replace(QUICK, grace=0.5)
    with Lab(sshd, host, timing=timing) as lab:
        first = lab.up()
        with lab.connect() as old:
            assert lab.echoes(old)
            lab.signal(first, signal.SIGSTOP)
            assert old.recv(1) == b""
        await_end(first)
        with lab.connect() as new:
            assert lab.echoes(new)


def test_a_link_that_answers_again_before_there_is_another_stays(quick: Lab) -> None:
    lab, first = quick, quick.links[0]
    lab.hold.set()
    with lab.connect() as old:
        assert lab.echoes(old)
        lab.signal(first, signal.SIGSTOP)
        lab.events.wait("lost")
        lab.signal(first, signal.SIGCONT)
        assert lab.events.wait("back").generation == 1
        assert lab.echoes(old)
    assert lab.links == [first]


def test_a_guest_that_is_gone_is_told_and_ssh_stays(lab: Lab) -> None:
    lab.host.servers["guest"].close()
    assert lab.events.wait("refused").generation == 1
    with lab.connect() as sock:
        assert lab.echoes(sock)  # the other services may well live
    assert lab.links[0].alive()
    assert len(lab.links) == 1


def test_a_forward_of_the_users_own_does_not_matter(sshd: Sshd, host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        lab = Lab(sshd, host, ECHO)
        lab.config = host.folder / "config"
        forward = f"LocalForward 127.0.0.1:{taken.getsockname()[1]} 127.0.0.1:9\n"
        lab.config.write_text(sshd.config.read_text() + forward)
        with lab:
            lab.up()


def test_close_leaves_no_process_no_file_and_no_port(sshd: Sshd, host: Host) -> None:
    with Lab(sshd, host) as lab:
        link = lab.up()
        assert len(list(lab.folder.iterdir())) == 5  # four services, and where it is handed connections
        assert lab.folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in lab.folder.iterdir())
        pid, port = link.pid, lab.tunnels.port("echo")
        sock = lab.connect()
        assert lab.echoes(sock)
    with sock:
        assert sock.recv(1) == b""
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list(lab.folder.iterdir()) == []
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_close_ends_a_stopped_ssh(sshd: Sshd, host: Host) -> None:
    with Lab(sshd, host) as lab:
        link = lab.up()
        lab.signal(link, signal.SIGSTOP)
    assert not link.alive()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ties a child's life to ours")
@pytest.mark.parametrize("with_setpriv", [True, False])
def test_ssh_dies_with_a_killed_mlbox(sshd: Sshd, host: Host, with_setpriv: bool) -> None:
    if with_setpriv and not links._setpriv():
        pytest.skip("NO setpriv here that knows --pdeathsig")
    program = f"""\
import sys
from pathlib import Path
from mlbox.client.tunnels import SshLink, link as links
links._setpriv = lambda: {with_setpriv}
link = SshLink(("ssh", "-F", {str(sshd.config)!r}), "gpu1", {host.paths()!r}, Path({str(host.folder)!r}), 1)
link.start(lambda: None)
print(link.pid, flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    descriptor = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
    try:
        child.kill()
        child.communicate()
        assert select.select([descriptor], [], [], 20)[0], "ssh still runs"
    finally:
        os.close(descriptor)
