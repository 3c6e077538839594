"""The whole terminal for one text that changes: shown on its other screen, scrolled by keys, put back at the end."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterable
from types import FrameType, TracebackType

# The other screen, without a cursor, and with lines that end at its edge; and back.
_ENTER, _LEAVE = "\033[?1049h\033[?25l\033[?7l", "\033[?7h\033[?25h\033[?1049l"
_HOME, _REST_OF_LINE, _REST = "\033[H", "\033[K", "\033[J"
# What keys send -> how many lines on; a page is as many as are shown.
_LINES = {b"j": 1, b"k": -1, b"\033[B": 1, b"\033[A": -1, b"\033OB": 1, b"\033OA": -1}
_PAGES = {b" ": 1, b"\033[6~": 1, b"b": -1, b"\033[5~": -1}
_ENDS = {b"g": False, b"\033[H": False, b"G": True, b"\033[F": True}
_NEW = b"n"  # no signal's number
_QUIT = (b"q", b"Q", b"\x04")
_KEY = re.compile(rb"\033\[[0-9;]*[A-Za-z~]|\033O[A-Z]|.", re.DOTALL)


class Shown(io.StringIO):
    """What is printed to it is for a terminal: with its colours and as wide."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.__stdout__.fileno() if sys.__stdout__ is not None else 1


class Screen:
    """`with` has the terminal. Assumes that stdin and stdout are one."""

    def __init__(self) -> None:
        self._head, self._lines, self._from = "", list[str](), 0
        self._changed, self._wake = os.pipe()
        ends = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), self._on_end)
        self._signals = {signal.SIGWINCH: self._on_resize, signal.SIGTSTP: self._on_stop, **ends}
        self._stderr = -1
        self._failure: Exception | None = None

    def __enter__(self) -> Screen:
        os.set_blocking(self._wake, False)
        # A signal that comes just before select() would else be heeded after it.
        self._wakes = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, act) for number, act in self._signals.items()}
        self._take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, act in self._before.items():
            signal.signal(number, act)
        signal.set_wakeup_fd(self._wakes)
        self._give_back()
        os.close(self._changed)
        os.close(self._wake)

    def show(self, head: str, lines: Iterable[str]) -> None:
        """`head` stays where it is, the lines are scrolled."""
        self._head, self._lines = head, list(lines)
        self._draw()

    def wait(self) -> bool:
        """Heed the keys until there is something new to show; False once its user has quit. Raises what fail() got."""
        while True:
            ready, _, _ = select.select([0, self._changed], [], [])
            if 0 in ready and not self._heed(os.read(0, 4096)):
                return False
            if self._changed in ready and _NEW in os.read(self._changed, 64):
                if self._failure is not None:
                    raise self._failure
                return True
            self._draw()

    def wake(self) -> None:
        """There is something new to show. From any thread."""
        with contextlib.suppress(OSError):
            os.write(self._wake, _NEW)

    def fail(self, error: Exception) -> None:
        """There will be nothing new any more. From any thread."""
        self._failure = error
        self.wake()

    def _heed(self, typed: bytes) -> bool:
        """Several keys, where they were faster than we. False to quit, at the end of input too."""
        page = max(1, self._rows() - 1)
        for key in _KEY.findall(typed):
            if key in _QUIT:
                return False
            if key in _ENDS:
                self._from = len(self._lines) if _ENDS[key] else 0
            else:
                self._from += _LINES.get(key, 0) + page * _PAGES.get(key, 0)
            self._limit()
        return bool(typed)

    def _draw(self) -> None:
        self._limit()
        shown = self._lines[self._from : self._from + max(1, self._rows() - 1)]
        below = len(self._lines) - self._from - len(shown)
        head = f"{self._head} · {below} lines more: ↓" if below else self._head
        text = "\n".join(line + "\033[0m" + _REST_OF_LINE for line in (head, *shown))
        _put(_HOME + text + _REST)

    def _limit(self) -> None:
        self._from = max(0, min(self._from, len(self._lines) - max(1, self._rows() - 1)))

    @staticmethod
    def _rows() -> int:
        return os.get_terminal_size(1).lines or 24

    # ---- the terminal, which others have before, after and while we are stopped -----------------------

    def _take(self) -> None:
        self._mode = termios.tcgetattr(0)
        tty.setcbreak(0)
        # What others say, and what ssh would ask, is not for this screen.
        self._stderr = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        _put(_ENTER)

    def _give_back(self) -> None:
        _put(_LEAVE)
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        termios.tcsetattr(0, termios.TCSADRAIN, self._mode)

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        """wait() draws anew, woken by it."""

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    @staticmethod
    def _on_end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)


def _put(text: str) -> None:
    """Not by way of sys.stdout, in which a signal's handler can't write while it is written."""
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]
