"""The caller of a session that starts, as its keeper sees it: it hears of the progress; its end undoes everything."""

from __future__ import annotations

import json
import os
import selectors
from typing import Any

from mlbox.host.run import Cancel

Json = dict[str, Any]


class Caller:
    """`out` is written to, `presence` reaches its end with the caller's (-1: nobody listens, nobody has to be there);
    `stop` becomes readable when the session is told to stop."""

    def __init__(self, out: int, presence: int, stop: int) -> None:
        self._out, self._presence, self._stop = out, presence, stop

    @property
    def cancel(self) -> Cancel:
        """Of the start: told to stop, or the caller is gone."""
        return Cancel(tuple(d for d in (self._stop, self._presence) if d >= 0))

    def say(self, text: str, detail: str = "") -> None:
        self.send({"progress": {"text": text, "detail": detail}})

    def send(self, message: Json) -> None:
        """A caller that reads nothing (a stalled connection) must not keep SIGTERM from being heard."""
        if self._out < 0:
            return
        os.set_blocking(self._out, False)
        data = json.dumps(message).encode() + b"\n"
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                if not self._await_room():
                    return
            except OSError:
                self._out = -1  # the caller has gone; before `started`, the other pipe tells us so too
                return

    def _await_room(self) -> bool:
        """Until the caller has read something; False when the session is told to stop meanwhile."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_WRITE)
            for descriptor in self.cancel.descriptors:
                selector.register(descriptor, selectors.EVENT_READ)
            return self._out in {key.fd for key, _ in selector.select()}

    def let_go(self) -> None:
        """From `started` on nobody's absence ends the session."""
        for descriptor in (self._out, self._presence):
            if descriptor >= 0:
                os.close(descriptor)
        self._out = self._presence = -1
