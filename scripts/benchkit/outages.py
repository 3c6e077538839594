"""Part f: how soon a tunnel that was cut answers again, beside autossh around a plain `ssh -L` to the same socket.

closed    sshd's process for the connection is killed, so both ends are told
silent    that process is stopped: its connection says nothing any more, and a new one would work. (The network was
          changed, or something on the way forgot the connection.)
lost      every packet from and to the host is lost for LOST s, and nobody is told; for hosts of the lab only. Counted
          from when they pass again, for both have the same outage, and nothing could answer before
autossh   as its manual recommends: without a monitoring port (-M 0), with ServerAliveInterval and ExitOnForwardFailure.
          The interval is that of mlbox's own probe, and ServerAliveCountMax ssh's default. Beside it, without an aim,
          the least: 1 ends the ssh and all that it carries after two intervals of silence, which TCP would often heal

The end is the first byte that comes through a new connection; one is opened every 20 ms.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable

from labkit import engine as engines
from labkit.inventory import HOSTS

from benchkit import packages, tunnels
from benchkit.laptop import Laptop, free_port
from benchkit.measure import Row, at_most, tell
from mlbox.client.tunnels import Timing

RUNS = 5
_MORE = 3  # times as many of what is a matter of milliseconds
LOST = 20.0  # s
STEADY = 12.0  # s that all were up before a cut: neither side takes it for a failed start
_ASK_EVERY = 0.02  # s
_PATIENCE = 120.0  # s
_CLOSE = b"kill\n"
_AT_ONCE = 500  # connections that may wait
_INTERVAL = Timing().probe_every
_MLBOX = "mlbox"
_COUNTS = {"autossh": 3, "autossh, CountMax 1": 1}
_ALL_PACKETS = (("INPUT", "-i"), ("OUTPUT", "-o"))


def run(host: str, runs: int | None) -> tuple[list[Row], list[str]]:
    why = packages.install({"autossh": "autossh"})
    if why:
        return [], [f"f: autossh can't be had here, so nothing is measured beside it: {why}"]
    notes = [f"f: autossh: -M 0, ServerAliveInterval {_INTERVAL:g}, ServerAliveCountMax 3 or 1"]
    cuts: dict[str, Callable[[Laptop, dict[str, int]], dict[str, float]]] = {
        "closed": partial(_each, _CLOSE),
        "silent": partial(_each, b"stop\n"),
    }
    if host in HOSTS and engines.known() is not None:
        cuts[f"{LOST:.0f} s of lost packets"] = _lose
    else:
        notes.append(f"f: {host} is no host of the lab, so no packets are lost on the way to it")
    rows: list[Row] = []
    with contextlib.closing(Laptop(host)) as laptop, tunnels.serving(laptop) as remote:
        for what, cut in cuts.items():
            turns: list[dict[str, float]] = []
            count = (runs or RUNS) * (_MORE if what == "closed" else 1)
            for number in range(count):
                tell(f"a cut tunnel, {what}: {number + 1} of {count}")
                turns.append(_turn(laptop, remote, cut))
            ours, default, least = ([turn[name] for turn in turns] for name in (_MLBOX, *_COUNTS))
            documented, eager = _COUNTS
            rows.append(at_most(Row("f", f"back, {what}", "s", ours, default, documented), 1.0))
            rows.append(Row("f", f"back, {what}", "s", ours, least, eager))
    return rows, notes


def _turn(laptop: Laptop, remote: str, cut: Callable[[Laptop, dict[str, int]], dict[str, float]]) -> dict[str, float]:
    """Seconds until each answers again, all of them freshly dialled: an earlier cut makes nobody hesitate."""
    with contextlib.ExitStack() as stack:
        ports = {_MLBOX: stack.enter_context(tunnels.carrying(laptop, remote))}
        for name, count in _COUNTS.items():
            ports[name] = stack.enter_context(_autossh(laptop, remote, count))
        time.sleep(STEADY)  # the time is what is asked for
        return cut(laptop, ports)


@contextlib.contextmanager
def _autossh(laptop: Laptop, remote: str, count: int) -> Iterator[int]:
    """Its local port."""
    port = free_port()
    options = ("ExitOnForwardFailure=yes", f"ServerAliveInterval={_INTERVAL:g}", f"ServerAliveCountMax={count}")
    words = tuple(word for option in options for word in ("-o", option))
    _, *argv = laptop.ssh(None, "-N", *words, "-L", f"127.0.0.1:{port}:{remote}")
    program = (shutil.which("autossh") or "autossh", "-M", "0", *argv)
    env = {**laptop.env, "AUTOSSH_GATETIME": "0"}  # a first failure is no reason to give up
    process = laptop.start(program, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        tunnels.await_port(port)
        yield port
    finally:
        laptop.end(process)


# ---- cuts --------------------------------------------------------------------------------------------


def _each(word: bytes, laptop: Laptop, ports: dict[str, int]) -> dict[str, float]:
    """One after the other, each tunnel's own connection; each time in another order, for the first that is cut finds
    both machines at rest, and is slower to return."""
    found = {}
    for name, port in random.sample(list(ports.items()), len(ports)):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            before = time.perf_counter()
            connection.sendall(word)
            if word == _CLOSE:  # before that the old connection may still answer
                with contextlib.suppress(ConnectionResetError):
                    connection.recv(1)
            found[name] = answered(port, before)
    return found


def _lose(laptop: Laptop, ports: dict[str, int]) -> dict[str, float]:
    with _without_network(laptop.host):
        time.sleep(LOST)  # the outage is what is asked for
    before, found = time.perf_counter(), dict[str, float]()

    def await_answer(name: str) -> None:
        found[name] = answered(ports[name], before)

    threads = [threading.Thread(target=await_answer, args=(name,)) for name in ports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@contextlib.contextmanager
def _without_network(host: str) -> Iterator[None]:
    engine = engines.known()
    assert engine is not None
    words = ("exec", HOSTS[host].container, "iptables", "-w")
    try:
        for chain, direction in _ALL_PACKETS:
            engine.docker(*words, "-I", chain, direction, "eth0", "-j", "DROP")
        yield
    finally:
        for chain, direction in _ALL_PACKETS:
            engine.docker(*words, "-D", chain, direction, "eth0", "-j", "DROP", check=False)


# ---- the one who asks --------------------------------------------------------------------------------


def answered(port: int, since: float) -> float:
    """Seconds from `since` until a byte has come through a connection. Raises RuntimeError where none does."""
    with selectors.DefaultSelector() as asked:
        try:
            while time.perf_counter() - since < _PATIENCE:
                _ask(port, asked)
                until = time.perf_counter() + _ASK_EVERY
                while (left := until - time.perf_counter()) > 0:
                    if _has_answer([key.fileobj for key, _ in asked.select(left)], asked):
                        return time.perf_counter() - since
        finally:
            for key in list(asked.get_map().values()):
                _close(key.fileobj)
    raise RuntimeError(f"the tunnel did not answer within {_PATIENCE:.0f} s")


def _ask(port: int, asked: selectors.BaseSelector) -> None:
    """One more, if it is not refused. As many as make do: a tunnel that is down may hold each of them."""
    if len(asked.get_map()) < _AT_ONCE:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=1)
            connection.sendall(b"1\n")
            asked.register(connection, selectors.EVENT_READ)


def _has_answer(readable: Sequence[object], asked: selectors.BaseSelector) -> bool:
    for connection in readable:
        assert isinstance(connection, socket.socket)
        with contextlib.suppress(OSError):
            if connection.recv(1):
                return True
        asked.unregister(connection)
        connection.close()
    return False


def _close(connection: object) -> None:
    assert isinstance(connection, socket.socket)
    connection.close()
