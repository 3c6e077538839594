"""Every call of a process that touches a file, counted; and at one of them the process's end, or an error.

Installed in a forked child before the work begins. What Python audits (open, mkdir, rename, remove, listdir, chmod,
flock …) is counted by an audit hook, which no caller can get round; what it does not audit (write, fsync, stat, the
opening of a file object, whose writes follow in one piece) by wrappers of `os`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any, Callable

AUDITED = frozenset(
    ["open", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.listdir", "os.scandir",
     "os.chmod", "os.utime", "os.truncate", "fcntl.flock"]
)  # fmt: skip
WRAPPED = ("write", "fsync", "fdopen", "stat", "lstat", "fstat")
ERRORS = (errno.EIO, errno.ENOSPC, errno.ESTALE)


class Calls:
    """Counts from `begin` on, in this process only. At number `at` (from 1): SIGKILL, or the error `code`."""

    def __init__(self, at: int = 0, code: int = 0) -> None:
        self.at, self.code, self.count = at, code, 0
        self._pid, self._inside = 0, False
        self.names: list[str] = []

    def begin(self) -> None:
        self._pid = os.getpid()
        sys.addaudithook(self._heard)
        for name in WRAPPED:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        # Of what is opened, the programs' own modules and /proc are no state of the queue's.
        if event in AUDITED and not str(arguments[:1]).startswith(("('/proc", "('/dev/null", "('/sys")):
            self._one(event)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._one(f"os.{name}")
            return real(*arguments, **named)

        return call

    def _one(self, name: str) -> None:
        if os.getpid() != self._pid:
            return
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            if not self.code:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.code, os.strerror(self.code))
