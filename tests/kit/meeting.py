"""A rendezvous without an SSH server: sockets as sshd binds them for a tunnel, and the forced command at its end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from queuebox import program

from mlbox.core import reverse

FOLDER = Path(f"/tmp/mlbox-{os.getuid()}")


def bound(session: str, token: str, service: str) -> socket.socket:
    """As sshd binds it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(FOLDER / reverse.fresh(session, token, service)))
    listener.listen()
    return listener


def dial(tmp_path: Path, words: str, *by: str, host: str = "ws", root: Path | None = None) -> subprocess.Popen[bytes]:
    argv = (*by, sys.executable, str(program(tmp_path)), "rendezvous", host, str(root or tmp_path / "root"))
    environment = {**os.environ, "SSH_ORIGINAL_COMMAND": words}
    return subprocess.Popen(
        argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def said(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def hang_up(process: subprocess.Popen[bytes]) -> None:
    process.communicate()
    assert process.returncode == 0
