"""What befell the tunnels, for whoever asks afterwards: one log for all of them, with a bound."""

from __future__ import annotations

import contextlib
import os
import time

from mlbox.client import state
from mlbox.core import text

LIMIT = 128 * 1024  # bytes; then it becomes tunnels.log.1, whose predecessor goes
_LINE = 2000  # characters


def note(name: str, words: str) -> None:
    """A line, with the time and the session's name. A full disk costs the line."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {name} [{os.getpid()}] {text.safe(words)[:_LINE]}\n"
    path = state.home() / "tunnels.log"
    with contextlib.suppress(OSError), state.locked():
        if path.exists() and path.stat().st_size > LIMIT:
            path.replace(path.with_name("tunnels.log.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", errors="replace") as file:
            file.write(line)
