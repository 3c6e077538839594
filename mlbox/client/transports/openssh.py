"""The system's ssh: one shared connection per host for commands, one of its own for each tunnel.

    ssh -o ControlMaster=auto -o ControlPath=<private>/<hash> -o ControlPersist=10m HOST command
    the first command dials and leaves a master behind; the next ones take about one round trip

Assumes OpenSSH 8 or newer. All that `ssh HOST` does for the user (Include, Match, ProxyJump, agents, FIDO,
certificates) it does here, host key checking first of all: mlbox never changes how a key is verified.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.client import output, state
from mlbox.client.transports import keys, known_hosts
from mlbox.client.transports.child import Child
from mlbox.client.tunnels import Link, SshLink

_PERSIST = "10m"
_DEFAULT_CIPHERS = ("chacha20-poly1305@openssh.com,aes128-ctr", "chacha20-poly1305@openssh.com,aes128-gcm")  # 10.0's


class OpenSsh:
    def __init__(self, host: str, ssh_config: str) -> None:
        if shutil.which("ssh") is None:
            hint = 'install it, or set transport = "fabric" in config.toml'
            raise errors.Usage("there is no ssh on this machine", hint)
        if not host or host.startswith("-") or any(c.isspace() for c in host):
            raise errors.Usage(f"{host!r} can't be a host's name")
        self.host = host
        self._ssh = ("ssh", *(("-F", ssh_config) if ssh_config else ()))
        self._file = os.path.abspath(ssh_config) if ssh_config else ""
        self._control = _control_path(host, self._file)
        self._resolved: dict[str, list[str]] = {}
        # Asked for meanwhile: what `ssh -G` says is needed a little later than the first command.
        self._resolver = threading.Thread(target=self._resolve, daemon=True)
        self._resolver.start()

    def open(self, command: str) -> Child:
        if _may_ask() and not _answers(self._control):
            self._dial()
        # A session of its own: ^C at the terminal is for the client, which then asks the host part to undo.
        return Child((*self._ssh, *self._shared(), "-o", "BatchMode=yes", "--", self.host, command), new_session=True)

    def _shared(self) -> tuple[str, ...]:
        options = ["ControlMaster=auto", f"ControlPath={self._control}", f"ControlPersist={_PERSIST}"]
        options += ["ServerAliveInterval=5", "ServerAliveCountMax=3", "ConnectTimeout=10"]
        # What the user's `ssh HOST` runs, and ports that it forwards, are not for this connection, which stays a while.
        options += ["RemoteCommand=none", "ClearAllForwardings=yes"]
        options += ["LogLevel=INFO"]  # by its words it is told why there is no connection
        return (*(word for option in options for word in ("-o", option)), "-T", "-a", "-x")

    def _dial(self) -> None:
        """Connect in the foreground, where ssh may ask for a passphrase, a code, or whether to trust a key."""
        with tempfile.TemporaryFile() as said, output.still():
            done = subprocess.run((*self._ssh, *self._shared(), "-f", "-N", "--", self.host), stdout=said, stderr=said)
            if done.returncode != 0:
                said.seek(0)
                raise explain(self.host, said.read().decode(errors="replace"))

    def failure(self, code: int, stderr: str) -> errors.MlboxError:
        return explain(self.host, stderr)

    def _resolve(self) -> None:
        done = subprocess.run(
            (*self._ssh, "-G", "--", self.host), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        for line in done.stdout.splitlines():
            name, _, value = line.partition(" ")
            self._resolved.setdefault(name, []).append(value)

    def identity_files(self) -> tuple[str, ...]:
        self._resolver.join()
        alias = self._resolved.get("hostkeyalias", [""])[0]
        expand = keys.expander(self.host.rpartition("@")[2], *self.address(), alias)
        found = (os.path.expanduser(expand(name)) for name in self._resolved.get("identityfile", []))
        return keys.identities(found, self.agent())

    def public_keys(self) -> tuple[str, ...]:
        return keys.public(self.identity_files(), self.agent())

    def agent(self) -> str:
        self._resolver.join()
        return self._resolved.get("identityagent", [""])[0]

    def way(self, socket: str) -> dict[str, Any] | None:
        """A connection of its own: the commands' one is given up when it is silent, and a shell is not."""
        local = state.runtime() / hashlib.sha256(f"{self._control}\0{socket}".encode()).hexdigest()[:16]
        ssh = ["ssh", *(("-F", self._file) if self._file else ())]
        return {"ssh": ssh, "host": self.host, "control": f"{self._control}p", "local": f"{local}f"}

    def address(self) -> tuple[str, int, str]:
        """Where it dials to: host name, port, user."""
        self._resolver.join()
        found = {name: values[0] for name, values in self._resolved.items()}
        return found.get("hostname", self.host), int(found.get("port", 22)), found.get("user", "")

    def host_keys(self) -> tuple[str, tuple[str, ...]]:
        """How this laptop verifies it: a name, and what known_hosts has for that, each "type base64" with its marker
        before it, if it has one. Raises Unreachable where there is no key, its own or an authority's."""
        address, port, _ = self.address()
        alias = self._resolved.get("hostkeyalias", [""])[0]
        named = " ".join(self._resolved.get("userknownhostsfile", []) + self._resolved.get("globalknownhostsfile", []))
        files = [os.path.expanduser(file) for file in shlex.split(named)]
        name = alias or address
        with_port = name if alias or port == 22 else f"[{address}]:{port}"
        lines = known_hosts.about(files, with_port) or known_hosts.about(files, name)  # as ssh looks for them
        if all(line.marker == known_hosts.REVOKED for line in lines):
            raise errors.Unreachable(f"no host key of {self.host} is known on this machine", f"ssh {self.host} once")
        return name, tuple(dict.fromkeys(f"{line.marker} {line.kind} {line.key}".strip() for line in lines))

    def link(self, forwards: Mapping[str, str], folder: Path, generation: int) -> Link:
        batch = generation > 1 or not _may_ask()
        return SshLink(
            self._ssh, self.host, forwards, folder, generation, batch=batch, fast_cipher=self._default_ciphers()
        )

    def _default_ciphers(self) -> bool:
        """Whether the user left the ciphers alone: then the faster of the safe ones goes first."""
        self._resolver.join()
        return self._resolved.get("ciphers", [""])[0].startswith(_DEFAULT_CIPHERS)


