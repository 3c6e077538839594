"""A laptop whose OpenSSH takes connections (9.4 and newer; here that of a host with Debian 13): what passes through a
local port is read and written by ssh itself. The laptop of the other lab tests copies it, as this machine's ssh is."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
from aftermath import marked, watched
from labbox import SESSION_IMAGE, Attached, Laptop, ssh
from labkit import openssh
from labkit.openssh import HOST
from notebook import Notebook
from outage import without_sshd

pytestmark = [pytest.mark.lab, pytest.mark.hosts(HOST)]


def install_ssh(folder: Path) -> Path:
    return openssh.install(ssh(HOST, openssh.PACK), folder)


class Desk:
    def __init__(self, laptop: Laptop, session: Attached) -> None:
        self.laptop = laptop
        self.session = session
        self.urls = session.block()

    def tunnel(self) -> int:
        """The process id of the ssh that carries the link."""
        running = marked(self.laptop.env["XDG_RUNTIME_DIR"])
        (pid,) = (pid for pid, command in running.items() if "-control " in command and " -N " in command)
        return pid

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", urllib.parse.urlsplit(self.urls["jupyter"].split()[0]).port or 0


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    path = f"{install_ssh(tmp_path_factory.mktemp('ssh'))}:{os.environ['PATH']}"
    with watched(tmp_path_factory.mktemp("desk") / "home", HOST) as laptop:
        laptop.env["PATH"] = path
        try:
            words = ("--gpus", "1", "--image", SESSION_IMAGE, "--name", "handed")
            session = laptop.attach("session", HOST, *words)
            yield Desk(laptop, session)
            assert session.stop() == 0
        finally:
            laptop.run("session", "shutdown", "handed", "--host", HOST)


@pytest.fixture(autouse=True)
def clean_hosts() -> None:
    """Not between these tests: fixture `desk` ends the session and looks after it."""


def carries(pid: int, connection: socket.socket) -> bool:
    """Whether that process has the other end of a connection on this machine."""
    mine, theirs = connection.getsockname()[1], connection.getpeername()[1]
    wanted = f":{theirs:04X} 0100007F:{mine:04X} "
    inodes = [line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if wanted in line]
    held = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return any(f"socket:[{inode}]" in held for inode in inodes)


def ask(connection: socket.socket) -> bytes:
    """A request that leaves the connection open; the first bytes of the answer."""
    connection.sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection.recv(12, socket.MSG_WAITALL)


def test_ssh_has_the_connection_and_its_end_is_the_connection_s(desk: Desk) -> None:
    with socket.create_connection(desk.address(), timeout=60) as connection:
        assert ask(connection) == b"HTTP/1.1 200"
        assert carries(desk.tunnel(), connection)
        seen = len(desk.session.lines)
        with without_sshd(HOST):
            while connection.recv(65536):
                pass  # the rest of that answer, and then the end
            desk.session.wait_for("tunnel lost", after=seen)
            with socket.create_connection(desk.address(), timeout=90) as waiting:
                waiting.sendall(b"GET /api HTTP/1.0\r\nHost: localhost\r\n\r\n")
    desk.session.wait_for("tunnel is back.*the ports are the same", after=seen)
    with socket.create_connection(desk.address(), timeout=60) as connection:
        assert ask(connection) == b"HTTP/1.1 200"
        assert carries(desk.tunnel(), connection)


def test_a_notebook_s_cell_runs(desk: Desk) -> None:
    with Notebook(desk.urls["jupyter"]) as notebook:
        assert notebook.run("sum(range(10))") == "45"


def test_vscode_wants_its_token_and_ssh_has_what_may_pass(desk: Desk) -> None:
    url = desk.urls["vscode"].split()[0]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.partition("?")[0], timeout=60)
    cookies = CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    with browser.open(url, timeout=60) as answer:
        assert "workbench" in answer.read().decode()
    port = urllib.parse.urlsplit(url).port or 0
    cookie = "; ".join(f"{each.name}={each.value}" for each in cookies)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\nCookie: {cookie}\r\n\r\n".encode())
        assert connection.recv(5, socket.MSG_WAITALL) == b"HTTP/"
        assert carries(desk.tunnel(), connection)


def test_many_at_once(desk: Desk) -> None:
    connections = [socket.create_connection(desk.address(), timeout=60) for _ in range(100)]
    try:
        assert {ask(connection) for connection in connections} == {b"HTTP/1.1 200"}
        assert all(carries(desk.tunnel(), connection) for connection in connections)
    finally:
        for connection in connections:
            connection.close()
