"""Running other programs: output line by line, and an end when the caller loses interest."""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
import signal
import struct
import subprocess
import termios
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from mlbox import errors

KEPT_LINES = 200
NO_ANSWER = 124
_PATIENCE = 2.0  # s between SIGTERM and SIGKILL


class Cancelled(errors.MlboxError):
    """The caller went away, or asked to stop, before the work was done."""

    kind = "cancelled"
    exit_code = 130

    def __init__(self) -> None:
        super().__init__("stopped before the session was ready", "nothing was left behind")


@dataclass(frozen=True)
class Cancel:
    """Descriptors that become readable (or reach their end) when the work should stop."""

    descriptors: tuple[int, ...] = ()

    def check(self) -> None:
        if self.wait(0):
            raise Cancelled

    def wait(self, timeout: float | None) -> bool:
        with selectors.DefaultSelector() as selector:
            for descriptor in self.descriptors:
                selector.register(descriptor, selectors.EVENT_READ)
            return bool(self.descriptors) and bool(selector.select(timeout))


class Signals:
    """SIGTERM and SIGCHLD as readable descriptors, so one selector awaits everything."""

    def __init__(self) -> None:
        self.stop_r, self._stop_w = os.pipe()
        self.wake_r, wake_w = os.pipe()
        for descriptor in (self.wake_r, wake_w):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _stop(self, number: int, frame: object) -> None:
        os.write(self._stop_w, b"x")

    def drain(self) -> None:
        try:
            while os.read(self.wake_r, 512):
                pass
        except BlockingIOError:
            pass


@dataclass(frozen=True)
class Result:
    """Of a command that has ended: its exit code, and the last lines of its output."""

    code: int
    lines: tuple[str, ...]

    @property
    def tail(self) -> str:
        return "\n".join(line for line in self.lines[-15:] if line.strip())


def stream(
    argv: Sequence[str], on_line: Callable[[str], None], cancel: Cancel, env: Mapping[str, str] | None = None,
    terminal: bool = False,
) -> Result:  # fmt: skip
    """Run `argv`, handing each line of its output (stderr too) to `on_line`; Cancelled kills it and is raised.

    On a `terminal`: for programs that say how far they are only to a person; its escape sequences are in the lines."""
    out, theirs = _terminal() if terminal else os.pipe()
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
    except OSError:
        os.close(out)
        raise
    finally:
        os.close(theirs)
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    rest = b""
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (out, *cancel.descriptors):
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if ready - {out}:
                    raise Cancelled
                data = _read(out)
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                for line in (*lines, *([rest] if not data and rest else [])):
                    kept.append(line.decode(errors="replace"))
                    on_line(kept[-1])
                if not data:
                    return Result(process.wait(), tuple(kept))
    finally:
        if process.poll() is None:
            _end(process)
        os.close(out)


def _terminal() -> tuple[int, int]:
    """Wide enough that no program shortens its lines."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    return ours, theirs


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError as error:
        if error.errno != errno.EIO:  # how a terminal says that its last program has gone
            raise
        return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    """`docker run` passes SIGTERM on to a container whose first process ignores it; whoever called removes that."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def capture(argv: Sequence[str], timeout: float = 60) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a short command; NO_ANSWER when it took longer than `timeout` seconds."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return NO_ANSWER, "", f"{argv[0]} did not answer within {timeout:.0f} s"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace").strip()
