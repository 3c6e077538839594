"""An attached session while its network has a bad day: the tunnel comes back by itself, and nothing was lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aftermath import watched
from labbox import SESSION_IMAGE, Attached, Laptop
from notebook import Notebook
from outage import without_network, without_sshd

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
CUT = 120.0  # s that the network is gone
# A kernel's work that begins before the cut and ends during it, with nobody there to see it.
WORK = """
import threading, time
finished = threading.Event()
threading.Thread(target=lambda: (time.sleep(60), finished.set())).start()
"""


@dataclass(frozen=True)
class Desk:
    laptop: Laptop
    session: Attached
    block: dict[str, str]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with watched(tmp_path_factory.mktemp("desk") / "home", HOST) as laptop:
        try:
            words = ("--gpus", "1", "--image", SESSION_IMAGE, "--no-vscode", "--name", "steady")
            session = laptop.attach("session", HOST, *words)
            yield Desk(laptop, session, session.block())
            assert session.stop() == 0
        finally:
            laptop.run("session", "shutdown", "steady", "--host", HOST)


@pytest.fixture(autouse=True)
def clean_hosts() -> None:
    """Not between these tests: fixture `desk` ends the session and looks after it."""


def status_of(url: str) -> int:
    with urllib.request.urlopen(url, timeout=90) as answer:
        return int(answer.status)


def test_sshd_is_killed_with_all_its_connections_and_comes_again(desk: Desk) -> None:
    with Notebook(desk.block["jupyter"]) as notebook:
        notebook.run("kept = 'still the same'")
        seen = len(desk.session.lines)
        with without_sshd(HOST):
            desk.session.wait_for(r"tunnel lost \(.+\); reconnecting", after=seen)
            desk.session.wait_for("still trying: .*Connection refused", after=seen)
        desk.session.wait_for("tunnel is back.*the ports are the same", after=seen)
        notebook.connect()
        assert notebook.run("kept") == "'still the same'"


def test_who_connects_during_an_outage_waits_and_is_answered_after_it(desk: Desk) -> None:
    parts = urllib.parse.urlsplit(desk.block["jupyter"])
    seen = len(desk.session.lines)
    with without_sshd(HOST):
        desk.session.wait_for("tunnel lost", after=seen)
        connection = socket.create_connection(("127.0.0.1", parts.port or 0), timeout=90)
        connection.sendall(f"GET /api HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
    with connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
    desk.session.wait_for("tunnel is back.*the ports are the same", after=seen)


def test_the_network_is_gone_for_two_minutes(desk: Desk) -> None:
    with Notebook(desk.block["jupyter"]) as notebook:
        notebook.run(WORK)
        seen = len(desk.session.lines)
        with without_network(HOST):
            begun = time.monotonic()
            desk.session.wait_for(r"tunnel lost \(no answer for .*\); reconnecting", after=seen)
            time.sleep(max(0.0, begun + CUT - time.monotonic()))  # no event to await: the two minutes are the test
            assert not [line for line in desk.session.lines[seen:] if "tunnel is back" in line]
            assert desk.session.process.poll() is None
        desk.session.wait_for("tunnel is back.*the ports are the same", after=seen)
        notebook.connect()
        assert notebook.run("finished.is_set()") == "True"
    assert status_of(desk.block["jupyter"]) == 200


# ---- another network ---------------------------------------------------------------------------------


@contextmanager
def another_address() -> Iterator[None]:
    """The laptop is in another network: what it had is gone, and what it sent from there is answered by nobody."""
    (device,) = json.loads(_ip("-json", "address", "show", "eth0"))
    old = next(f"{one['local']}/{one['prefixlen']}" for one in device["addr_info"] if one["family"] == "inet")
    net, _, rest = old.rpartition(".")
    gateway = json.loads(_ip("-json", "route", "show", "default"))[0]["gateway"]
    new = f"{net}.{int(rest.partition('/')[0]) + 1}/{rest.partition('/')[2]}"
    try:
        _move(old, new, gateway)
        yield
    finally:
        _move(new, old, gateway)


def _move(was: str, now: str, gateway: str) -> None:
    _ip("address", "del", was, "dev", "eth0")
    _ip("address", "add", now, "dev", "eth0")
    _ip("route", "replace", "default", "via", gateway)


def _ip(*words: str) -> str:
    return subprocess.run(("ip", *words), check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" not in os.environ, reason="WITHOUT -n THIS MACHINE IS THE LAPTOP, and keeps its address"
)
def test_the_laptop_comes_to_another_network(desk: Desk) -> None:
    with Notebook(desk.block["jupyter"]) as notebook:
        notebook.run("kept = 'as it was'")
        seen = len(desk.session.lines)
        with another_address():
            desk.session.wait_for("tunnel is back.*the ports are the same", after=seen)
            notebook.connect()
            assert notebook.run("kept") == "'as it was'"
            seen = len(desk.session.lines)
        desk.session.wait_for("tunnel is back.*the ports are the same", after=seen)
        assert status_of(desk.block["jupyter"]) == 200


# ---- the laptop's clock --------------------------------------------------------------------------------


class Clock:
    """A clock of one's own for the processes that are started with `env`. The monotonic one is left alone."""

    def __init__(self, folder: Path) -> None:
        libraries = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            pytest.fail("there is no libfaketime on this machine: apt-get install faketime")
        self._file = folder / "clock"
        self.env = {
            "LD_PRELOAD": str(libraries[0]), "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        self.jump_to("+0")

    def jump_to(self, offset: str) -> None:
        """Relative to the true time, as `+1d`; the file appears whole."""
        partial = self._file.with_suffix(".new")
        partial.write_text(f"{offset}\n")
        partial.replace(self._file)

    def days_off(self) -> int:
        command = [sys.executable, "-c", "import time; print(time.time())"]
        shown = float(subprocess.check_output(command, env={**os.environ, **self.env}, text=True))
        return round((shown - time.time()) / 86400)


def test_the_laptops_clock_jumps_a_day_while_the_tunnel_is_up_and_back_while_it_is_down(
    desk: Desk, tmp_path: Path
) -> None:
    clock = Clock(tmp_path)
    attached = desk.laptop.attach("session", "attach", "steady", **clock.env)
    url = attached.block()["jupyter"]
    assert "libfaketime" in Path(f"/proc/{attached.process.pid}/maps").read_text()
    for offset, days in (("+1d", 1), ("-1d", -1)):
        clock.jump_to(offset)
        assert clock.days_off() == days
        seen = len(attached.lines)
        assert status_of(url) == 200
        with without_sshd(HOST):
            attached.wait_for("tunnel lost", after=seen)
            clock.jump_to("+0")  # whoever waits by this clock for the next attempt waits for a day, or not at all
            assert clock.days_off() == 0
        attached.wait_for("tunnel is back.*the ports are the same", after=seen)
        assert status_of(url) == 200
    assert len([line for line in attached.lines if "tunnel lost" in line]) == 2  # the outages, and not the jumps
    assert attached.stop() == 0
