"""Every call of a process that touches a file, counted; and at one of them the process's end, or an error, which may
last.

Installed in a forked child before the work begins. Counted is all that `os` can do, whoever asks for it, the standard
library's own code too, but for what touches no file (NO_FILE): what is new is counted, and nobody has to add it here. A
file that is opened as an object is made of Python (_pyio), so that it reads, writes and closes by `os` as well. What
gets round that (names that were bound earlier, the locks of fcntl) an audit hook counts, where Python audits it. A
listing is one call. No file: a pipe, a socket, a terminal, /proc, /sys, and the programs' own modules.

What C alone does to a file would escape (and before Python 3.11 Path's own stat): tests/faults/test_nothing_escapes.py
keeps that out.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import io
import os
import re
import signal
import sys
import tarfile
import threading
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, Callable

NO_FILE = re.compile(
    r"W[A-Z]+|_exit|abort|(set|get)(?!xattr)\w+|sched_\w+|wait\w*|fork|forkpty|register_at_fork|exec\w*|posix_spawnp?|"
    r"kill|killpg|nice|system|times|pidfd_\w+|putenv|unsetenv|pipe2?|dup2?|lseek|isatty|ttyname|ctermid|openpty|"
    r"login_tty|tc[gs]etpgrp|umask|uname|urandom|fspath|strerror|sysconf|confstr|cpu_count|device_encoding|major|minor|"
    r"makedev|initgroups|eventfd\w*|timerfd\w*|memfd_create|get_terminal_size|f?walk"
)
_MAKING = os.O_CREAT | os.O_TRUNC
_NEEDS_ROOM = {"write", "writev", "pwrite", "pwritev", "mkdir", "link", "symlink", "mkfifo", "mknod", "fsync",
               "fdatasync", "posix_fallocate", "sendfile", "copy_file_range", "splice"}  # fmt: skip
ERRORS = (errno.EIO, errno.ENOSPC, errno.ESTALE)
_ELSEWHERE = ("/proc/", "/sys/", "/dev/null", "/dev/pts/", "/dev/tty",
              sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]))  # fmt: skip
_readlink = os.readlink


class Calls:
    """Counts from `begin` on, in this process only. At number `at` (from 1): SIGKILL, or the error `code`; the error
    `lasting` times in all, from the second on where something is to be written."""

    def __init__(self, at: int = 0, code: int = 0, lasting: int = 1) -> None:
        self.at, self.code, self.count = at, code, 0
        self.names: list[str] = []
        self._left, self._pid, self._inside = lasting, 0, threading.local()

    def begin(self) -> None:
        self._pid = os.getpid()
        for module, name in ((builtins, "open"), (io, "open"), (tarfile, "bltn_open")):
            setattr(module, name, importlib.import_module("_pyio").open)
        for name, real in vars(os).copy().items():
            if isinstance(real, BuiltinFunctionType) and not NO_FILE.fullmatch(name):
                setattr(os, name, self._wrapped(name, real))
        sys.addaudithook(self._heard)

    def end(self) -> None:
        self._pid = 0

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        of, _, name = event.rpartition(".")
        touches = event == "open" or of == "fcntl" or (of == "os" and not NO_FILE.fullmatch(name))
        if touches and not hasattr(self._inside, "it"):
            self._one(name, arguments, {})

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if os.getpid() != self._pid:
                return real(*arguments, **named)
            try:
                self._one(name, arguments, named)
            except OSError:
                if name == "close":  # it is closed, whatever it says
                    real(*arguments)
                raise
            self._inside.it = True
            try:
                return real(*arguments, **named)
            finally:
                del self._inside.it

        return call

    def _one(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        where = arguments[0] if arguments else named.get("path", named.get("fd", "."))
        if os.getpid() != self._pid or not _is_file(where):
            return
        self.count += 1
        self.names.append(name)
        if self.count != self.at and not (self.count > self.at and self.code and _writes(name, arguments)):
            return
        if not self.code:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._left:
            self._left -= 1
            raise OSError(self.code, os.strerror(self.code), None if isinstance(where, int) else os.fspath(where))


def _writes(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a full disk would refuse it."""
    flags = next((a for a in arguments[1:3] if isinstance(a, int)), 0)
    return name in _NEEDS_ROOM or (name == "open" and bool(flags & _MAKING))


def _is_file(where: Any) -> bool:
    if isinstance(where, int):
        try:
            where = _readlink(f"/proc/self/fd/{where}")
        except OSError:
            return False
        if where[:1] != "/":
            return False
    try:
        return not os.fsdecode(where).startswith(_ELSEWHERE)
    except TypeError:  # of an audited event's, another kind of thing
        return True
