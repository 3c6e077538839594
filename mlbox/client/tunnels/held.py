"""A link together with its probing and the connections that run over it."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlbox.client.tunnels.events import Timing
from mlbox.client.tunnels.link import Link
from mlbox.client.tunnels.probe import Probe, Prober
from mlbox.client.tunnels.succession import Seen, What
from mlbox.splice import Splices


class Held:
    """`tell(what, detail)` hears ("ended", "") and ("probe", answer)."""

    def __init__(
        self,
        generation: int,
        link: Link,
        probe: Probe,
        service: str,
        timing: Timing,
        tell: Callable[[What, str], None],
    ) -> None:
        self.generation = generation
        self.link = link
        self.splices = Splices()
        self._tell = tell
        self._fresh, self._slept = timing.probe_every + timing.probe_timeout, timing.slept
        self._heard: tuple[float, float] | None = None
        self._looked = _clocks()
        self._prober = Prober(
            link, link.path(service), probe, timing.probe_timeout, timing.probe_every, self._heed_sleep, self._on_answer
        )

    def start(self) -> None:
        """May raise MlboxError or OSError, from the link."""
        self.link.start(lambda: self._tell("ended", ""))
        self._prober.start()

    def close(self) -> None:
        """End the process and the probing. Connections see the end of their data by themselves."""
        self._prober.stop()
        self.link.close()

    def hurry(self) -> None:
        """Probe it now."""
        self._prober.hurry()

    def stale(self) -> bool:
        """Whether it answered, and that for longer than its probe waits has not been heard again: this machine slept.
        What the link is now is not known yet, and what would go there may be lost with it."""
        heard = self._heard
        return heard is not None and _longest(heard, _clocks()) > self._fresh

    def _heed_sleep(self) -> None:
        """Where this machine slept since this was looked at, pages are told at once that their connections broke. Until
        they know they lose what is typed, in a link that may be dead; then they keep it for the next one."""
        now = _clocks()
        if _longest(self._looked, now) > self._slept:
            self.splices.cut_pages()
        self._looked = now

    def _on_answer(self, answer: str) -> None:
        self._heed_sleep()  # before that is routed here which is to stay
        if answer == "answered":
            self._heard = self._looked
        elif answer == "refused":  # it is asked ever more rarely then, and who comes is to hear the host's no at once
            self._heard = None
        self._tell("probe", answer)

    def probing(self) -> bool:
        return self._prober.running()

    def join(self) -> None:
        """Wait for the last probe, at most for its timeout."""
        self._prober.join()

    def seen(self) -> Seen:
        return Seen(self.splices.idle(), self.link.alive(), self.link.stderr())


def _longest(since: tuple[float, float], now: tuple[float, float]) -> float:
    return max(after - before for before, after in zip(since, now))


def _clocks() -> tuple[float, float]:
    """(s) The first stands still while a laptop sleeps; the second may be set."""
    return time.monotonic(), time.time()
