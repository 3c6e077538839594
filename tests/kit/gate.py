"""A gate on a host: `docker` waits there at one of its commands, so that a test can come in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labbox import as_root, ssh

_DOCKER = "/usr/local/bin/docker"  # before /usr/bin in everybody's PATH
_WRAPPER = """#!/bin/sh
case "$*" in "{words}"*)
  touch ~/gate/came
  until [ -e ~/gate/open ]; do sleep 0.05; done ;;
esac
exec /usr/bin/docker "$@"
"""


class Gate:
    def __init__(self, host: str) -> None:
        self._host = host

    def await_somebody(self) -> None:
        """Until a command stands before it."""
        ssh(self._host, "until [ -e ~/gate/came ]; do sleep 0.05; done")

    def open(self) -> None:
        ssh(self._host, "touch ~/gate/open")


@contextmanager
def gate_at(host: str, words: str) -> Iterator[Gate]:
    """Who calls `docker WORDS…` on this host as its user waits until the gate is opened, at the latest by the end."""
    ssh(host, "rm -rf ~/gate && mkdir ~/gate")
    as_root(host, "sh", "-c", f"cat >{_DOCKER} <<'EOF'\n{_WRAPPER.format(words=words)}EOF\nchmod 755 {_DOCKER}")
    gate = Gate(host)
    try:
        yield gate
    finally:
        as_root(host, "rm", "-f", _DOCKER)
        gate.open()
