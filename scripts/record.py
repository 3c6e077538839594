#!/usr/bin/env python3
"""docs/session.svg, the README's picture of the main job: a real run on the lab, typed into a real terminal.

    .venv/bin/python scripts/record.py [--host gpu2] [--out docs/session.svg]

A shell in a pseudo-terminal runs `mlbox session`; what it prints goes through a small terminal (benchkit/screen.py)
and becomes one animated SVG (benchkit/svg.py). Waiting is shortened, tokens are left out; nothing else is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchkit import svg
from benchkit.laptop import PYTHON, PYZ, ROOT, Laptop, NoLab
from benchkit.screen import Screen
from benchkit.sessions import IMAGE

COLUMNS, ROWS = 100, 20
_KEY = 0.05  # s between two keys
_LONGEST = 0.9  # s that a wait takes in the picture
_TOKEN = re.compile(rb"(?:token|tkn)=([\w-]+)")
_JOB = re.compile(rb"\(job (\w+)\)")
_TITLE = "mlbox session: one command, then Jupyter, VS Code and a shell on a GPU"
_PROGRAM = """\
import ctypes, os
nvml, count = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_uint()
nvml.nvmlInit_v2()
nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
print("host:", os.uname().nodename)
for index in range(count.value):
    gpu, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(gpu))
    nvml.nvmlDeviceGetName(gpu, name, 96)
    print(f"GPU {index}:", name.value.decode())
"""


class Terminal:
    """A shell in a pseudo-terminal. `said`: all it printed; `states`: (picture time, screen) as it changed."""

    def __init__(self, env: dict[str, str]) -> None:
        self.screen, self.said = Screen(ROWS, COLUMNS), b""
        self.states: list[svg.State] = []
        self._now, self._last = 0.0, time.monotonic()
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvpe("bash", ("bash", "--norc", "--noprofile", "-i"), env)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def wait_for(self, pattern: bytes, timeout: float = 60.0) -> None:
        """Until it was printed since the last wait. Raises RuntimeError with the screen if it never is."""
        seen, deadline = b"", time.monotonic() + timeout
        while not re.search(pattern, seen):
            data = self._read(deadline - time.monotonic())
            if not data:
                raise RuntimeError(f"never came: {pattern!r}\n{self.screen.text()}")
            seen += data

    def type(self, line: str) -> None:
        for key in line:
            os.write(self._fd, key.encode())
            self._listen(_KEY)
        self._listen(0.4)
        os.write(self._fd, b"\r")

    def hold(self, seconds: float) -> None:
        """The picture stays as it is."""
        self._listen(0.3)
        self._now += seconds
        self._last = time.monotonic()

    def close(self) -> None:
        os.close(self._fd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def _read(self, timeout: float) -> bytes:
        if not select.select([self._fd], [], [], max(0.0, timeout))[0]:
            return b""
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the shell has ended
            return b""
        now = time.monotonic()
        self._now += min(now - self._last, _LONGEST)
        self._last = now
        self.said += data
        self.screen.feed(data)
        self.states.append((self._now, self.screen.rows()))
        return data

    @property
    def length(self) -> float:
        """Of the picture, in seconds."""
        return self._now


def record(laptop: Laptop) -> Terminal:
    """The main job, as a person does it."""
    commands = laptop.folder / "bin"
    (commands / "ssh").unlink()  # the benchmark's
    (commands / "mlbox").write_text(f'#!/bin/sh\nexec "{PYTHON}" "{PYZ}" "$@"\n')
    (commands / "mlbox").chmod(0o700)
    configuration = Path(laptop.env["HOME"]) / ".ssh/config"  # as README says; it makes `ssh NAME` work
    configuration.parent.mkdir(mode=0o700)
    configuration.write_text(f"Include {laptop.env['HOME']}/.local/state/mlbox/ssh_config\n")
    prompt = r"\[\033[32m\]$\[\033[0m\] "
    env = {**laptop.env, "PATH": f"{commands}:{laptop.env['PATH']}", "TERM": "xterm-256color", "PS1": prompt}
    terminal = Terminal({**env, "BASH_SILENCE_DEPRECATION_WARNING": "1"})
    try:
        _play(terminal, laptop.host)
    finally:
        terminal.close()
        for job in dict.fromkeys(_JOB.findall(terminal.said)):
            laptop.mlbox("session", "shutdown", job.decode(), "--host", laptop.host, check=False)
    return terminal


def _play(terminal: Terminal, host: str) -> None:
    terminal.wait_for(rb"\$")
    terminal.hold(0.5)
    terminal.type(f"mlbox session {host} --gpus 1 --image {IMAGE}")
    terminal.wait_for(rb"shutdown\][^>]*> ", 180)
    terminal.hold(2.2)
    terminal.type("s")
    terminal.wait_for(rb"\$ ")
    terminal.hold(0.3)
    terminal.type("python3 gpus.py")
    terminal.wait_for(rb"GPU 0: .*\n(?s:.*)\$ ")
    terminal.hold(1.2)
    terminal.type("exit")
    terminal.wait_for(rb"\n(?s:.*)> ")
    terminal.hold(0.4)
    terminal.type("d")
    terminal.wait_for(rb"detached.*\n(?s:.*)\$")
    terminal.hold(5.0)


@contextlib.contextmanager
def _program(laptop: Laptop) -> Iterator[None]:
    """gpus.py, in the folder that becomes the session's /workspace."""
    laptop.on_host("mkdir -p -m 700 ~/mlbox && [ ! -e ~/mlbox/gpus.py ]")
    argv = laptop.ssh("cat > ~/mlbox/gpus.py")
    subprocess.run(argv, input=_PROGRAM.encode(), check=True, capture_output=True, timeout=60)
    try:
        yield
    finally:
        laptop.on_host("rm -f ~/mlbox/gpus.py", check=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="gpu2")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/session.svg")
    arguments = parser.parse_args(argv)
    try:
        with contextlib.closing(Laptop(arguments.host)) as laptop:
            if laptop.mlbox("session", "list", arguments.host, "--json").strip() != "[]":
                print(f"a session of yours runs on {arguments.host} already; end it first", file=sys.stderr)
                return 1
            with _program(laptop):
                terminal = record(laptop)
    except NoLab as error:
        print(f"{error}: scripts/lab up", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    picture = svg.draw(terminal.states, terminal.length, COLUMNS, _TITLE)
    if any(token.decode() in picture for token in _TOKEN.findall(terminal.said)):
        print("a token would be in the picture", file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(picture)
    print(f"{arguments.out.name}: {len(picture) / 1000:.0f} kB, {terminal.length:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
