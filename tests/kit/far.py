"""A long and lossy way between two networks: a small program between two TUN devices, one in each.

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
NEAR, _FAR = "mbnear", "mbfar"  # the devices
_HERE, THERE = "10.99.213.1", "10.99.213.2"
_SEED = 4711


def _device(name: str, own: str, other: str) -> int:
    """A TUN device in the network that this process is in just now."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    for words in (("addr", "add", own, "peer", other, "dev", name), ("link", "set", name, "up")):
        subprocess.run(("ip", *words), check=True)
    return descriptor


def _devices(near: int, far: int) -> list[int]:
    """Of the networks that these processes are in."""
    libc, made = ctypes.CDLL(None, use_errno=True), []
    for pid, words in ((near, (NEAR, _HERE, THERE)), (far, (_FAR, THERE, _HERE))):
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        assert libc.setns(network, 0) == 0, os.strerror(ctypes.get_errno())
        made.append(_device(*words))
    return made


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
def far_apart(near: int, far: int, round_trip: float, loss: float) -> Iterator[None]:
    """THERE is the network of process `far` as that of process `near` reaches it the long way, by the device NEAR.
    `round_trip` in seconds, `loss` from 0 to 1."""
    argv = [sys.executable, __file__, *map(str, (near, far, round_trip / 2, loss))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None and program.stdout.readline() == b"up\n"
            yield
        finally:
            program.kill()


@contextlib.contextmanager
def far_away(
    host: str, address: str, container_pid: int, round_trip: float, loss: float, config: Path
) -> Iterator[None]:
    """With `config`, ssh reaches the host, whose key is known for `address`, the long way."""
    with far_apart(os.getpid(), container_pid, round_trip, loss):
        config.write_text(f"Host {host}\n  HostName {THERE}\n  HostKeyAlias {address}\n{config.read_text()}")
        yield


if __name__ == "__main__":
    found = _devices(int(sys.argv[1]), int(sys.argv[2]))
    print("up", flush=True)
    _carry(found[0], found[1], float(sys.argv[3]), float(sys.argv[4]))
