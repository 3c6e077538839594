"""fabric (on paramiko), for machines without an OpenSSH client: commands, and as a last resort tunnels.

    connect   our own TCP socket (TCP_NODELAY), a jump host's channel, or a ProxyCommand's pipe, given to fabric
    command   one session channel; channels share a connection, 8 at most (sshd's MaxSessions is 10)
    tunnel    per connection to a local unix socket one channel, on which the host part's `connect` copies bytes

What fabric does wrong by itself, and what is done here instead:
    any host key is welcome      only a key in the user's or the system's known_hosts is, whatever
                                 StrictHostKeyChecking says; read here, as paramiko knows no @revoked or patterns
    an hour on a dead link       every step of connecting has its limit; a connection on which nothing at all has
                                 come for 15 s, though asked every 5, is closed, and all that waits on it wakes
    no Include                   the settings come from `ssh -G`; without an ssh, Include is expanded here. One
                                 inside Host or Match counts up to the first Host or Match of the included file
    ~/.fabric.yaml, ~/.ssh read twice: neither is read by fabric

A tunnel's connections are its own, and silence does not close them: TCP may heal, the tunnel's probe sees it.
Not here: host certificates, GSSAPI, FIDO key files, IdentityAgent other than none, logins in two steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.client import output, state
from mlbox.client.transports import keys
from mlbox.client.transports.fabric.channel import Channel, Pool
from mlbox.client.transports.fabric.connection import Dialler
from mlbox.client.transports.fabric.library import load
from mlbox.client.transports.fabric.link import FabricLink
from mlbox.client.transports.fabric.login import Keyring
from mlbox.client.transports.fabric.settings import parts, resolve
from mlbox.client.transports.openssh import explain
from mlbox.client.tunnels import Link


class Fabric:
    def __init__(self, host: str, ssh_config: str) -> None:
        load()
        parts(host)
        self.host, self._ssh_config = host, ssh_config
        self._keyring = Keyring()
        self._pool = Pool(host, self._dialler(watch=True, ask=True))
        self._warned = False

    def open(self, command: str) -> Channel:
        return self._pool.open(command)

    def failure(self, code: int, stderr: str) -> errors.MlboxError:
        return explain(self.host, stderr)

    def identity_files(self) -> tuple[str, ...]:
        return keys.identities(resolve(self.host, self._ssh_config).identity_files)

    def public_keys(self) -> tuple[str, ...]:
        return keys.public(self.identity_files())

    def agent(self) -> str:
        return ""

    def way(self, socket: str) -> dict[str, Any] | None:
        return None  # it is for machines without ssh

    def link(self, forwards: Mapping[str, str], folder: Path, generation: int) -> Link:
        if not self._warned:
            self._warned = True
            output.warn("tunnels over fabric are slow, most of all with many connections: better install OpenSSH")
        dialler = self._dialler(watch=False, ask=generation == 1)
        return FabricLink(Pool(self.host, dialler), forwards, folder, generation)

    def _dialler(self, watch: bool, ask: bool) -> Dialler:
        return Dialler(self.host, self._ssh_config, self._keyring, watch, ask)


def make(host: str, config: state.Config) -> Fabric:
    return Fabric(host, config.ssh_config)
