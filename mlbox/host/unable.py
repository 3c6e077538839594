"""Jobs that a host could not start a moment ago: for a while it passes them over, keeps no room for them and tells
nobody to end for them, and other hosts do not count on it.

    users/<user>/on/<host>/host.json    "unable": {job: [until, why]}, `until` by that host's uptime (s)

It stands where every user's ticks on every host look anyway: known to its owner's ticks alone, the first in line would
hold up all others' jobs on a host with a broken engine. A word about another user's job counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from mlbox import errors
from mlbox.core import ids, log, text
from mlbox.host import processes

Told = dict[str, tuple[float, str]]
REST = 45.0  # s, where the trouble has no time of its own: until the next of cron's ticks
_MOST, _LONGEST = 200, 300  # jobs; letters of a reason. In all less than is read back (files.MAX_FILE)


class LeftAlone(errors.HostUnready):
    """Why it is passed over here, and until when (by this host's uptime, s)."""

    def __init__(self, why: str, until: float) -> None:
        super().__init__(_words(why, until))
        self.why, self.until = why, until


def of(error: errors.HostUnready) -> tuple[float, str]:
    if isinstance(error, LeftAlone):
        return error.until, error.why
    return processes.uptime() + REST, error.message


def read(document: Any) -> Told:
    """Of a host.json, which may be anybody's."""
    told = document.get("unable") if isinstance(document, dict) else None
    found: Told = {}
    for job, entry in islice(told.items(), _MOST) if isinstance(told, dict) else ():
        if ids.is_ulid(job) and isinstance(entry, list) and len(entry) == 2:
            until, why = entry
            if log.moment(until) and isinstance(why, str):
                found[job] = float(until), why[:_LONGEST]
    return found


def now(document: Any) -> Told:
    """Of this host's own host.json: what still holds."""
    uptime = processes.uptime()
    if not isinstance(document, dict) or document.get("boot") != processes.boot_id():
        return {}
    return {job: entry for job, entry in read(document).items() if uptime < entry[0]}


def to_wire(told: Told) -> dict[str, list[Any]]:
    return {job: [until, why[:_LONGEST]] for job, (until, why) in islice(told.items(), _MOST)}


def words(host: str, user: str, told: Told) -> Mapping[tuple[str, str], str]:
    """HostFacts.unable of this user's jobs."""
    return {(user, job): f"{host}: {_words(why, until)}" for job, (until, why) in told.items()}


def _words(why: str, until: float) -> str:
    return f"{why}; tried again in {text.duration(max(1.0, until - processes.uptime()))}"
