"""Phrases of which the reasons are made."""

from __future__ import annotations

from mlbox.core.schedule.view import Running, Waiting


def short(job: str) -> str:
    """A job's id in a sentence: its beginning is the time, its end is random."""
    return f"{job[:3]}…{job[-4:]}" if len(job) > 8 else job


def who(job: Waiting | Running) -> str:
    return f"{job.owner}'s {job.kind} {short(job.id)}"


def are_free(number: int) -> str:
    return f"{number} {'is' if number == 1 else 'are'} free"


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def clock(when: float) -> str:
    minutes = int(min(when, 1e12)) // 60
    return f"{minutes // 60 % 24:02}:{minutes % 60:02} UTC"
