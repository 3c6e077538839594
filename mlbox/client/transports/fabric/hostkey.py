"""Whether a host's key is known, and not revoked."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

from mlbox import errors
from mlbox.client.transports import known_hosts
from mlbox.client.transports.fabric.library import load
from mlbox.client.transports.fabric.settings import Settings


@dataclass(frozen=True)
class _KnownKeys:
    """What the known_hosts files say about one name."""

    keys: tuple[tuple[str, bytes], ...]
    revoked: frozenset[bytes]


def _known(files: tuple[str, ...], name: str) -> _KnownKeys:
    found: list[tuple[str, bytes]] = []
    revoked = set()
    for line in known_hosts.about(files, name):
        with contextlib.suppress(ValueError):  # a key that is no base64 counts for nothing
            blob = base64.b64decode(line.key)
            if line.marker == known_hosts.REVOKED:
                revoked.add(blob)
            elif not line.marker:  # an authority would vouch for certificates, which paramiko can't read
                found.append((line.kind, blob))
    return _KnownKeys(tuple(found), frozenset(revoked))


class Verifier:
    """Asked by paramiko about every host's key, as no key is ever given to it: raises, unless it is known."""

    def __init__(self, host: str, settings: Settings) -> None:
        self._host, self._settings = host, settings
        self._known = _known(settings.known_hosts, settings.key_name)

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        blob = key.asbytes()
        if blob in self._known.revoked:
            message = f"{self._host} showed a host key that is marked as revoked (Host key verification failed)"
            raise errors.NotLetIn(message, "ask its administrator")
        if any(blob == known for _, known in self._known.keys):
            return
        digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        shown = f"{key.get_name()} SHA256:{digest}"
        file = self._settings.known_hosts[0] if self._settings.known_hosts else "~/.ssh/known_hosts"
        line = f"{self._settings.key_name} {key.get_name()} {key.get_base64()}"
        if self._known.keys:
            message = (
                f"{self._host} showed another host key than the one you know: {shown} (Host key verification failed)"
            )
            hint = f"it was reinstalled, or somebody is in between: ask its administrator; only then change {file}"
        else:
            message = f"{self._host}'s host key is not known on this machine yet (Host key verification failed)"
            hint = f"it showed {shown}; where its administrator says the same, add this line to {file}:\n{line}"
        raise errors.NotLetIn(message, hint)

    def transport(self, sock: Any, **options: Any) -> Any:
        """paramiko's Transport, that asks first for the kinds of key that are known."""
        _, paramiko = load()
        made = paramiko.Transport(sock, **options)
        security = made.get_security_options()
        kinds = {"rsa-sha2-512" if kind == "ssh-rsa" else kind for kind, _ in self._known.keys}
        security.key_types = sorted(security.key_types, key=lambda kind: kind not in kinds)
        return made
