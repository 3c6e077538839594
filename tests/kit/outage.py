"""A host that can't be reached for a while: without its SSH server, or with every packet lost. All is put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from labbox import as_root

# Newer ones serve a connection under another name. Not those of sessions' containers, which the host sees as its own
# processes too.
_KILL_SSHD = """
for pid in $(pgrep -x 'sshd(-session|-auth)?'); do
  if [ "$(readlink /proc/$pid/ns/pid)" = "$(readlink /proc/1/ns/pid)" ]; then kill -KILL $pid; fi
done
true
"""
_ALL_PACKETS = (("INPUT", "-i"), ("OUTPUT", "-o"))


@contextmanager
def without_sshd(host: str) -> Iterator[None]:
    """All of sshd is killed, with every connection to it; afterwards it runs again."""
    as_root(host, "sh", "-c", _KILL_SSHD)
    try:
        yield
    finally:
        as_root(host, "/usr/sbin/sshd")


@contextmanager
def without_network(host: str) -> Iterator[None]:
    """Every packet from and to the host is lost, and nobody is told. (Unplugging would let the kernel tell.)"""
    try:
        for chain, direction in _ALL_PACKETS:
            as_root(host, "iptables", "-I", chain, direction, "eth0", "-j", "DROP")
        yield
    finally:
        for chain, direction in _ALL_PACKETS:
            as_root(host, "iptables", "-D", chain, direction, "eth0", "-j", "DROP", check=False)


@contextmanager
def forgotten(host: str, ports: Iterable[int]) -> Iterator[None]:
    """Connections that came from these ports lead nowhere any more, as when a router in between has forgotten them."""
    ways = [(chain, side, str(port)) for port in ports for chain, side in (("INPUT", "--sport"), ("OUTPUT", "--dport"))]
    assert ways
    try:
        for chain, side, port in ways:
            as_root(host, "iptables", "-w", "-I", chain, "-p", "tcp", side, port, "-j", "DROP")
        yield
    finally:
        for chain, side, port in ways:
            as_root(host, "iptables", "-w", "-D", chain, "-p", "tcp", side, port, "-j", "DROP", check=False)


# Files of many names, for each name is on one of its bricks, and these come back one by one; and names of this host's,
# for several may look at once. (Not `: >`: its failure ends the shell.)
_SHARE_IS_BACK = """
mine=.back-$(hostname)-$$
try() { cd /share && for i in 1 2 3 4 5 6 7 8 9; do touch $mine-$i || return 1; done && rm $mine-*; }
until try 2>/dev/null; do sleep 0.5; done
"""


def await_share(host: str) -> None:
    """After an outage the share's client takes its time to connect anew: up to a minute was seen."""
    as_root(host, "timeout", "150", "sh", "-c", _SHARE_IS_BACK)
