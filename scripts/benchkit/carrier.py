"""mlbox's tunnel to one socket on a host, as a process: prints its port, and ends when its stdin does.

python3 -m benchkit.carrier HOST SSH_CONFIG REMOTE_SOCKET FOLDER
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from mlbox.client.transports.openssh import OpenSsh
from mlbox.client.tunnels import Key, Service, Tunnels


def main(host: str, ssh_config: str, remote: str, folder: str) -> int:
    transport = OpenSsh(host, ssh_config)
    forwards = {"bytes": remote, "guest": remote}
    tunnels = Tunnels(
        [Service("bytes", 0)],
        lambda generation: transport.link(forwards, Path(folder), generation),
        lambda event: None,
        Key("bench", ""),
    )
    tunnels.open()
    with contextlib.closing(tunnels):
        if not tunnels.wait_up(30):
            return 1
        print(f"port {tunnels.port('bytes')}", flush=True)
        sys.stdin.buffer.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
