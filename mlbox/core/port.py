"""An extra port of a session: which one here leads to which one inside."""

from __future__ import annotations

from dataclasses import dataclass

from mlbox.core import text
from mlbox.errors import Usage

_LAST = 65535


@dataclass(frozen=True)
class Port:
    """`local` is where it is wanted on the laptop; where that is taken, the next free one serves."""

    local: int
    inside: int

    def __str__(self) -> str:
        return str(self.inside) if self.local == self.inside else f"{self.local}:{self.inside}"


def parse(word: str) -> Port:
    """`6006`, or `LOCAL:REMOTE`. Raises Usage."""
    numbers = word.split(":")
    if len(numbers) > 2 or not all(n.isascii() and n.isdigit() and 0 < int(n[:6]) <= _LAST for n in numbers):
        hint = "write PORT or LOCAL:REMOTE, each 1 to 65535 (in YAML, LOCAL:REMOTE between quotes)"
        raise Usage(f"{text.safe(word)!r} is not a port", hint)
    return Port(int(numbers[0]), int(numbers[-1]))
