"""A host that let us in, and then says nothing at all: who waits is told for what, and does not wait for ever.

The host part begins with a word, and says from then on itself what hangs (host/watchdog.py). Before, nothing of ours
runs there: a login's files and the host part are in the home folder, and a call into a hung one returns when it does.
"""

from __future__ import annotations

import threading
from typing import Callable

from mlbox import errors

TOLD, GIVEN_UP = 15.0, 60.0  # s


class Silence:
    """Of `host` until `heard`; `tell` is called with what to say, and `give_up` to end the wait."""

    def __init__(self, host: str, tell: Callable[[str], None], give_up: Callable[[], None], more: float = 0.0) -> None:
        self._host, self._tell, self._give_up = host, tell, give_up
        self._patience = GIVEN_UP + more
        self._heard = threading.Event()
        self.given_up = False
        threading.Thread(target=self._wait, name="silence", daemon=True).start()

    def heard(self) -> None:
        self._heard.set()

    def _wait(self) -> None:
        if self._heard.wait(TOLD):
            return
        self._tell(f"waiting for a first word of {self._host}: does your home folder there hang?")
        if not self._heard.wait(self._patience - TOLD):
            self.given_up = True
            self._give_up()

    def error(self) -> errors.MlboxError:
        return errors.HostUnready(
            f"{self._host} has not said a word for {self._patience:.0f} s: your home there hangs, or it is too busy",
            f"does `ssh {self._host} ls .cache` come back? what was asked for may be done when it answers again",
        )
