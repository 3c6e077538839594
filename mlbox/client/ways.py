"""What `ssh NAME` leaves in the runtime folder: ssh removes no socket that it forwarded, and nobody a lock.

<hash>f         a session's local socket          <hash>p.lock    beside <hash>p, a host's shared connection
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Container
from pathlib import Path

from mlbox import errors
from mlbox.client import state

_OURS = re.compile(r"[0-9a-f]{16}(f|p\.lock)")


def sweep(kept: Container[object]) -> None:
    """Remove what nobody uses. `kept`: the local sockets of sessions that ssh knows."""
    with contextlib.suppress(errors.MlboxError, OSError):  # the next one does it
        for path in state.runtime().iterdir():
            if not _OURS.fullmatch(path.name):
                continue
            if path.name.endswith("f"):
                if str(path) not in kept and _is_dead(path):
                    path.unlink(missing_ok=True)
            elif not path.with_suffix("").exists():
                _remove_lock(path)


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # one whose backlog is full lives
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # it can't be known, and a living one's is not to be removed
            pass
        return False


def _remove_lock(path: Path) -> None:
    """Only while it is ours; who waited for it looks whether it still is there (client/proxy.py)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
