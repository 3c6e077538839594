"""Facts about processes and the boot: from /proc, and by psutil where there is no /proc (macOS)."""

from __future__ import annotations

import os
import pwd
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from mlbox import errors

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
APART = "MLBOX_APART"  # a variable of what was called from inside a job, and is not the job's (mlbox/entry.py)


def boot_id() -> str:
    """Differs after every boot; empty where the system has none to tell (macOS)."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def uptime() -> float:
    """Seconds of this boot, asleep or not: a wall clock may be set meanwhile."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def started(pid: int) -> str:
    """When a process started, in the system's own units: with the pid it names one process of this boot.

    Empty where there is none, or only its corpse: a zombie, whose parent does not look (PID 1 of a container)."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return words[19] if words[0] not in ("Z", "X") else ""
    except OSError:
        if os.path.isdir("/proc/self"):
            return ""
    try:
        import psutil

        return str(psutil.Process(pid).create_time())
    except Exception:  # psutil absent, or its own NoSuchProcess, which can't be named without it
        return ""


def describe(pid: int) -> tuple[str, str]:
    """The user and the command of a process; empty texts where they can't be seen."""
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "", ""
    try:
        return pwd.getpwuid(owner).pw_name, command
    except KeyError:
        return str(owner), command


def marked(session: str) -> list[int]:
    """This user's processes with MLBOX_SESSION=<session> in their environment, whoever their parent is now."""
    mark = f"MLBOX_SESSION={session}"
    if os.path.isdir("/proc/self"):
        return [pid for pid in _pids() if _has(pid, mark)]
    try:
        import psutil
    except ImportError:
        raise errors.HostUnready(
            "mlbox needs the psutil package on this system", "python3 -m pip install psutil"
        ) from None
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MLBOX_SESSION") == session:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def apart() -> set[int]:
    """Keepers and runners of other jobs, submitted from inside this one, and what they keep. Empty without /proc."""
    found = [p for p in _pids() if _has(p, f"{APART}=1")] if os.path.isdir("/proc/self") else []
    return {*found, *(child for pid in found for child in descendants(pid))}


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs; empty where the system has no /proc. Zombies are none."""
    children: dict[int, list[int]] = {}
    for child in _pids() if os.path.isdir("/proc/self") else []:
        state, parent = (_read(f"/proc/{child}/stat").rpartition(b")")[2].split() or [b"Z", b"0"])[:2]
        if state != b"Z":
            children.setdefault(int(parent), []).append(child)
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, ())]
        found += new
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _has(pid: int, variable: str) -> bool:
    environ = _read(f"/proc/{pid}/environ")
    return variable.encode() in environ and variable.encode() in environ.split(b"\0")


def _read(path: str) -> bytes:
    """Empty where it can't be read. Without a file object: a host has thousands of these, and each job's end asks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        content = b""
        while block := os.read(descriptor, 1 << 17):
            content += block
        return content
    except OSError:  # it ended meanwhile
        return b""
    finally:
        os.close(descriptor)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
