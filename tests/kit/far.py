"""A long and lossy way to a host: a small program between two TUN devices, one here and one in the host's network.

netem would do, but it is not in every kernel. Packets are kept for half the round trip in each direction, and some of
them are lost. The devices go with the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_HERE, THERE = "10.99.213.1", "10.99.213.2"
_SEED = 4711


def _device(name: str, own: str, other: str) -> int:
    """A TUN device in the network that this process is in just now."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    for words in (("addr", "add", own, "peer", other, "dev", name), ("link", "set", name, "up")):
        subprocess.run(("ip", *words), check=True)
    return descriptor


def _devices(pid: int) -> tuple[int, int]:
    own, other = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    near = _device("mbnear", _HERE, THERE)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(other, 0) == 0, os.strerror(ctypes.get_errno())
    far = _device("mbfar", THERE, _HERE)
    assert libc.setns(own, 0) == 0, os.strerror(ctypes.get_errno())
    return near, far


def _carry(near: int, far: int, delay: float, loss: float) -> None:
    other, chance, order = {near: far, far: near}, random.Random(_SEED), itertools.count()
    under_way: list[tuple[float, int, int, bytes]] = []
    with selectors.DefaultSelector() as selector:
        for descriptor in other:
            selector.register(descriptor, selectors.EVENT_READ)
        while True:
            patience = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            for key, _ in selector.select(patience):
                packet = os.read(key.fd, 65536)
                if chance.random() >= loss:
                    heapq.heappush(under_way, (time.monotonic() + delay, next(order), other[key.fd], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(under_way)
                with contextlib.suppress(OSError):
                    os.write(target, packet)


@contextlib.contextmanager
def far_away(
    host: str, address: str, container_pid: int, round_trip: float, loss: float, config: Path
) -> Iterator[None]:
    """With `config`, ssh reaches the host, whose key is known for `address`, the long way. `round_trip` in seconds,
    `loss` from 0 to 1."""
    argv = [sys.executable, __file__, str(container_pid), str(round_trip / 2), str(loss)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None and program.stdout.readline() == b"up\n"
            config.write_text(f"Host {host}\n  HostName {THERE}\n  HostKeyAlias {address}\n{config.read_text()}")
            yield
        finally:
            program.kill()


if __name__ == "__main__":
    found = _devices(int(sys.argv[1]))
    print("up", flush=True)
    _carry(*found, float(sys.argv[2]), float(sys.argv[3]))