def _may_ask() -> bool:
    """Whether ssh finds a person: at the terminal, or by the program that asks in a window."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        return True
    if not os.environ.get("SSH_ASKPASS"):
        return False
    require = os.environ.get("SSH_ASKPASS_REQUIRE", "")
    return require == "force" or (require != "never" and bool(os.environ.get("DISPLAY")))


def _answers(path: Path) -> bool:
    """Whether a connection's master listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _control_path(host: str, file: str) -> Path:
    """Short, because a socket's path is limited; of host and configuration, because either may change."""
    return state.runtime() / hashlib.sha256(f"{file}\0{host}".encode()).hexdigest()[:16]


def explain(host: str, stderr: str) -> errors.MlboxError:
    """What ssh said, as what happened and what to try."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "ssh ended without a word"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        message = f"{host} showed another host key than the one you know: it was reinstalled, or somebody is in between"
        return errors.NotLetIn(message, f"ask its administrator; only then remove the old key: ssh-keygen -R {host}")
    if "Host key verification failed" in stderr or "No ED25519 host key is known" in stderr:
        message = f"{host}'s host key is not known on this machine yet"
        return errors.NotLetIn(
            message, f"run `ssh {host}` once and compare the fingerprint with what its administrator says"
        )
    kind = errors.NotLetIn if "Permission denied (" in last else errors.Unreachable
    if any(sign in stderr for sign in _NEVER_MET):
        kind = errors.NotConnected
    for sign, what, hint in _SIGNS:
        if sign in stderr:
            return kind(f"{host}: {what} ({last})", hint.format(host=host))
    return kind(f"{host}: {last}", f"does `ssh {host} true` work?")


# What ends a connection that was up may say "timed out" and "No route to host" too.
_NEVER_MET = ("connect to host", "Could not resolve hostname", "during banner exchange", "kex_exchange_identification")
_SIGNS = (
    ("Could not resolve hostname", "there is no such host", "check the name; `ssh {host}` must work first"),
    (
        "Permission denied (keyboard-interactive)",
        "it took the key and asks for more (a code, a password), and there is nobody to answer",
        "run it at a terminal; its connection then serves other commands for 10 minutes",
    ),
    (
        "Permission denied",
        "the login was refused",
        "does `ssh {host}` let you in? is your key in the agent (ssh-add -l)?",
    ),
    ("timed out", "no answer", "is it switched on, and are you in its network (VPN)?"),
    ("No route to host", "it can't be reached", "is it switched on, and are you in its network (VPN)?"),
    ("Network is unreachable", "it can't be reached", "are you in its network (VPN)?"),
    ("Connection refused", "no SSH server answers there", "is sshd running on it?"),
    ("Bad configuration option", "ssh can't read its configuration", "see the line that ssh names"),
)


def make(host: str, config: state.Config) -> OpenSsh:
    return OpenSsh(host, config.ssh_config)
