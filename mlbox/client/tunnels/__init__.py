"""The laptop's side of a session: fixed local ports whose connections reach the services on a GPU host."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlbox.client.tunnels.events import Timing, TunnelEvent
    from mlbox.client.tunnels.gate import Key
    from mlbox.client.tunnels.link import Link, LocalLink, SshLink
    from mlbox.client.tunnels.listener import Service
    from mlbox.client.tunnels.tunnels import Tunnels

__all__ = ["Key", "Link", "LocalLink", "Service", "SshLink", "Timing", "TunnelEvent", "Tunnels"]
# Each is imported when it is asked for: every command has a transport, and few have tunnels.
_HOME = {
    "Timing": "events", "TunnelEvent": "events", "Key": "gate", "Service": "listener", "Tunnels": "tunnels",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"{__name__} has no {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'link')}"), name)
