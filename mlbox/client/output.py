"""Words on the terminal: facts on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from mlbox import errors
from mlbox.core import text

_SOON = 0.5  # s; what is answered by then needs no word
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def _plain(stream: Any) -> bool:
    """No terminal, or one that knows no escapes."""
    return not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb"


def style(words: str, *codes: int, stream: Any = None) -> str:
    """Words in colour where a terminal shows them, and NO_COLOR does not forbid it."""
    target = stream or sys.stdout
    if _plain(target) or os.environ.get("NO_COLOR"):
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


def facts(document: Any, dry: bool = False) -> None:
    """--json. `dry`: nothing of it was done, which each of its objects says."""
    if dry:
        document = [*map(_dry, document)] if isinstance(document, list) else _dry(document)
    print(json.dumps(document, indent=2, sort_keys=True), flush=True)


def _dry(document: Any) -> Any:
    return {**document, "dry_run": True}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; other people's text made harmless. On a terminal a last cell that is too
    long goes on below itself; on a pipe a row stays a line."""
    cells = [[text.safe(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    columns = _columns(sys.stdout) if sys.stdout.isatty() else 0
    print(dim(_head(head, widths, columns)))
    for row in cells:
        print(_row(row, widths, columns).rstrip())


_NARROW = 24  # columns: a last cell that has less goes below the row


def _head(head: Sequence[str], widths: Sequence[int], columns: int) -> str:
    """Without the last name where there is no room for it: its cells stand below their rows then."""
    line = _row(head, widths, 0)
    return line if not columns or len(line) <= columns else _row(head[:-1], widths, 0)


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
    """One line that says what is waited for and for how long; on a pipe, a line for each change (`brief`: none).

    Within another's it says nothing: who waits for more says it better."""

    _shown: ClassVar[Progress | None] = None

    def __init__(self, brief: str = "") -> None:
        self._text, self._detail, self._since = brief, "", time.monotonic()
        self._brief = bool(brief)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._still, self._drawn = 0, False

    def __enter__(self) -> Progress:
        if not _plain(sys.stderr) and Progress._shown is None:
            Progress._shown = self
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            Progress._shown = None
            if self._drawn:
                self._erase()

    def say(self, words: str, detail: str = "") -> None:
        words = text.safe(words).replace("\n", " ")
        with self._lock:
            changed, self._text = words != self._text, words
            self._detail = text.safe(detail).replace("\n", " ")
            if changed:
                self._since = time.monotonic()
        if changed and self._thread is None and not self._brief:
            print(f"  {words}", file=sys.stderr, flush=True)

    def keep(self, words: str) -> None:
        """A line that stays."""
        with self._lock:
            if self._thread is not None:
                self._erase()
            print(f"  {text.safe(words)}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """The line stands, and what another program asks at the terminal is written over it."""
        with self._lock:
            self._still += 1
            self._draw(" ", end="\r")
        try:
            yield
        finally:
            with self._lock:
                self._still -= 1

    def _spin(self) -> None:
        if self._brief and self._stop.wait(_SOON):
            return
        for frame in itertools.cycle(_SPINNER):
            with self._lock:
                if not self._still:
                    self._draw(frame)
            if self._stop.wait(0.1):
                return

    def _draw(self, frame: str, end: str = "") -> None:
        self._drawn = True
        waited = int(time.monotonic() - self._since)
        tail = f" · {text.duration(waited)}" if waited >= 2 else ""
        line = f"  {frame} {self._text}{tail}" + (f": {self._detail}" if self._detail else "")
        print("\r\033[K" + line[: _columns(sys.stderr) - 1], end=end, file=sys.stderr, flush=True)

    def _erase(self) -> None:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def still() -> contextlib.AbstractContextManager[None]:
    """For as long as another program may ask at the terminal."""
    return Progress._shown.still() if Progress._shown is not None else contextlib.nullcontext()


def _columns(stream: Any) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def is_screen() -> bool:
    """Whether a terminal hears keys and shows what is drawn on it."""
    return sys.stdin.isatty() and not _plain(sys.stdout)


def may_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, yes: bool, without: str) -> None:
    """Go on only where the person agrees; `yes`: has already. Raises KeyboardInterrupt where not; where nobody can
    be asked, Usage (`without`: what would be done without that)."""
    if yes:
        return
    if not may_ask():
        raise errors.Usage(without, "-y, if you agree, or --dry-run to see what it would do")
    if ask(f"{question} [y]es, [n]o? [n]", ("yes", "no"), "no") == "no":
        raise KeyboardInterrupt


def aside(show: Callable[..., None], *what: Any) -> None:
    """What is shown for a question, not as the command's facts."""
    with contextlib.redirect_stdout(sys.stderr):
        show(*what)


def ask(question: str, answers: Sequence[str], default: str) -> str:
    """One of `answers`, by its first letter; asks again on anything else. Only where `may_ask()`."""
    from mlbox.client.wake import read_line  # few commands ask

    while True:
        line = ""
        try:
            print(question, end=" ", file=sys.stderr, flush=True)
            line = read_line(sys.stdin.fileno())
        finally:
            if not line:  # ^C, ^D: what is said next begins a line of its own
                print(file=sys.stderr, flush=True)
        if not line:
            raise KeyboardInterrupt
        given = line.strip().lower() or default
        for answer in answers:
            if given in (answer, answer[0]):
                return answer
        note("  one of: " + ", ".join(answers))
