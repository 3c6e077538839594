"""Other users of this machine, without an account: what they say to a socket, and what they hear. Needs root."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# The Python that runs the tests may be closed to other users: it becomes one with all imported.
_AS = """
import os, socket, sys, threading
uid = int(sys.argv.pop(1))
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
"""

# Connect, send what comes on stdin, and print what comes back, with a mark at its end.
_CLIENT = """
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
os.write(1, b"[connected]\\n")
def send():
    try:
        while data := os.read(0, 4096):
            s.sendall(data)
    except OSError:
        pass
threading.Thread(target=send, daemon=True).start()
try:
    while data := s.recv(4096):
        os.write(1, data)
except OSError:
    pass
os.write(1, b"[end]\\n")
os._exit(0)
"""


def as_user(uid: int, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    argv = (sys.executable, "-I", "-S", "-c", _AS + code, str(uid), *arguments)
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")


class Client:
    """Another user's connection."""

    def __init__(self, uid: int, path: Path) -> None:
        self._process = as_user(uid, _CLIENT, str(path))
        assert self.hear() == b"[connected]\n"

    def say(self, words: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was closed to this one, who has gone
            self._process.stdin.write(words)
            self._process.stdin.flush()

    def ask(self, line: bytes) -> bytes:
        self.say(line)
        return self.hear()

    def hear(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
