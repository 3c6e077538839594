"""Jobs that a host could not start a moment ago: for a while it passes them over, keeps no room for them and tells
nobody to end for them, and other hosts do not count on it.

    users/<user>/on/<host>/host.json    "unable": {job: [until, why, attempt]}, `until` by that host's uptime (s)

It stands where every user's ticks on every host look anyway: known to its owner's ticks alone, the first in line would
hold up all others' jobs on a host with a broken engine. A word about another user's job counts for nothing, nor does
one about another attempt: the job was tried elsewhere since.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from mlbox import errors
from mlbox.core import ids, log, text
from mlbox.core.resources import Turn
from mlbox.host import processes

Told = dict[str, tuple[float, str, int]]
REST = 90.0  # s, where the trouble has no time of its own: beyond the next of cron's ticks, which looks behind them
_MOST, _LONGEST = 640, 100  # jobs; letters of a reason. In all less than is read back (files.MAX_FILE)


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
        if ids.is_ulid(job) and isinstance(entry, list) and len(entry) == 3:
            until, why, attempt = entry
            if log.moment(until) and isinstance(why, str) and type(attempt) is int:
                found[job] = float(until), why[:_LONGEST], attempt
    return found


def here(document: Any, own: bool) -> Told:
    """Of a host.json of this very host and boot. What is a user's `own` is tried again in time; another's is passed
    over until that one's tick, which does that, takes the word back."""
    if not isinstance(document, dict) or document.get("boot") != processes.boot_id():
        return {}
    uptime = processes.uptime()
    return {job: entry for job, entry in read(document).items() if not own or uptime < entry[0]}


def to_wire(told: Told) -> dict[str, list[Any]]:
    return {job: [until, why[:_LONGEST], attempt] for job, (until, why, attempt) in islice(told.items(), _MOST)}


def words(host: str, user: str, told: Told) -> Mapping[Turn, str]:
    """HostFacts.unable of this user's jobs."""
    return {(user, job, attempt): f"{host}: {_words(why, until)}" for job, (until, why, attempt) in told.items()}


def _words(why: str, until: float) -> str:
    return f"{why}; tried again in {text.duration(max(1.0, until - processes.uptime()))}"
