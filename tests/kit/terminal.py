"""A person at a terminal: a command in a pseudo-terminal, what it printed, and what is typed at it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from labbox import PYZ, START, Laptop

_PATIENCE = 60.0  # s
_ROWS, _COLUMNS = 50, 200
_SPINNER = re.compile(r"^ *[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] ")
# Colours, cursor movements, window titles; and the beginning of one of these that is not complete yet.
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>]")
_TORN = re.compile(r"(?:\r|\x1b(?:\[[0-9;?]*[ -/]*|\][^\x07\x1b]*\x1b?)?)\Z")


class Terminal:
    """One command, in a session of its own whose controlling terminal this is; from `with` to its end.

    `text`: all that it showed, typed words included, without escapes. `wait_for` looks only at what came after
    the last match, so that words which were there before are not taken for an answer.
    """

    def __init__(self, argv: Sequence[str], env: dict[str, str]) -> None:
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            argv, env={**env, "TERM": "xterm-256color"}, stdin=inner, stdout=inner, stderr=inner,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inner)
        self.text, self._seen = "", 0
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        os.close(self._fd)

    def _read(self) -> None:
        decoder, rest = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
        while True:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                data = b""
            rest += decoder.decode(data, final=not data)
            torn = _TORN.search(rest) if data else None
            whole, rest = (rest[: torn.start()], rest[torn.start() :]) if torn else (rest, "")
            shown = _ESCAPE.sub("", whole).replace("\r\n", "\n").replace("\r", "\n")
            with self._came:
                self.text += shown
                self._came.notify_all()
            if not data:
                return

    # ---- at the keys ---------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\r")

    def interrupt(self) -> None:
        """^C: the terminal sends SIGINT to all of the foreground process group."""
        os.write(self._fd, b"\x03")

    def end_input(self) -> None:
        """^D at the beginning of a line."""
        os.write(self._fd, b"\x04")

    # ---- at the screen -------------------------------------------------------------------------------

    def wait_for(self, pattern: str, timeout: float = _PATIENCE) -> re.Match[str]:
        """The first match (^ and $ are a line's) in what came since the last one; fails when there is none."""
        sought = re.compile(pattern, re.MULTILINE)
        with self._came:
            self._came.wait_for(
                lambda: sought.search(self.text, self._seen) or not self._reader.is_alive(), timeout=timeout
            )
        self._reader.join(0 if self.process.poll() is None else 1)
        match = sought.search(self.text, self._seen)
        assert match is not None, f"never came: {pattern!r}\n{self.transcript()}"
        self._seen = match.end()
        return match

    def block(self) -> dict[str, str]:
        """Of a session's block: name, id, and SSH's port."""
        first = self.wait_for(r"session is running:\s+(\S+)\s+\(job (\w+)\)", START)
        port = self.wait_for(r"^SSH: .*(?:-p |\(port )(\d+)")
        return {"name": first[1], "id": first[2], "port": port[1]}

    def end(self, timeout: float = _PATIENCE) -> int:
        """Its exit code, once it has ended by itself; fails when it does not."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end\n{self.transcript()}") from None
        self._reader.join(10)
        return code

    def transcript(self) -> str:
        """What it showed, without the spinner's repetitions."""
        kept: list[str] = []
        for line in self.text.split("\n"):
            plain = _SPINNER.sub("  … ", line).rstrip()
            if plain and plain not in kept[-1:]:
                kept.append(plain)
        return "\n".join(kept)


def at_terminal(laptop: Laptop, *arguments: str, **env: str) -> Terminal:
    """`mlbox …` as a person types it on that laptop."""
    return Terminal([laptop.python, str(PYZ), *arguments], {**laptop.env, **env})
