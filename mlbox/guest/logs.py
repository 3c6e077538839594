"""The services' logs: what they say is appended for as long as the session lives, and only its end is kept."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LIMIT = 1 << 20  # bytes; then the older half goes


def shorten(path: Path) -> None:
    """In place, for servers have it open, and write at its end wherever that is. A word that one says just then may be
    lost."""
    with suppress(OSError):  # it goes with its session
        if path.stat().st_size <= LIMIT:
            return
        with path.open("r+b") as log:
            log.seek(-LIMIT // 2, os.SEEK_END)
            log.readline()  # a part of one
            kept = log.read()
            log.seek(0)
            log.write(kept)
            log.truncate()


def tail(path: Path, lines: int = 15) -> str:
    try:
        content = path.read_bytes()[-8192:].decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(content.strip().splitlines()[-lines:])
