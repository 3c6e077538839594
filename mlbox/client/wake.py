"""A select() for which no signal is too early.

Python heeds a signal between two of its instructions. One that comes after the last of them, just before the thread
sleeps in select() or read(), is heeded once that returns, which may be never: on a busy machine so went one ^C in a
hundred that came right behind a prompt. A signal's number is written to this descriptor whatever Python is at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TextIO


class Wake:
    """`descriptor` is readable once a signal that is handled has come, or wake() was called. For the main thread."""

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe()
        for end in (self.descriptor, self._write):
            os.set_blocking(end, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def wake(self) -> None:
        """From any thread, and from a signal's handler."""
        with contextlib.suppress(BlockingIOError):  # it is awake
            os.write(self._write, b"\0")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, 512):
                pass

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self.descriptor)
        os.close(self._write)


def await_line(stream: TextIO) -> None:
    """Until a line can be read from this terminal. Raises what a signal's handler does, ^C's KeyboardInterrupt."""
    wake = Wake()
    try:
        while stream.fileno() not in select.select([stream.fileno(), wake.descriptor], [], [])[0]:
            wake.drain()
    finally:
        wake.close()
