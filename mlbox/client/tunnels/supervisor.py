"""Keeps a working link to a session for as long as the session lives.

One thread decides; it sleeps on a queue of what the others report (a process that ended, a probe's answer,
the user's `r`) and on the next time that something is due. It alone starts and closes links.
  candidate  the one that is coming up; never two
  current    the newest that has answered: new connections go there while it answers
  old        what was current; its connections live on while it answers, or answers again within the grace
A link that falls silent is not killed: TCP may heal it, and with it every open tab. A second one is started.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from mlbox.client.tunnels.events import Backoff, Kind, OnEvent, Timing, TunnelEvent
from mlbox.client.tunnels.held import Held
from mlbox.client.tunnels.link import Link
from mlbox.client.tunnels.probe import Probe, ping
from mlbox.errors import MlboxError

LinkFactory = Callable[[int], Link]
"""Makes the link of a generation (1, 2, ...). May raise MlboxError or OSError: a failed attempt."""

STRANGER = "something else answers in the session's place"
# In ssh's last words, for after "Load key …: Permission denied" it goes on.
_LAST_WORDS = 4  # lines: a disconnection adds one, and one at a jump host two more
_BARRED = ("permission denied (", "host key verification failed", "too many authentication failures")


class Supervisor:
    """See the module. `service` is the one that the probe is asked through."""

    def __init__(
        self,
        factory: LinkFactory,
        on_event: OnEvent,
        probe: Probe = ping,
        service: str = "guest",
        timing: Timing = Timing(),  # noqa: B008 (frozen)
    ) -> None:
        self._factory = factory
        self._on_event = on_event
        self._probe = probe
        self._service = service
        self._timing = timing
        self._backoff = Backoff(timing.backoff_first, timing.backoff_last)
        self._barred = Backoff(timing.barred_first, timing.barred_last)
        self._refusals = Backoff(timing.refused_first, timing.refused_last)
        self._inbox: queue.Queue[tuple[str, int, str]] = queue.Queue()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tunnel-supervisor", daemon=True)
        self._stopping = False
        self._reason = ""
        # Below: the thread's own, except _current, which is read under _changed.
        self._links: dict[int, Held] = {}
        self._leaving: list[Held] = []  # closed, but a probe may be under way
        self._current: Held | None = None
        self._candidate: Held | None = None
        self._retry_at: float | None = None
        self._lost_at: float | None = None
        self._refused_due = 0.0
        self._generation = 0
        self._was_up = False

    # For the other threads

    def start(self) -> None:
        self._retry_at = time.monotonic()
        self._thread.start()

    def current(self, timeout: float) -> Held | None:
        """The link for a new connection, once one answers; None after `timeout` seconds or close()."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._usable(), timeout)
            return self._current if not self._stopping and self._usable() else None

    def pause(self, seconds: float) -> None:
        """Sleep until something changes, at most that long."""
        with self._changed:
            self._changed.wait(seconds)

    def reconnect(self) -> None:
        """A new link now. What runs over the current one goes on while that one answers."""
        self._inbox.put(("reconnect", 0, ""))

    def hurry(self) -> None:
        """Whoever is asked ever less often, for it was not there, is asked now."""
        self._inbox.put(("hurry", 0, ""))

    def drained(self, generation: int) -> None:
        """A connection over that link has ended."""
        self._inbox.put(("drained", generation, ""))

    def close(self, reason: str = "") -> None:
        """End every link; the last event is "closed". Waits, unless called from on_event."""
        with self._changed:
            self._stopping = True
            self._reason = self._reason or reason
            self._changed.notify_all()
        self._inbox.put(("stop", 0, ""))
        if threading.current_thread() is self._thread:
            self._drop_all()
        elif self._thread.ident is not None:
            self._thread.join()

    # The thread

    def _run(self) -> None:
        while not self._stopping:
            self._due(time.monotonic())
            try:
                what, generation, detail = self._inbox.get(timeout=self._patience(time.monotonic()))
            except queue.Empty:
                continue
            self._take(what, generation, detail, time.monotonic())
        self._drop_all()
        for held in self._leaving:
            held.join()
        self._emit("closed", self._generation, self._reason)

    def _take(self, what: str, generation: int, detail: str, now: float) -> None:
        held = self._links.get(generation)
        if what == "reconnect":
            if self._candidate is None:
                self._retry_at = now
            else:
                self._candidate.hurry()
        elif what == "hurry":
            for one in (self._current, self._candidate):
                if one is not None:
                    one.hurry()
        elif held is None:
            return
        elif what == "ended":
            self._ended(held, now)
        elif what == "drained":
            if held not in (self._current, self._candidate) and held.idle():
                self._drop(held)
        elif held is self._candidate:
            self._candidate_said(held, detail, now)
        elif held is self._current:
            self._current_said(held, detail, now)
        else:
            self._old_said(held, detail, now)

    def _due(self, now: float) -> None:
        """Do what the clock asks for."""
        for held in [held for held in self._links.values() if held.deadline is not None]:
            if held.deadline is not None and held.deadline <= now:
                self._drop(held)
                if held is self._candidate:
                    self._candidate = None
                    self._failed(held.generation, held.link.stderr() or "no answer", now)
        if self._retry_at is not None and self._retry_at <= now and self._candidate is None:
            if self._stopping:  # by on_event, a moment ago
                return
            self._retry_at = None
            self._start(now)

    def _patience(self, now: float) -> float | None:
        times = [held.deadline for held in self._links.values() if held.deadline is not None]
        if self._retry_at is not None:
            times.append(self._retry_at)
        return max(0.0, min(times) - now) if times else None

    # A link's life

    def _start(self, now: float) -> None:
        self._generation += 1
        number = self._generation
        try:
            link = self._factory(number)
            held = Held(
                number,
                link,
                self._probe,
                self._service,
                self._timing,
                lambda what, detail: self._inbox.put((what, number, detail)),
            )
            limit = self._timing.start_limit if self._was_up else self._timing.first_start_limit
            held.deadline = now + limit
            self._links[number] = self._candidate = held
            held.start()
        except (MlboxError, OSError) as error:
            broken = self._links.pop(number, None)
            self._candidate = None
            if broken is not None:
                self._close(broken)
            self._failed(number, str(error), now)

    def _failed(self, generation: int, reason: str, now: float) -> None:
        """An attempt to start failed."""
        last = _last_line(reason)
        said = "\n".join(reason.lower().splitlines()[-_LAST_WORDS:])
        barred = any(sign in said for sign in _BARRED)
        self._retry_at = now + (self._barred if barred else self._backoff).delay()
        self._emit("retrying", generation, last, self._downtime(now), barred)

    def _ended(self, held: Held, now: float) -> None:
        """Its process has gone. Connections over it end by themselves once what arrived is delivered."""
        del self._links[held.generation]
        reason = held.link.stderr() or "ssh ended"
        if held is self._current:
            self._set_current(None)
            self._lost(held, _last_line(reason), now, now)
        elif held is self._candidate:
            self._candidate = None
            self._failed(held.generation, reason, now)
        self._close(held)

    def _lost(self, held: Held, reason: str, since: float, now: float) -> None:
        if self._lost_at is not None:  # told before, when it fell silent
            if self._candidate is None and self._retry_at is None:
                self._retry_at = now
            return
        self._lost_at = since
        steady = held.up_since is not None and now - held.up_since >= self._timing.steady
        if steady:
            self._backoff.reset()
        if self._candidate is None:
            self._retry_at = now + (0.0 if steady else self._backoff.delay())
        self._emit("lost", held.generation, reason)

    def _drop(self, held: Held) -> None:
        self._links.pop(held.generation, None)
        self._close(held)
        held.cut()

    def _close(self, held: Held) -> None:
        held.close()
        self._leaving = [other for other in self._leaving if other.probing()]
        self._leaving.append(held)

    def _drop_all(self) -> None:
        for held in list(self._links.values()):
            self._drop(held)

    # What a probe said

    def _candidate_said(self, held: Held, answer: str, now: float) -> None:
        if answer in ("refused", "stranger"):
            held.deadline = None  # ssh is up: starting another one would change nothing
            self._refused(held, answer, now)
        elif answer == "silent" and held.deadline is None:
            held.deadline = now + self._timing.start_limit
        if answer != "answered":
            return
        old = self._current
        self._candidate = None
        held.deadline = None
        held.up_since = now
        held.usable = True
        self._set_current(held)
        if old is not None:
            old.deadline = None if old.usable else now + self._timing.grace
            if old.idle():
                self._drop(old)
        self._answers(held, now)

    def _current_said(self, held: Held, answer: str, now: float) -> None:
        if answer == "silent" and held.usable:
            self._set_usable(held, False)
            seconds = self._timing.probe_timeout
            self._lost(held, f"no answer for {seconds:g} s", now - seconds, now)
        elif answer == "stranger" and held.usable:
            self._set_usable(held, False)
            self._lost(held, STRANGER, now, now)
        elif answer == "refused":  # a usable one stays that: it is for the host to say no, at once
            self._refused(held, answer, now)
        elif answer == "answered":
            if not held.usable:
                self._set_usable(held, True)
                self._retry_at = None
                if self._candidate is not None:
                    self._drop(self._candidate)
                    self._candidate = None
            if self._lost_at is not None:
                self._answers(held, now)
            self._forget_refusals()

    def _old_said(self, held: Held, answer: str, now: float) -> None:
        if answer != "silent":
            held.deadline = None
        elif held.deadline is None:
            held.deadline = now + self._timing.grace

    def _answers(self, held: Held, now: float) -> None:
        kind: Kind = "back" if self._was_up else "up"
        self._was_up = True
        self._barred.reset()
        self._emit(kind, held.generation, "", self._downtime(now))
        self._lost_at = None
        self._forget_refusals()

    def _refused(self, held: Held, answer: str, now: float) -> None:
        if now >= self._refused_due and held.link.alive():
            self._refused_due = now + self._refusals.delay()
            kind: Kind = "stranger" if answer == "stranger" else "refused"
            reason = STRANGER if kind == "stranger" else _last_line(held.link.stderr())
            self._emit(kind, held.generation, reason, self._downtime(now))

    def _forget_refusals(self) -> None:
        self._refused_due = 0.0
        self._refusals.reset()

    # Small things

    def _usable(self) -> bool:
        return self._current is not None and self._current.usable

    def _set_current(self, held: Held | None) -> None:
        with self._changed:
            self._current = held
            self._changed.notify_all()

    def _set_usable(self, held: Held, usable: bool) -> None:
        with self._changed:
            held.usable = usable
            self._changed.notify_all()

    def _downtime(self, now: float) -> float:
        return now - self._lost_at if self._lost_at is not None else 0.0

    def _emit(self, kind: Kind, generation: int, reason: str = "", downtime: float = 0.0, barred: bool = False) -> None:
        try:
            self._on_event(TunnelEvent(kind, generation, reason, downtime, barred))
        except Exception:  # the caller's bug must not take the tunnel down
            logging.getLogger(__name__).exception("on_event failed")


def _last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]
