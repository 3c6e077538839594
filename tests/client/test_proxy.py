"""The way of `ssh NAME`, as ssh starts it: over a private sshd, to a socket that greets as a session's does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlbox.client import proxy, state
from tests.client.kit import Host, Server, Sshd, reserved

PROXY = (sys.executable, "-I", "-S", proxy.__file__)
GREETING = b"SSH-2.0-session\r\n"


def greet_and_echo(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    while data := connection.recv(1 << 16):
        connection.sendall(data)


class Way:
    """A place, and what is done with it."""

    def __init__(self, host: Host, sshd: Sshd) -> None:
        self.folder = host.folder
        host.servers["ssh"] = Server(self.folder / "ssh.sock", greet_and_echo)
        self.place: dict[str, Any] = {
            "id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": "kind-otter", "host": "gpu1", "moves": False,
            "ssh": ["ssh", "-F", str(sshd.config)], "control": str(self.folder / "c"), "local": str(self.folder / "f"),
            "remote": str(self.folder / "ssh.sock"), "find": ["/bin/echo", "looked for"],
        }  # fmt: skip

    def argv(self) -> tuple[str, ...]:
        state.write(self.folder / "place.json", json.dumps(self.place))  # whole: others may be reading it
        return (*PROXY, str(self.folder / "place.json"))

    def run(self) -> subprocess.CompletedProcess[bytes]:
        """Nothing is said to it: a caller that has gone already, so that it may end before it has said anything."""
        return subprocess.run(self.argv(), stdin=subprocess.DEVNULL, capture_output=True, timeout=60)

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self.argv(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdout is not None
        assert process.stdout.read(len(GREETING)) == GREETING
        return process

    def master(self) -> int:
        argv = [*self.place["ssh"], "-o", f"ControlPath={self.place['control']}", "-O", "check", "gpu1"]
        said = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20).stderr
        found = re.search(r"pid=(\d+)", said)
        return int(found[1]) if found else 0


@pytest.fixture
def way(host: Host, sshd: Sshd) -> Iterator[Way]:
    made = Way(host, sshd)
    yield made
    # The connections that stay are this test's: its folder is in their names.
    for line in subprocess.run(("pgrep", "-f", str(made.folder)), capture_output=True, text=True).stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGKILL)


def echoes(process: subprocess.Popen[bytes], data: bytes = b"hello") -> bool:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(data)
    return process.stdout.read(len(data)) == data


def leave(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    code = process.wait(20)
    process.stdout.close()
    return code


def test_one_connection_for_all(way: Way) -> None:
    first = way.start()
    master = way.master()
    second = way.start()
    assert echoes(first) and echoes(second)
    assert way.master() == master != 0
    assert leave(first) == leave(second) == 0
    assert leave(way.start()) == 0  # it stays for the next


def test_an_ssh_that_takes_connections_is_handed_it(way: Way) -> None:
    """Which has one socket for both directions (ProxyUseFdpass), closes that once it has the connection, and waits for
    the other's end. A Mac may clear away what is on its way and nobody has open."""
    ours, its = socket.socketpair()
    with ours:
        process = subprocess.Popen(way.argv(), stdin=its.fileno(), stdout=its.fileno())
        its.close()
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    assert process.wait(4) == 0  # and what was handed over goes on
    with socket.socket(fileno=descriptor) as handed:
        handed.sendall(b"hello")
        expected = GREETING + b"hello"
        assert handed.recv(len(expected), socket.MSG_WAITALL) == expected


def test_a_client_that_greets_through_its_one_socket_is_no_such_ssh(way: Way) -> None:
    """As libssh does."""
    ours, its = socket.socketpair()
    with ours:
        ours.sendall(b"hello")
        process = subprocess.Popen(way.argv(), stdin=its.fileno(), stdout=its.fileno())
        its.close()
        expected = GREETING + b"hello"
        assert ours.recv(len(expected), socket.MSG_WAITALL) == expected
    assert process.wait(60) == 0


def test_a_socket_for_each_direction_is_copied(way: Way) -> None:
    ours_in, its_in = socket.socketpair()
    ours_out, its_out = socket.socketpair()
    with ours_in, ours_out:
        process = subprocess.Popen(way.argv(), stdin=its_in.fileno(), stdout=its_out.fileno())
        its_in.close()
        its_out.close()
        ours_in.sendall(b"hello")
        expected = GREETING + b"hello"
        assert ours_out.recv(len(expected), socket.MSG_WAITALL) == expected
    assert process.wait(60) == 0


def test_two_at_once_dial_once(way: Way) -> None:
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(lambda _: way.start(), range(4)))
    ours = subprocess.run(("pgrep", "-fc", f"{way.folder}/c( .mux.|.* -f -N )"), capture_output=True, text=True)
    assert int(ours.stdout) == 1
    assert all(map(echoes, started))
    assert [leave(process) for process in started] == [0] * 4


def test_a_port_that_the_user_forwards_is_left_to_the_user_s_own_ssh(way: Way) -> None:
    """And where that one holds it, a second session of the host comes over the same connection all the same."""
    with reserved() as port:
        config = Path(way.place["ssh"][2])
        own = way.folder / "config"
        own.write_text(f"{config.read_text()}LocalForward 127.0.0.1:{port} 127.0.0.1:9\n")
        way.place["ssh"] = ["ssh", "-F", str(own)]
        first = way.start()
        with socket.create_server(("127.0.0.1", port)):
            master = way.master()
            way.place["local"] = str(way.folder / "g")
            second = way.start()
            assert echoes(first) and echoes(second)
            assert way.master() == master != 0
        assert leave(first) == leave(second) == 0


