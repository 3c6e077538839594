"""What a session's tunnels tell, and the times they keep."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["up", "lost", "retrying", "back", "refused", "stranger", "closed"]


@dataclass(frozen=True)
class TunnelEvent:
    """kind: up        the first link answers
             lost      no link answers; new connections wait
             retrying  an attempt failed, the next one is due
             back      a link answers again (or, after reconnect(), a new one took over)
             refused   ssh works, but nobody is behind it: ask the host whether the session lives
             stranger ssh works, and what answers is not the session's guest: nothing is sent there
             closed    the end
    generation: of the link it is about. reason: for people. downtime: seconds since the last answer.
    barred: the login itself was refused, and a later attempt will hardly fare better: a person may be needed."""

    kind: Kind
    generation: int
    reason: str = ""
    downtime: float = 0.0
    barred: bool = False


OnEvent = Callable[[TunnelEvent], None]
"""Called from the supervisor's thread, one event at a time; it must not block."""


@dataclass(frozen=True)
class Timing:
    """Seconds, on the monotonic clock; a sleep, through which that may stand still, is noticed by the other too."""

    probe_every: float = 3.0
    probe_timeout: float = 4.0
    grace: float = 10.0  # a silent link's, once a newer one answers
    slept: float = 30.0  # between two looks, of which there is one at each probe and answer: this machine was not awake
    start_limit: float = 45.0  # from start to the first answer; ssh's own ConnectTimeout is 10
    first_start_limit: float = 180.0  # the first one may ask for a passphrase or a touch
    backoff_first: float = 0.2
    backoff_last: float = 5.0
    barred_first: float = 60.0  # the login was refused: asking again soon gets an address banned
    barred_last: float = 600.0
    steady: float = 10.0  # a link that was up this long is dialled anew at once, and starts the backoff afresh
    refused_first: float = 5.0  # between two "refused" or "stranger" events: at each the host is asked
    refused_last: float = 60.0


class Backoff:
    """Delays that double from first to last, each a quarter more or less (laptops don't dial in step)."""

    def __init__(self, first: float, last: float) -> None:
        self._first = first
        self._last = last
        self._next = first

    def delay(self) -> float:
        delay, self._next = self._next, min(self._last, self._next * 2)
        return delay * random.uniform(0.75, 1.25)

    def reset(self) -> None:
        self._next = self._first
