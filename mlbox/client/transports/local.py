"""This machine as its own host: the same request, the same host part, no SSH. Its sockets need no tunnel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlbox import errors
from mlbox.client.state import Config
from mlbox.client.transports import keys
from mlbox.client.transports.child import Child

if TYPE_CHECKING:
    from mlbox.client.tunnels import Link


class Local:
    host = "local"

    def open(self, command: str) -> Child:
        if sys.platform == "darwin":  # it would begin, and then lose or leave behind what it can't see there
            raise errors.HostUnready(
                "a Mac can be the laptop, but not a host: mlbox's part on hosts needs Linux",
                "name a host, or hosts = [...] in config.toml",
            )
        # A session of its own: ^C at the terminal is for the client, which then asks the host part to undo.
        return Child(("/bin/sh", "-c", command), new_session=True)

    def failure(self, code: int, stderr: str) -> errors.MlboxError:
        return errors.MlboxError(f"the host part on this machine ended with exit code {code}", stderr.strip()[-800:])

    def public_keys(self) -> tuple[str, ...]:
        return keys.public(self.identity_files())

    def agent(self) -> str:
        return ""

    def identity_files(self) -> tuple[str, ...]:
        return keys.defaults() or keys.own()

    def way(self, socket: str) -> dict[str, Any] | None:
        return {"ssh": [], "host": self.host, "control": "", "local": ""}

    def link(self, forwards: Mapping[str, str], folder: Path, generation: int) -> Link:
        from mlbox.client.tunnels import LocalLink  # which only who attaches needs

        return LocalLink(forwards)


def make(host: str, config: Config) -> Local:
    return Local()
