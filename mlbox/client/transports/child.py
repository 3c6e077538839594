"""A command that runs as a child process here: ssh, or (for `local`) the host part itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from mlbox import errors


class Child:
    """Its error output goes to a file, not a pipe: a connection master that ssh leaves behind would hold a
    pipe open for as long as it lives."""

    def __init__(self, argv: Sequence[str], new_session: bool) -> None:
        self._stderr = _nameless()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            start_new_session=new_session,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._stdin.fileno(), view) :]
        except BrokenPipeError:
            raise errors.Unreachable("the connection ended while a request was sent") from None

    def close_input(self) -> None:
        self._stdin.close()

    def read(self) -> bytes:
        return os.read(self._stdout.fileno(), 65536)

    def wait(self) -> int:
        return self._process.wait()

    def errors(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-16384:].decode(errors="replace")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        for file in (self._stdin, self._stdout, self._stderr):
            file.close()


def _nameless() -> IO[bytes]:
    """A file in memory where the system has such, which needs neither a disk nor an import."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    import tempfile

    return tempfile.TemporaryFile()
