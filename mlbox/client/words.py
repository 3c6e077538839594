"""What is typed as one word and means several: in options, and as text in YAML files."""

from __future__ import annotations

import re
import shlex

from mlbox import errors

_NEXT_ITEM = re.compile(r",(?![^\[]*\])\s*(?=[\w./~]|$)")


def split_list(value: str) -> list[str]:
    """Items between commas; a comma inside brackets or before a version (`numpy>=2,<3`) is the item's own."""
    return [item for item in (part.strip() for part in _NEXT_ITEM.split(value)) if item]


def split_words(value: str, what: str) -> list[str]:
    """Words as a shell would read them; raises Usage where a quote stays open."""
    try:
        return shlex.split(value)
    except ValueError as error:
        raise errors.Usage(f"{what} can't be read: {error}") from None
