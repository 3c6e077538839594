"""Which of a session's links carries what is new, which comes next and which is given up. Pure: what the links look
like and the time come in, and what is to be done goes out.

  candidate  the one that is coming up; never two
  current    the newest that has answered: new connections go there while it answers
  old        what was current; its connections live on while it answers, or answers again within the grace
A link that falls silent is not killed: TCP may heal it, and with it every open tab. A second one is started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Union

from mlbox.client.tunnels.events import Backoff, Kind, Timing, TunnelEvent

What = Literal["reconnect", "hurry", "anew", "ended", "drained", "probe", "failed", "stop"]

STRANGER = "something else answers in the session's place"
# In ssh's last words, for after "Load key …: Permission denied" it goes on.
_LAST_WORDS = 4  # lines: a disconnection adds one, and one at a jump host two more
_BARRED = ("permission denied (", "host key verification failed", "too many authentication failures")


@dataclass(frozen=True)
class Seen:
    """A link just now. idle: no connection runs over it. words: the last lines that it said."""

    idle: bool
    alive: bool
    words: str


@dataclass(frozen=True)
class Start:
    """Make this link and begin to ask it; where that fails, say "failed"."""

    generation: int


@dataclass(frozen=True)
class End:
    """It is over. cut: so are its connections; else they end by themselves once what arrived is delivered."""

    generation: int
    cut: bool


@dataclass(frozen=True)
class Route:
    """New connections go there; None: they wait."""

    generation: int | None


@dataclass(frozen=True)
class Hurry:
    """Ask it now."""

    generation: int


Action = Union[Start, End, Route, Hurry, TunnelEvent]


@dataclass
class _Link:
    """usable: it answers, or refuses at once, so new connections may go there. deadline: the monotonic time at which
    it is given up, if any. up_since: of its first answer."""

    generation: int
    deadline: float | None
    usable: bool = False
    up_since: float | None = None


class Succession:
    """All times are monotonic; `seen` has every link that was started and is not over."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._backoff = Backoff(timing.backoff_first, timing.backoff_last)
        self._barred = Backoff(timing.barred_first, timing.barred_last)
        self._refusals = Backoff(timing.refused_first, timing.refused_last)
        self._links: dict[int, _Link] = {}
        self._current: _Link | None = None
        self._candidate: _Link | None = None
        self._retry_at: float | None = None  # never while there is a candidate
        self._lost_at: float | None = None
        self._refused_due = 0.0
        self._was_up = False
        self.generation = 0  # of the newest link

    def due(self) -> float | None:
        """When the clock asks for something next."""
        times = [link.deadline for link in self._links.values() if link.deadline is not None]
        if self._retry_at is not None:
            times.append(self._retry_at)
        return min(times, default=None)

    def tick(self, now: float, seen: Mapping[int, Seen]) -> list[Action]:
        """What the clock asks for."""
        return list(self._tick(now, seen))

    def take(self, what: What, generation: int, detail: str, now: float, seen: Mapping[int, Seen]) -> list[Action]:
        """What follows from the user's "reconnect" or "hurry"; from the session's new start ("anew", as `detail` says);
        or from what became of a link: it "ended", a connection over it ended ("drained"), its "probe" said `detail`, or
        its start "failed" for that reason."""
        return list(self._take(what, generation, detail, now, seen))

    def _tick(self, now: float, seen: Mapping[int, Seen]) -> Iterator[Action]:
        for link in [*self._links.values()]:
            if link.deadline is not None and link.deadline <= now:
                yield self._drop(link)
                if link is self._candidate:
                    yield self._failed(link.generation, seen[link.generation].words or "no answer", now)
        if self._retry_at is not None and self._retry_at <= now:
            yield self._start(now)

    def _take(self, what: What, generation: int, detail: str, now: float, seen: Mapping[int, Seen]) -> Iterator[Action]:
        link = self._links.get(generation)
        if what == "reconnect":
            if self._candidate is None:
                self._retry_at = now
            else:
                yield Hurry(self._candidate.generation)
        elif what == "hurry":
            yield from (Hurry(link.generation) for link in (self._current, self._candidate) if link is not None)
        elif what == "anew":
            yield from self._anew(detail, now)
        elif link is None:
            return
        elif what == "failed":
            del self._links[generation]
            yield self._failed(generation, detail, now)
        elif what == "ended":
            yield from self._ended(link, seen[generation].words or "ssh ended", now)
        elif what == "drained":
            if link not in (self._current, self._candidate) and seen[generation].idle:
                yield self._drop(link)
        elif link is self._candidate:
            yield from self._candidate_said(link, detail, now, seen)
        elif link is self._current:
            yield from self._current_said(link, detail, now, seen)
        else:
            self._old_said(link, detail, now)

    # A link's life

    def _start(self, now: float) -> Action:
        self._retry_at = None
        self.generation += 1
        limit = self._timing.start_limit if self._was_up else self._timing.first_start_limit
        self._links[self.generation] = self._candidate = _Link(self.generation, now + limit)
        return Start(self.generation)

    def _failed(self, generation: int, reason: str, now: float) -> Action:
        """The candidate came to nothing."""
        self._candidate = None
        said = "\n".join(reason.lower().splitlines()[-_LAST_WORDS:])
        barred = any(sign in said for sign in _BARRED)
        self._retry_at = now + (self._barred if barred else self._backoff).delay()
        return self._event("retrying", generation, now, _last_line(reason), barred)

    def _ended(self, link: _Link, reason: str, now: float) -> Iterator[Action]:
        del self._links[link.generation]
        if link is self._current:
            self._current = None
            yield Route(None)
            yield from self._lost(link, _last_line(reason), now, now)
        elif link is self._candidate:
            yield self._failed(link.generation, reason, now)
        yield End(link.generation, cut=False)

    def _lost(self, link: _Link, reason: str, since: float, now: float) -> Iterator[Action]:
        if self._lost_at is not None:
            return  # told when it fell silent, and another one is under way since
        steady = link.up_since is not None and now - link.up_since >= self._timing.steady
        if steady:
            self._backoff.reset()
        if self._candidate is None:
            self._retry_at = now + (0.0 if steady else self._backoff.delay())
        self._lost_at = since
        yield TunnelEvent("lost", link.generation, reason)

    def _anew(self, reason: str, now: float) -> Iterator[Action]:
        """No link leads to the session any more, whatever answers there."""
        self._current = self._candidate = None
        yield Route(None)
        for link in [*self._links.values()]:
            yield self._drop(link)
        if self._was_up and self._lost_at is None:
            self._lost_at = now
            yield TunnelEvent("lost", self.generation, reason)
        self._backoff.reset()
        self._forget_refusals()
        self._retry_at = now

    def _drop(self, link: _Link) -> Action:
        self._links.pop(link.generation, None)
        return End(link.generation, cut=True)

    # What a probe said

    def _candidate_said(self, link: _Link, answer: str, now: float, seen: Mapping[int, Seen]) -> Iterator[Action]:
        if answer in ("refused", "stranger"):
            link.deadline = None  # ssh is up: starting another one would change nothing
            yield from self._refused(link, answer, now, seen)
        elif answer == "silent" and link.deadline is None:
            link.deadline = now + self._timing.start_limit
        if answer != "answered":
            return
        old, self._current, self._candidate = self._current, link, None
        link.deadline, link.up_since = None, now
        yield self._use(link, True)
        if old is not None:
            old.deadline = None if old.usable else now + self._timing.grace
            if seen[old.generation].idle:
                yield self._drop(old)
        yield self._answers(link, now)

    def _current_said(self, link: _Link, answer: str, now: float, seen: Mapping[int, Seen]) -> Iterator[Action]:
        if answer == "silent" and link.usable:
            seconds = self._timing.probe_timeout
            yield self._use(link, False)
            yield from self._lost(link, f"no answer for {seconds:g} s", now - seconds, now)
        elif answer == "stranger" and link.usable:
            yield self._use(link, False)
            yield from self._lost(link, STRANGER, now, now)
        elif answer == "refused":  # a usable one stays that: it is for the host to say no, at once
            yield from self._refused(link, answer, now, seen)
        elif answer == "answered":
            if not link.usable:
                self._retry_at = None
                yield self._use(link, True)
                if self._candidate is not None:
                    yield self._drop(self._candidate)
                    self._candidate = None
            if self._lost_at is not None:
                yield self._answers(link, now)
            self._forget_refusals()

    def _old_said(self, link: _Link, answer: str, now: float) -> None:
        if answer != "silent":
            link.deadline = None
        elif link.deadline is None:
            link.deadline = now + self._timing.grace

    def _use(self, link: _Link, usable: bool) -> Action:
        link.usable = usable
        return Route(link.generation if usable else None)

    def _answers(self, link: _Link, now: float) -> Action:
        event = self._event("back" if self._was_up else "up", link.generation, now)
        self._was_up = True
        self._lost_at = None
        self._barred.reset()
        self._forget_refusals()
        return event

    def _refused(self, link: _Link, answer: str, now: float, seen: Mapping[int, Seen]) -> Iterator[Action]:
        look = seen[link.generation]
        if now >= self._refused_due and look.alive:
            self._refused_due = now + self._refusals.delay()
            if answer == "stranger":
                yield self._event("stranger", link.generation, now, STRANGER)
            else:
                yield self._event("refused", link.generation, now, _last_line(look.words))

    def _forget_refusals(self) -> None:
        self._refused_due = 0.0
        self._refusals.reset()

    def _event(self, kind: Kind, generation: int, now: float, reason: str = "", barred: bool = False) -> TunnelEvent:
        downtime = now - self._lost_at if self._lost_at is not None else 0.0
        return TunnelEvent(kind, generation, reason, downtime, barred)


def _last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]
