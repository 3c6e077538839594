"""The laptop's side of a session: fixed local ports whose connections reach the services on a GPU host."""

from __future__ import annotations

from mlbox.client.tunnels.events import Timing, TunnelEvent
from mlbox.client.tunnels.gate import Key
from mlbox.client.tunnels.link import Link, LocalLink, SshLink
from mlbox.client.tunnels.listener import Service
from mlbox.client.tunnels.tunnels import Tunnels

__all__ = ["Key", "Link", "LocalLink", "Service", "SshLink", "Timing", "TunnelEvent", "Tunnels"]
