"""Ways to run a command on a host, behind one Protocol, with one contract test (tests/client/test_transports.py).

To add one, write its file with `def make(host, config) -> Transport` and its line in TRANSPORTS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlbox import errors
from mlbox.client import state
from mlbox.client.state import Config

if TYPE_CHECKING:
    from mlbox.client.tunnels import Link

LOCAL = "local"


class Channel(Protocol):
    """One running command."""

    def write(self, data: bytes) -> None:
        """All of it; raises Unreachable where the connection is gone."""

    def close_input(self) -> None: ...

    def read(self) -> bytes:
        """Some output, as soon as there is any; empty at its end."""

    def wait(self) -> int:
        """The exit code; 255 where the connection itself failed."""

    def errors(self) -> str:
        """Its error output, complete after wait()."""

    def stop(self) -> None:
        """From another thread: a `read` that waits comes to its end. `kill` is still to be called."""

    def kill(self) -> None: ...


class Transport(Protocol):
    host: str  # as the user calls it

    def open(self, command: str) -> Channel:
        """Start a command; `command` must mean the same to every login shell."""

    def failure(self, code: int, stderr: str) -> errors.MlboxError:
        """What a failed connection means for a person."""

    def public_keys(self) -> tuple[str, ...]:
        """The public keys that this user's ssh would show to the host."""

    def identity_files(self) -> tuple[str, ...]:
        """Their private halves' files, for an ssh configuration of mlbox's own."""

    def agent(self) -> str:
        """The IdentityAgent that the user's ssh configuration names for the host; empty without one."""

    def way(self, socket: str) -> dict[str, Any] | None:
        """What of a place (client/proxy.py) it takes to reach a socket there by ssh's ProxyCommand; None where the
        user's ssh can't."""

    def link(self, forwards: Mapping[str, str], folder: Path, generation: int) -> Link:
        """A way to the unix sockets `forwards` (service -> path there), by local sockets in `folder`."""


TRANSPORTS = {"openssh": "openssh", "fabric": "fabric"}


def make(host: str, config: Config) -> Transport:
    """Whoever comes here sweeps away what a killed holder of tunnels left."""
    if state.tunnel_folders():
        from mlbox.client import owners  # which few commands have to do with

        owners.sweep()
    name = "local" if host == LOCAL else TRANSPORTS.get(config.transport, "")
    if not name:
        known = ", ".join(TRANSPORTS)
        raise errors.Usage(
            f"there is no transport {config.transport!r}", f"config.toml takes transport = one of {known}"
        )
    module = importlib.import_module(f"mlbox.client.transports.{name}")
    made: Transport = module.make(host, config)
    return made
