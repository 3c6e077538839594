"""Words that people leave in ROOT about a queue or a host: ROOT/paused/<queue>, ROOT/drained/<host>.

The folders are as open as ROOT and sticky: anybody leaves a word, and only who left it, or the folder's owner, takes it
back.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlbox import errors
from mlbox.core import text
from mlbox.host import files, peer, store, view


def leave(found: store.Store, path: Path, why: str) -> None:
    """Raises Refused where another's stands there."""
    path.parent.mkdir(exist_ok=True)
    said = {"by": found.user, "at": time.time(), "why": why}
    with _of_its_owner(path):
        files.write_whole(path, json.dumps(said).encode(), 0o644)


def take_back(path: Path) -> None:
    """Raises Refused where it is another's."""
    with _of_its_owner(path):
        path.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Raises Refused where another's stands there, which neither `leave` nor `take_back` could change."""
    with suppress(FileNotFoundError):
        mark, folder = path.lstat(), path.parent.stat()
        if folder.st_mode & stat.S_ISVTX and os.getuid() not in (0, mark.st_uid, folder.st_uid):
            with _of_its_owner(path):
                raise PermissionError


@contextmanager
def _of_its_owner(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        by, owner = view.marks(path.parent, reasons=False).get(path.name), peer.name(path.parent.stat().st_uid)
        if by is None:  # the folder itself is closed
            raise
        people = " or ".join(dict.fromkeys((text.safe(by), f"{owner}, whose folder {path.parent} is,")))
        raise errors.Refused(
            f"{path.name} was {path.parent.name} by {text.safe(by)}", f"only {people} can resume it"
        ) from None
