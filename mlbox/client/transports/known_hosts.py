"""known_hosts: what files of that form say about a host's keys, with their hashes, patterns and markers."""

from __future__ import annotations

import base64
import contextlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

AUTHORITY, REVOKED = "@cert-authority", "@revoked"


@dataclass(frozen=True)
class Line:
    marker: str  # empty: the key is the host's own
    hosts: str  # patterns with * ? and !, or one hash
    kind: str
    key: str  # base64


def about(files: Iterable[str], name: str) -> list[Line]:
    """The lines that mean this host. What is no line of such a file counts for nothing, and a missing file is empty."""
    return [line for file in files for line in _lines(file) if _means(line.hosts, name)]


def _lines(file: str) -> list[Line]:
    try:
        split = [line.split() for line in Path(file).read_text(errors="replace").splitlines()]
    except OSError:
        return []
    marked = [words if words[:1] and words[0].startswith("@") else ["", *words] for words in split]
    return [Line(*words[:4]) for words in marked if len(words) >= 4 and not words[1].startswith("#")]


def _means(hosts: str, name: str) -> bool:
    if hosts.startswith("|1|"):
        salt, _, digest = hosts[3:].partition("|")
        with contextlib.suppress(ValueError):  # what is no base64
            made = hmac.new(base64.b64decode(salt), name.encode(), "sha1").digest()
            return hmac.compare_digest(base64.b64encode(made), digest.encode())
        return False
    matched = False
    for pattern in hosts.lower().split(","):
        expression = re.escape(pattern.lstrip("!")).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(expression, name.lower()):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched
