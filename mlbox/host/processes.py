"""Facts about processes and the boot: from /proc, and by psutil where there is no /proc (macOS)."""

from __future__ import annotations

import gc
import os
import pwd
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox import errors

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
APART = "MLBOX_APART"  # a variable of what was called from inside a job, and is not the job's (mlbox/entry.py)


def boot_id() -> str:
    """Differs after every boot; empty where the system has none to tell (macOS)."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


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


def uptime() -> float:
    """Seconds since this system came up, asleep or not: of a container its own, by the start of its first process."""
    since = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    first = started(1)  # in ticks of the kernel's clock; not to be seen where /proc hides others' processes
    return since - int(first) / os.sysconf("SC_CLK_TCK") if first.isdigit() else since


def since(then: Any) -> float:
    """Seconds since an `uptime` that a log of this boot has; 0 where it has none."""
    return max(0.0, uptime() - float(then)) if isinstance(then, (int, float)) else 0.0


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


def holders(lock: Path) -> list[int]:
    """This user's processes that have an exclusive lock (flock) on this file. Empty without /proc."""
    return [pid for pid in (_pids() if os.path.isdir("/proc/self") else []) if _locks(pid, str(lock))]


def _locks(pid: int, path: str) -> bool:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # another user's, or gone
        return False
    for name in names:
        with suppress(OSError):  # closed meanwhile
            # By its name: a look at each file itself would wait for a hung mount.
            if os.readlink(f"/proc/{pid}/fd/{name}") == path:
                told = _read(f"/proc/{pid}/fdinfo/{name}").splitlines()
                if any(b"FLOCK" in line and b" WRITE " in line for line in told):
                    return True
    return False


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def close_all_but(keep: set[int]) -> None:
    """In a process that was forked just now."""
    # What is garbage by now may be a file whose number is closed here, and soon a lock's: collected later, it would
    # close that.
    gc.freeze()
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        if name.isdigit() and int(name) not in keep:
            with suppress(OSError):  # the one that listed them
                os.close(int(name))
