"""What a job waits for; with it alone a laptop submits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class After:
    """A job to wait for: until it succeeded (`ok`), or until it ended in `any` way."""

    job: str
    end: str = "ok"
