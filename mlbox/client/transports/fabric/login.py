"""Who one is: the agent's keys and the files', in OpenSSH's order."""

from __future__ import annotations

import base64
import getpass
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlbox.client import output
from mlbox.client.transports.fabric.library import load
from mlbox.client.transports.fabric.settings import Settings

_LOCKED = object()
_ASKING = threading.Lock()


class Keyring:
    """Private keys by file, read once; a passphrase is asked for once, and only where `ask` allows."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def load(self, file: str, ask: bool) -> Any:
        """The key, or None where it can't be had."""
        if file not in self._loaded:
            key = _read_key(file, None)
            if key is _LOCKED:
                key = self._unlocked(file) if ask else None
            if key is None:
                return None
            self._loaded[file] = key
        return self._loaded[file]

    def _unlocked(self, file: str) -> Any:
        """By the person's passphrase; of several threads one asks, also of those that want other files."""
        with _ASKING:
            if file not in self._loaded:
                key = _read_key(file, _ask(file))
                self._loaded[file] = None if key is _LOCKED else key
            return self._loaded[file]


def _ask(file: str) -> str:
    """Empty where the person has none to give (^D)."""
    with output.still():
        try:
            return getpass.getpass(f"passphrase of {file}: ")
        except EOFError:
            return ""


def _read_key(file: str, passphrase: str | None) -> Any:
    _, paramiko = load()
    try:
        return paramiko.PKey.from_path(file, passphrase.encode() if passphrase else None)
    except (TypeError, paramiko.PasswordRequiredException):
        return _LOCKED
    except (paramiko.SSHException, OSError, ValueError, paramiko.pkey.UnknownKeyType):
        return None


class Login:
    """paramiko's "auth strategy": in OpenSSH's order, and with its IdentitiesOnly."""

    def __init__(self, settings: Settings, keyring: Keyring, ask: bool) -> None:
        self._settings, self._keyring, self._ask = settings, keyring, ask

    def authenticate(self, transport: Any) -> None:
        _, paramiko = load()
        more: list[str] = []
        for key in self._keys():
            try:
                more = transport.auth_publickey(self._settings.user, key)
            except paramiko.BadAuthenticationType as error:
                raise paramiko.AuthenticationException(f"the server takes {', '.join(error.allowed_types)}") from None
            except paramiko.AuthenticationException:
                continue
            if not more:
                return
            raise paramiko.AuthenticationException(f"after the key the server asks for {', '.join(more)}")
        raise paramiko.AuthenticationException("publickey")

    def _keys(self) -> Iterator[Any]:
        _, paramiko = load()
        agent = paramiko.Agent() if self._settings.agent else None
        offered = {key.asbytes(): key for key in (agent.get_keys() if agent else ())}
        files = []
        for file in self._settings.identity_files:
            key = offered.pop(_public_blob(file), None)
            if key is not None:
                yield key
            else:
                files.append(file)
        if not self._settings.identities_only:
            yield from offered.values()
        yield from (key for key in (self._keyring.load(file, self._ask) for file in files) if key is not None)


def _public_blob(file: str) -> bytes:
    try:
        return base64.b64decode(Path(f"{file}.pub").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return b""