def test_much_travels_whole(way: Way) -> None:
    process = way.start()
    data, digest = os.urandom(1 << 20) * 16, hashlib.sha256()
    assert process.stdin is not None and process.stdout is not None
    with ThreadPoolExecutor(1) as pool:
        write = process.stdin
        sent = pool.submit(lambda: [write.write(data[at : at + 65536]) for at in range(0, len(data), 65536)])
        left = len(data)
        while left:
            block = process.stdout.read(min(left, 1 << 16))
            assert block
            digest.update(block)
            left -= len(block)
        sent.result()
    assert digest.digest() == hashlib.sha256(data).digest()
    leave(process)


def test_the_sessions_end_is_its_end(way: Way, host: Host) -> None:
    host.servers["ssh"].close()
    host.servers["ssh"] = Server(way.folder / "ssh.sock", lambda connection: connection.sendall(GREETING))
    process = way.start()
    assert process.wait(20) == 0
    leave(process)


def test_a_session_that_is_not_there_is_looked_for(way: Way, host: Host) -> None:
    way.run()
    host.servers["ssh"].close()
    done = way.run()
    assert (done.returncode, done.stdout) == (0, b"looked for\n")
    way.place["find"] = []
    done = way.run()
    assert done.returncode == 255 and b"mlbox: kind-otter does not answer on gpu1" in done.stderr


@pytest.mark.parametrize("moves", [False, True])
def test_a_host_that_is_not_reached(way: Way, moves: bool) -> None:
    """Only a session from a queue may be elsewhere."""
    way.place.update(host="no-such-host.invalid", moves=moves)
    done = way.run()
    if moves:
        assert (done.returncode, done.stdout) == (0, b"looked for\n")
    else:
        assert done.returncode == 255
        assert b"mlbox: no-such-host.invalid is not reached: ssh: Could not resolve" in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("end", ["far", "near"])
def test_a_silent_connection_is_left_alone_and_another_dialled(
    way: Way, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The network is gone, as far as it can tell; or its own process is stopped."""
    others = psutil.Process(sshd.process.pid).children(recursive=True)  # earlier tests', which may be about to end
    old = way.start()
    master = way.master()
    far = [one.pid for one in psutil.Process(sshd.process.pid).children(recursive=True) if one not in others]
    stopped = far if end == "far" else [master]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(proxy, "_GREETED_WITHIN", 1.5)
    answer = proxy.reach(way.place)
    assert isinstance(answer, socket.socket) and answer.recv(100) == GREETING
    answer.close()
    assert way.master() not in (0, master)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert echoes(old)  # it is back: what it carried goes on
    leave(old)
    os.kill(master, signal.SIGTERM)


def test_what_a_killed_connection_left_is_no_obstacle(way: Way) -> None:
    way.run()
    master = way.master()
    assert master
    os.kill(master, signal.SIGKILL)
    assert Path(way.place["control"]).exists()
    assert leave(way.start()) == 0
    Path(way.place["local"]).unlink()  # as a cleaner of old files would
    assert leave(way.start()) == 0


def test_a_folder_that_was_cleared_away_is_made_anew(way: Way) -> None:
    way.place.update(control=str(way.folder / "gone/c"), local=str(way.folder / "gone/f"))
    assert leave(way.start()) == 0
    assert stat.S_IMODE((way.folder / "gone").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["open", "another's", "link"])
def test_a_folder_that_others_reach_into_is_not_used(way: Way, kind: str) -> None:
    """A lock that leads to a file of the user's would have emptied it."""
    squatted, precious = way.folder / "squatted", way.folder / "precious"
    precious.write_text("content")
    if kind == "link":
        (way.folder / "target").mkdir(mode=0o700)
        squatted.symlink_to(way.folder / "target")
    else:
        squatted.mkdir()
        squatted.chmod(0o777)
    (squatted / "c.lock").symlink_to(precious)
    if kind == "another's":
        if os.getuid() != 0:
            pytest.skip("needs root to give a folder away")
        os.chown(squatted, 65501, 65501)
    way.place.update(control=str(squatted / "c"), local=str(squatted / "f"))
    done = way.run()
    assert done.returncode == 255 and b"Traceback" not in done.stderr
    whose = "is not yours but user 65501's" if kind == "another's" else "is not a private folder"
    assert f"mlbox: {squatted} {whose}" in done.stderr.decode()
    assert precious.read_text() == "content"


def test_a_lock_that_is_a_link_is_not_followed(way: Way) -> None:
    precious = way.folder / "precious"
    precious.write_text("content")
    (way.folder / "c.lock").symlink_to(precious)
    way.run()
    assert precious.read_text() == "content"


@pytest.mark.parametrize("content", ["", "[]", '{"name": 3}'])
def test_a_damaged_place_is_one_sentence(way: Way, content: str) -> None:
    (way.folder / "place.json").write_text(content)
    done = subprocess.run((*PROXY, str(way.folder / "place.json")), stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 255 and b"tells of no session" in done.stderr and b"Traceback" not in done.stderr


def test_on_this_machine_there_is_no_ssh(way: Way, host: Host) -> None:
    way.place.update(ssh=[], control="", local="", host="local")
    process = way.start()
    assert echoes(process)
    leave(process)
    host.servers["ssh"].close()
    assert way.run().stdout == b"looked for\n"
