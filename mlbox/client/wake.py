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
        signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
        os.close(self.descriptor)
        os.close(self._write)


def read_line(terminal: int) -> str:
    """What is typed there, once it is ended; empty at the end of input. Raises what a signal's handler does, ^C's
    KeyboardInterrupt. Without a buffer, in which a second line would be no more for select() to see."""
    wake = Wake()
    try:
        while terminal not in select.select([terminal, wake.descriptor], [], [])[0]:
            wake.drain()
        return os.read(terminal, 4096).decode(errors="replace")
    finally:
        wake.close()
