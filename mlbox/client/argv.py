"""What was typed, as other users of this machine see it by `ps`."""

from __future__ import annotations

import os
import re
from pathlib import Path

_STARTS = 45  # arg_start among the words of /proc/PID/stat behind the name, proc_pid_stat(5)


def conceal(setting: str) -> None:
    """Overwrite the value of this `NAME=value` in this process's command line, as Linux lets a process do; elsewhere it
    stays."""
    name, _, value = (os.fsencode(part) for part in setting.partition("="))
    typed = re.compile(b"(?<=[\0=])" + re.escape(name + b"=" + value) + b"(?=\0)")
    try:
        said = Path("/proc/self/cmdline").read_bytes()
        start = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[_STARTS])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            for found in typed.finditer(said) if start else ():
                memory.seek(start + found.start() + len(name) + 1)
                memory.write(b"*" * len(value))
    except (OSError, ValueError, IndexError):
        pass
