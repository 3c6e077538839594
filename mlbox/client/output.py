"""Words on the terminal: facts on stdout, everything else on stderr."""

from __future__ import annotations

import itertools
import json
import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from mlbox.core import text

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def _plain() -> bool:
    return not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb"


def style(words: str, *codes: int, stream: Any = None) -> str:
    """Words in colour where a terminal shows them, and NO_COLOR does not forbid it."""
    target = stream or sys.stdout
    if not target.isatty() or os.environ.get("NO_COLOR"):
        return words
    return f"\033[{';'.join(map(str, codes))}m{words}\033[0m"


def bold(words: str) -> str:
    return style(words, 1)


def dim(words: str) -> str:
    return style(words, 2)


def note(message: str) -> None:
    print(text.safe(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    print(style("! ", 33, stream=sys.stderr) + text.safe(message), file=sys.stderr, flush=True)


def failure(message: str, hint: str) -> None:
    lines = text.safe(message).split("\n")
    print(style("mlbox: ", 31, stream=sys.stderr) + "\n".join(lines), file=sys.stderr)
    if hint:
        print(
            style("       try: ", 36, stream=sys.stderr) + text.safe(hint).replace("\n", "\n            "),
            file=sys.stderr,
        )


def facts(document: Any) -> None:
    """--json."""
    print(json.dumps(document, indent=2, sort_keys=True), flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; other people's text made harmless. On a terminal a last cell that is too
    long goes on below itself; on a pipe a row stays a line."""
    cells = [[text.safe(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    print(dim("  ".join(name.ljust(width) for name, width in zip(head, widths)).rstrip()))
    columns = _columns(sys.stdout) if sys.stdout.isatty() else 0
    for row in cells:
        print(_row(row, widths, columns).rstrip())


_NARROW = 24  # columns: a last cell that has less goes below the row


def _row(row: Sequence[str], widths: Sequence[int], columns: int) -> str:
    """`columns`: of the terminal, 0 for no end."""
    line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    if not columns or len(line) <= columns:
        return line
    before = "  ".join(cell.ljust(width) for cell, width in zip(row[:-1], widths))
    below = columns - len(before) - 2 < _NARROW
    indent = 4 if below else len(before) + 2
    last = textwrap.wrap(row[-1], max(_NARROW, columns - indent)) or [""]
    return (before.rstrip() + "\n" + " " * indent if below else before + "  ") + f"\n{' ' * indent}".join(last)


class Progress:
    """One line that says what is waited for and for how long; on a pipe, a line for each change."""

    def __init__(self) -> None:
        self._text, self._detail, self._since = "", "", time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if not _plain():
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._erase()

    def say(self, words: str, detail: str = "") -> None:
        words = text.safe(words).replace("\n", " ")
        with self._lock:
            changed, self._text = words != self._text, words
            self._detail = text.safe(detail).replace("\n", " ")
            if changed:
                self._since = time.monotonic()
        if changed and self._thread is None:
            print(f"  {words}", file=sys.stderr, flush=True)

    def keep(self, words: str) -> None:
        """A line that stays."""
        with self._lock:
            if self._thread is not None:
                self._erase()
            print(f"  {text.safe(words)}", file=sys.stderr, flush=True)

    def _spin(self) -> None:
        for frame in itertools.cycle(_SPINNER):
            with self._lock:
                waited = int(time.monotonic() - self._since)
                tail = f" · {text.duration(waited)}" if waited >= 2 else ""
                line = f"  {frame} {self._text}{tail}" + (f": {self._detail}" if self._detail else "")
                width = _columns(sys.stderr)
                print("\r\033[K" + line[: width - 1], end="", file=sys.stderr, flush=True)
            if self._stop.wait(0.1):
                return

    def _erase(self) -> None:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _columns(stream: Any) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def may_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str, answers: Sequence[str], default: str) -> str:
    """One of `answers`, by its first letter; asks again on anything else. Only where `may_ask()`."""
    while True:
        print(question, end=" ", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise KeyboardInterrupt
        given = line.strip().lower() or default
        for answer in answers:
            if given in (answer, answer[0]):
                return answer
        note("  one of: " + ", ".join(answers))
