"""Keeps a working link to a session for as long as the session lives.

One thread acts; it sleeps on a queue of what the others report (a process that ended, a probe's answer, the user's
`r`) and on the next time that something is due. It alone starts and closes links, as succession.py decides.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

from mlbox.client.tunnels.events import OnEvent, Timing, TunnelEvent
from mlbox.client.tunnels.held import Held
from mlbox.client.tunnels.link import Link
from mlbox.client.tunnels.probe import Probe, ping
from mlbox.client.tunnels.succession import Action, End, Hurry, Route, Seen, Start, Succession, What
from mlbox.errors import MlboxError

LinkFactory = Callable[[int], Link]
"""Makes the link of a generation (1, 2, ...). May raise MlboxError or OSError: a failed attempt."""


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
        self._inbox: queue.Queue[tuple[What, int, str]] = queue.Queue()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tunnel-supervisor", daemon=True)
        self._stopping = False
        self._reason = ""
        self._open: Held | None = None  # where new connections go; under _changed
        self._elsewhere = 0  # how many words are under way that no link leads there any more; under _changed
        # Below: the thread's own.
        self._succession = Succession(timing)
        self._links: dict[int, Held] = {}
        self._leaving: list[Held] = []  # closed, but a probe may be under way

    # For the other threads

    def start(self) -> None:
        self.reconnect()
        self._thread.start()

    def current(self, timeout: float) -> Held | None:
        """The link for a new connection, once one answers; None after `timeout` seconds or close(). After a sleep the
        one that answered before it is asked first."""
        with self._changed:
            if self._open is not None and self._open.stale():
                self.hurry()
            in_time = self._changed.wait_for(lambda: self._stopping or self._answers(), timeout)
            return self._open if in_time and not self._stopping else None

    def _answers(self) -> bool:
        return self._open is not None and not self._open.stale()

    def pause(self, seconds: float) -> None:
        """Sleep until something changes, at most that long."""
        with self._changed:
            self._changed.wait(seconds)

    def reconnect(self) -> None:
        """A new link now. What runs over the current one goes on while that one answers."""
        self._inbox.put(("reconnect", 0, ""))

    def hurry(self) -> None:
        """Who is asked now and then, or ever less often, for it was not there, is asked now."""
        self._inbox.put(("hurry", 0, ""))

    def anew(self, reason: str) -> None:
        """The session is another one, or elsewhere: all links and their connections end, and the factory's next one
        leads there. From now on nothing new goes where it was."""
        with self._changed:
            self._open, self._elsewhere = None, self._elsewhere + 1
        self._inbox.put(("anew", 0, reason))

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
            self._end_all()
        elif self._thread.ident is not None:
            self._thread.join()

    # The thread

    def _run(self) -> None:
        while not self._stopping:
            self._act(self._succession.tick(time.monotonic(), self._seen()))
            due = self._succession.due()
            try:
                what, generation, detail = self._inbox.get(
                    timeout=None if due is None else max(0.0, due - time.monotonic())
                )
            except queue.Empty:
                continue
            self._tell(what, generation, detail)
        self._end_all()
        for held in self._leaving:
            held.join()
        self._emit(TunnelEvent("closed", self._succession.generation, self._reason))

    def _seen(self) -> dict[int, Seen]:
        return {generation: held.seen() for generation, held in self._links.items()}

    def _tell(self, what: What, generation: int, detail: str) -> None:
        if what == "anew":
            with self._changed:
                self._elsewhere -= 1
        self._act(self._succession.take(what, generation, detail, time.monotonic(), self._seen()))
        if what == "probe":  # after a sleep some wait for just that
            with self._changed:
                self._changed.notify_all()

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, TunnelEvent):
                self._emit(action)
            elif self._stopping:  # by on_event, a moment ago
                return
            elif isinstance(action, Start):
                self._start(action.generation)
            elif isinstance(action, End):
                self._end(action.generation, action.cut)
            elif isinstance(action, Route):
                self._route(action.generation)
            elif isinstance(action, Hurry):
                self._links[action.generation].hurry()

    def _start(self, number: int) -> None:
        try:
            link = self._factory(number)
            held = self._links[number] = Held(
                number,
                link,
                self._probe,
                self._service,
                self._timing,
                lambda what, detail: self._inbox.put((what, number, detail)),
            )
            held.start()
        except (MlboxError, OSError) as error:
            self._end(number, cut=False)
            self._tell("failed", number, str(error))

    def _end(self, generation: int, cut: bool) -> None:
        held = self._links.pop(generation, None)
        if held is None:
            return
        held.close()
        self._leaving = [other for other in self._leaving if other.probing()]
        self._leaving.append(held)
        if cut:
            held.splices.cut()

    def _end_all(self) -> None:
        for generation in list(self._links):
            self._end(generation, cut=True)

    def _route(self, generation: int | None) -> None:
        with self._changed:
            self._open = None if generation is None or self._elsewhere else self._links[generation]
            self._changed.notify_all()

    def _emit(self, event: TunnelEvent) -> None:
        try:
            self._on_event(event)
        except Exception:  # the caller's bug must not take the tunnel down
            logging.getLogger(__name__).exception("on_event failed")
