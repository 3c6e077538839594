"""Reverse tunnels: what their two ends agree on. Pure.

    workstation  ssh -T -R <folder>/r.<id>.<token>.<service>:<its socket> … RENDEZVOUS "<session> <token> <service> …"
    rendezvous   the key's forced command (host/rendezvous.py) gives the sockets their lasting names r.<id>.<service>,
                 says `up`, and stays until the connection ends; then the names go
    laptop       ssh -L …:<folder>/r.<id>.<service> RENDEZVOUS, as to any session

Fresh names, because sshd never removes a forwarded socket's file and refuses one that is there
(StreamLocalBindUnlink is the server's to set); renamed, a socket stays bound, and replaces a stale one in one step.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlbox.core import ids
from mlbox.errors import Usage

Json = dict[str, Any]

CALL = "call"  # the service through which the host itself is asked (host/handlers/relay.py)
RELAYED = ("sessions", "share")  # the verbs that it may be asked for; all else comes by the share
# Nobody can listen or connect there. Without a permitopen such a key would reach every socket of its user's on the
# rendezvous, the container engine's too: sshd measures sockets by these lists as well (8.4, 9.2 and 10.0 do).
_NOWHERE = "none.invalid:1"
_MARK = "mlbox-reverse-"
_SERVICE = re.compile(r"[a-z]{1,20}")
_TOKEN = re.compile(r"[0-9a-f]{8}")
_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{60,100}={0,2}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}\$?")
_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,253}")
_NAME = re.compile(r"[A-Za-z0-9_:[][A-Za-z0-9._:%\[\]-]{0,253}")  # a HostKeyAlias may be [gate]:2200
_HOST_KEY = re.compile(r"(?:@(?:cert-authority|revoked) )?[a-z0-9@.-]{3,60} [A-Za-z0-9+/]{16,2000}={0,3}")
_FOLDER = re.compile(r"/tmp/mlbox-[0-9]{1,12}")


@dataclass(frozen=True)
class Meeting:
    """Where a host's reverse tunnels end, as the host itself dials it."""

    via: str  # the rendezvous, as laptops' ssh calls it
    address: str
    port: int
    user: str
    folder: str  # there, 0700
    host_keys: tuple[str, ...]  # of the rendezvous: "type base64", behind a marker of known_hosts if it has one
    name: str = "mlbox-rendezvous"  # by which these are its keys; a certificate has to name it too

    def to_wire(self) -> Json:
        return {**vars(self), "host_keys": list(self.host_keys)}

    @classmethod
    def from_wire(cls, data: object) -> Meeting:
        """Raises Usage on what could mean more to ssh than it should."""
        found = data if isinstance(data, Mapping) else {}
        keys, port, name = found.get("host_keys"), found.get("port"), found.get("name", cls.name)
        good = (
            all(isinstance(found.get(name), str) for name in ("via", "address", "user", "folder"))
            and isinstance(keys, list) and keys and all(isinstance(k, str) and _HOST_KEY.fullmatch(k) for k in keys)
            and type(port) is int and 0 < port < 65536 and _ADDRESS.fullmatch(found["address"])
            and isinstance(name, str) and _NAME.fullmatch(name)
            and _USER.fullmatch(found["user"]) and _FOLDER.fullmatch(found["folder"]) and found["via"].isprintable()
        )  # fmt: skip
        if not good or not isinstance(keys, list):
            raise Usage("that is no place to meet: it needs via, address, port, user, folder and host_keys")
        address, user, folder = found["address"], found["user"], found["folder"]
        return cls(found["via"], address, int(found["port"]), user, folder, tuple(keys), name)

    def known_hosts(self) -> str:
        lines = ([*marker, self.name, kind, key] for *marker, kind, key in map(str.split, self.host_keys))
        return "".join(f"{' '.join(words)}\n" for words in lines)

    def dial(self, key: str, known_hosts: str) -> tuple[str, ...]:
        """The beginning of the ssh command: this key, that host key, and nothing of anybody's configuration."""
        options = [
            "BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "GlobalKnownHostsFile=/dev/null",
            f'UserKnownHostsFile="{known_hosts}"', f"HostKeyAlias={self.name}", "ConnectTimeout=10",
            "ServerAliveInterval=10", "ServerAliveCountMax=3", "ControlPath=none",
        ]  # fmt: skip
        words = [word for option in options for word in ("-o", option)]
        return ("ssh", "-F", "none", "-T", "-a", "-x", *words, "-i", key, "-p", str(self.port), "-l", self.user)


def lasting(session: str, service: str) -> str:
    """A session's socket on the rendezvous, in its folder there."""
    return f"r.{session[-8:].lower()}.{service}"


def fresh(session: str, token: str, service: str) -> str:
    return f"r.{session[-8:].lower()}.{token}.{service}"


def request(session: str, token: str, services: Iterable[str]) -> str:
    return " ".join((session, token, *services))


def parse(words: str) -> tuple[str, str, list[str]]:
    """What `request` made. Raises Usage for anything else: this key's holder may ask for nothing more."""
    session, token, *services = words.split(" ") if words.count(" ") >= 2 else ("", "")
    good = ids.is_ulid(session) and _TOKEN.fullmatch(token) and 0 < len(set(services)) == len(services) <= 20
    if not good or not all(_SERVICE.fullmatch(service) for service in services):
        raise Usage("this key holds the reverse tunnels of mlbox's sessions, and does nothing else")
    return session, token, services


def is_key(text: str) -> bool:
    return bool(_KEY.fullmatch(text))


def mark(host: str) -> str:
    """The comment that tells a host's line from the others."""
    return f"{_MARK}{host}"


def authorized(host: str, key: str, program: Iterable[str]) -> str:
    """The line of authorized_keys: this key forwards sockets to the rendezvous, and does nothing else. Raises Usage."""
    command = "exec " + " ".join(map(shlex.quote, program))
    if not is_key(key) or any(c in command for c in '"\\\n%'):
        raise Usage("that is no ed25519 key, or the program's path can't stand in authorized_keys")
    limits = f'restrict,port-forwarding,permitopen="{_NOWHERE}",permitlisten="{_NOWHERE}"'
    return f'{limits},command="{command}" {key} {mark(host)}'


def without(lines: Iterable[str], host: str) -> list[str]:
    """authorized_keys without the host's line."""
    return [line for line in lines if not line.rstrip().endswith(f" {mark(host)}")]
