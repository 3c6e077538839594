"""What a job waits for; with it alone a laptop submits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class After:
    """Whom to wait for, a job or a whole array: until it succeeded (`ok`), or until it ended in `any` way."""

    job: str
    end: str = "ok"
    array: int = 0  # of how many jobs, where `job` is the first of an array that is meant; 0: this one alone

    def to_wire(self) -> dict[str, Any]:
        """Of one alone as older versions wrote it, and read it."""
        return {key: value for key, value in asdict(self).items() if value or key != "array"}


@dataclass(frozen=True)
class Ends:
    """Of an array's jobs, as far as is known: how many have ended, and how many of these without success."""

    ended: int = 0
    bad: int = 0
