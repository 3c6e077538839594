"""Part d: mlbox's tunnel beside a plain `ssh -L` to the same unix socket on the host.

the host    a server of bytes: a line with a number is answered with so many bytes; it lives as long as the
            stdin of the ssh that started it, and takes its socket with it
mlbox       in a process of its own (carrier.py), as it is beside a browser
ssh -L      with default ciphers; and once more with the fastest one that both ends have, as tried here
all         by this machine's ssh; where that takes no connections (before 9.4), by a lab host's newer one too
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from labkit import openssh
from labkit.inventory import RUN

from benchkit.laptop import Laptop, free_port
from benchkit.measure import Row, at_least, percentile, tell
from mlbox.client.tunnels.handover import takes_connections

RUNS = 9
TOTAL = 400_000_000  # bytes a run, in all streams together
STREAMS = 20
CONNECTIONS = 200  # a run
_MLBOX, _PLAIN, _FAST = "mlbox", "ssh -L", "ssh -L, fastest"
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "chacha20-poly1305@openssh.com")
_SERVER = r"""
import os, socket, struct, sys, threading
os.umask(0o077)
path, block, stopped = sys.argv[1], memoryview(bytes(1 << 20)), []
def signal_sshd(c, number):
    pid = struct.unpack("3i", c.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    stopped.append(pid)
    os.kill(pid, number)
def serve(c):
    try:
        line = c.makefile("rb").readline()
        if line == b"kill\n": return signal_sshd(c, 9)
        if line == b"stop\n": return signal_sshd(c, 19)
        if line.startswith(b"{"): return c.sendall(b"{}\n")
        n = int(line)
        while n > 0:
            c.sendall(block[:n])
            n -= len(block)
    except (OSError, ValueError): pass
    finally: c.close()
def accept(s):
    while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(128)
threading.Thread(target=accept, args=(s,), daemon=True).start()
print("serving " + path, flush=True)
try: sys.stdin.read()
finally:
    os.unlink(path)
    for pid in stopped:
        try: os.kill(pid, 9)
        except OSError: pass
"""


def run(host: str, runs: int | None) -> tuple[list[Row], list[str]]:
    rows, notes = _beside_ssh(host, runs, "")
    if takes_connections("ssh"):
        return rows, notes
    with tempfile.TemporaryDirectory() as folder:
        try:
            newer = _newer_ssh(Path(folder) / "ssh")
        except (OSError, subprocess.SubprocessError, ValueError, tarfile.TarError) as error:
            return rows, [*notes, f"d: {openssh.HOST} gave no ssh that takes connections: {error}"]
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{newer}:{before}"
        try:
            more, said = _beside_ssh(host, runs, f" ({_version()})")
        finally:
            os.environ["PATH"] = before
    return [*rows, *more], [*notes, *said]


def _newer_ssh(folder: Path) -> Path:
    """What a laptop with a newer system has. Raises OSError, SubprocessError, ValueError and TarError."""
    argv = ("ssh", "-F", os.environ.get("MLBOX_SSH_CONFIG") or str(RUN / "ssh/config"), openssh.HOST, openssh.PACK)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60)
    return openssh.install(done.stdout, folder)


def _version() -> str:
    said = subprocess.run(("ssh", "-V"), capture_output=True, text=True).stderr
    return said.split(",")[0].split(" ")[0].replace("_", " ")


def _beside_ssh(host: str, runs: int | None, label: str) -> tuple[list[Row], list[str]]:
    """`label`: of the ssh that all of them use."""
    with contextlib.closing(Laptop(host)) as laptop, serving(laptop) as remote:
        cipher = _fastest(laptop, remote)
        with _carriers(laptop, remote, cipher) as ports:
            for port in ports.values():
                fetch(port, 1, 10_000_000)
            one = _in_turn(runs or RUNS, ports, 1)
            many = _in_turn(runs or RUNS, ports, STREAMS)
            latency = _latencies(runs or RUNS, ports)
    rows = []
    for what, found in (("1 stream", one), (f"{STREAMS} streams", many)):
        rows.append(at_least(Row("d", f"tunnel, {what}{label}", "MB/s", found[_MLBOX], found[_PLAIN], _PLAIN), 0.95))
        rows.append(at_least(Row("d", f"tunnel, {what}{label}", "MB/s", found[_MLBOX], found[_FAST], _FAST), 0.95))
    for part, name in ((0.5, "p50"), (0.99, "p99")):
        each = {who: [percentile(turn, part) for turn in turns] for who, turns in latency.items()}
        rows.append(Row("d", f"new connection, {name}{label}", "s", each[_MLBOX], each[_PLAIN], _PLAIN))
    how = (
        "handed to ssh"
        if takes_connections(shutil.which("ssh") or "ssh")
        else "copied, for this ssh takes none (9.4 and newer do)"
    )
    notes = [_noted(_PLAIN, one, many), _noted(_FAST, one, many), f"d: the fastest cipher is {cipher}"]
    return rows, [*notes, f"d: by {_version()} mlbox's connections were {how}"]


def _noted(name: str, one: dict[str, list[float]], many: dict[str, list[float]]) -> str:
    middles = [statistics.median(found[name]) for found in (one, many)]
    return f"d: {name}: {middles[0]:.0f} MB/s in 1 stream, {middles[1]:.0f} MB/s in {STREAMS}"


def _in_turn(runs: int, ports: dict[str, int], streams: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(runs):
        for name, port in _shuffled(ports):
            tell(f"{streams} stream(s): {number + 1} of {runs}, {name}")
            found[name].append(fetch(port, streams, TOTAL))
    return found


def _latencies(runs: int, ports: dict[str, int]) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {name: [] for name in ports}
    for number in range(runs):
        for name, port in _shuffled(ports):
            tell(f"new connections: {number + 1} of {runs}, {name}")
            found[name].append([_connect_once(port) for _ in range(CONNECTIONS)])
    return found


def _shuffled(ports: dict[str, int]) -> list[tuple[str, int]]:
    """Each time in another order: what went before is felt by what comes next."""
    return random.sample(list(ports.items()), len(ports))


# ---- the client --------------------------------------------------------------------------------------


def fetch(port: int, streams: int, total: int) -> float:
    """MB/s over all streams, from the first connection to the last byte. Raises RuntimeError if any falls short."""
    failed: list[str] = []
    threads = [threading.Thread(target=_read, args=(port, total // streams, failed)) for _ in range(streams)]
    before = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - before
    if failed:
        raise RuntimeError(f"{len(failed)} of {streams} streams failed: {failed[0]}")
    return total / took / 1e6


def _read(port: int, count: int, failed: list[str]) -> None:
    buffer = memoryview(bytearray(1 << 20))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(b"%d\n" % count)
            while count > 0:
                got = connection.recv_into(buffer)
                if not got:
                    raise OSError(f"{count} bytes are missing")
                count -= got
    except OSError as error:
        failed.append(str(error))


def _connect_once(port: int) -> float:
    before = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"1\n")
        if not connection.recv(1):
            raise RuntimeError("a new connection was closed without an answer")
        return time.perf_counter() - before


# ---- what carries the bytes --------------------------------------------------------------------------


@contextlib.contextmanager
def serving(laptop: Laptop) -> Iterator[str]:
    """The socket on the host behind which the server of bytes listens."""
    remote = f"/tmp/{laptop.tag}.sock"
    server = _start(laptop, laptop.ssh(f"exec python3 -c {shlex.quote(_SERVER)} {remote}"), "serving ")
    try:
        yield remote
    finally:
        _let_go(laptop, server[0])


@contextlib.contextmanager
def carrying(laptop: Laptop, remote: str) -> Iterator[int]:
    """mlbox's local port that leads there."""
    carrier = (sys.executable, "-m", "benchkit.carrier", laptop.host, laptop.config, remote, str(laptop.folder / "t"))
    process, port = _start(laptop, carrier, "port ", {**laptop.env, "PYTHONPATH": str(Path(__file__).parents[1])})
    try:
        yield int(port)
    finally:
        _let_go(laptop, process)


@contextlib.contextmanager
def _carriers(laptop: Laptop, remote: str, cipher: str) -> Iterator[dict[str, int]]:
    """{name: local port}, all of them up."""
    with carrying(laptop, remote) as mine, _plain(laptop, remote) as plain, _plain(laptop, remote, cipher) as fast:
        yield {_MLBOX: mine, _PLAIN: plain, _FAST: fast}


@contextlib.contextmanager
def _plain(laptop: Laptop, remote: str, cipher: str = "") -> Iterator[int]:
    """The local port of an `ssh -L`."""
    port = free_port()
    with laptop.forwarding({port: remote}, *(("-o", f"Ciphers={cipher}") if cipher else ())):
        await_port(port)
        yield port


def _fastest(laptop: Laptop, remote: str) -> str:
    found = {}
    for cipher in _CIPHERS:
        tell(f"trying {cipher}")
        with contextlib.suppress(OSError, RuntimeError), _plain(laptop, remote, cipher) as port:
            fetch(port, 1, TOTAL // 10)
            found[cipher] = fetch(port, 1, TOTAL // 2)
    return max(found, key=lambda cipher: found[cipher])


def _start(
    laptop: Laptop, argv: tuple[str, ...], sign: str, env: dict[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """The process, and what follows `sign` in the line it prints when it is up."""
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = laptop.start(argv, env=env or laptop.env, **quiet)
    assert process.stdout is not None
    for line in process.stdout:
        word, _, rest = line.decode(errors="replace").partition(sign)
        if not word and rest:
            return process, rest.strip()
    laptop.end(process)
    raise RuntimeError(f"{argv[0]} did not come up")


def _let_go(laptop: Laptop, process: subprocess.Popen[bytes]) -> None:
    """Both end by themselves, and tidy up, when their stdin does."""
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    laptop.end(process)


def await_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            _connect_once(port)
            return
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
