"""What the code of a job may be: as a laptop packs it, and as a host unpacks it. Pure."""

from __future__ import annotations

import posixpath

MOST_UNPACKED = 4 << 30  # bytes
MOST_FILES = 200_000


def stays_inside(name: str, target: str) -> bool:
    """Whether the link `name`, a path in the folder, leads to a place in it."""
    words = target.split("/")
    up = next((at for at, word in enumerate(words) if word != ".."), len(words))
    if ".." in words[up:]:  # behind a link, the way up leads elsewhere than it reads
        return False
    place = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return not posixpath.isabs(place) and place != ".." and not place.startswith("../")
