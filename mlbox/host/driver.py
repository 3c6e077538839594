"""The GPUs, asked of the driver by a process of its own. After some errors a call into it never returns, and no signal
ends who made it: whoever held a lock of ours by then, or an output that somebody waits for, would hold it for ever.

    /tmp/mlbox-<uid>/driver.lock    held by the process that asks and by who waits for it; content: this host's uptime
                                    when it began to (s)

Where no answer comes that is said, and the GPUs are out of order; what needs none goes on. While the one process hangs,
no other asks.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from mlbox.core.gpu import Gpu
from mlbox.host import nvml, processes, store

PATIENCE = 30.0  # s; a driver that keeps nothing loaded takes some for each GPU
_PAUSE = 0.02
_END, _AT_ONCE = 0.001, 10  # s, and how often: to the end of a process that has answered
_unburied: set[int] = set()
_SILENT = "the NVIDIA driver does not answer"


def gpus(found: store.Store) -> tuple[list[Gpu], str]:
    """As nvml.gpus. Raises nvml.Failed, also where no answer comes."""
    if not nvml.is_there():
        return [], nvml.NONE
    path = found.boot_folder() / "driver.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _wait_for(lock)
        said = _answer(lock)
    finally:
        os.close(lock)
    if "failed" in said:
        raise nvml.Failed(said["failed"])
    return [Gpu.from_wire(gpu) for gpu in said["gpus"]], said["driver"]


def _wait_for(lock: int) -> None:
    before = b""
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(lock, f"{processes.uptime():020.3f}".encode(), 0)
            return
        began = os.pread(lock, 64, 0)
        with suppress(ValueError):  # the first one ever has just begun
            # Seen twice: whoever has just begun may not have said so yet, and it is the last one's.
            if began == before and processes.uptime() - float(began) > PATIENCE:
                raise nvml.Failed(_SILENT)
        before = began
        time.sleep(_PAUSE)


def _answer(lock: int) -> Any:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _ask(lock, write)
    _unburied.add(child)
    os.close(write)
    try:
        data, deadline = b"", time.monotonic() + PATIENCE
        while not data.endswith(b"\n"):
            if not select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                os.kill(child, signal.SIGKILL)
                raise nvml.Failed(_SILENT)
            block = os.read(read, 1 << 16)
            if not block:
                raise nvml.Failed("the NVIDIA driver's library has crashed")
            data += block
        _bury(_AT_ONCE)
    finally:
        os.close(read)
        _bury(1)
    return json.loads(data)


def _bury(tries: int) -> None:
    """Those that have ended. One may hang even in its end: it is not waited for, and looked at again the next time."""
    for left in range(tries, 0, -1):
        for pid in tuple(_unburied):
            with suppress(ChildProcessError):  # of a process that this one was forked from
                if not os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            _unburied.discard(pid)
        if not _unburied or left == 1:
            return
        time.sleep(_END)


def _ask(lock: int, write: int) -> None:
    """The process that asks; it does not return."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        processes.close_all_but({lock, write})
        try:
            found, version = nvml.gpus()
            said: dict[str, Any] = {"gpus": [asdict(gpu) for gpu in found], "driver": version}
        except nvml.Failed as failed:
            said = {"failed": str(failed)}
        except Exception as error:  # a bug, and not the driver's
            said = {"failed": f"a bug in mlbox: {type(error).__name__}: {error}"}
        fcntl.flock(lock, fcntl.LOCK_UN)
        data = json.dumps(said).encode() + b"\n"
        while data:
            data = data[os.write(write, data) :]
    finally:
        os._exit(0)
