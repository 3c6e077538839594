"""What keeps a job or a session: a detached process that holds keeper.lock for as long as it lives.

Whether a keeper lives is asked of the kernel (the lock), never of a pid file, and its end can be awaited.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mlbox import errors
from mlbox.host import files, lease, processes, uses
from mlbox.host.job import Job


def lock(job: Job) -> int | None:
    """Become this session's keeper; None while another lives (or where the session's folder is gone)."""
    try:
        descriptor = os.open(job.keeper_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def lives(job: Job) -> bool:
    return is_held(job.keeper_lock)


def is_held(path: Path) -> bool:
    """Whether a process has this lock. Makes no file: the folder may be about to vanish."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def taken(path: Path) -> int:
    """This lock's descriptor, in a file that whoever has the lock may remove; -1 where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    os.close(descriptor)
    return -1


generation = 0  # how often this process's image was forked since Python started: each adds to its stack


def detach(body: Callable[[], None], log: Path | None, keep: Iterable[int]) -> None:
    """Run `body` in a process of its own that survives this one, the login and the terminal. Its output is appended
    to `log`, or (None) goes where this one's does.

    Of this process's open files it has only `keep`: another lock that came along would never be free again."""
    global generation
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if log is not None:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for target in (1, 2):
                os.dup2(out, target)
        processes.close_all_but({0, 1, 2, *keep})
        generation += 1
        sys.stdout = sys.stderr = _Log()  # whatever they were before
        body()
        os._exit(0)
    except BaseException:  # the last line of defence of a process without a terminal: keep its traceback
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


class _Log(io.TextIOBase):
    """Standard error, into a file on the share: what finds no room on a full disk is lost, and stops nobody."""

    def write(self, words: str) -> int:
        with suppress(OSError):
            os.write(2, words.encode(errors="replace"))
        return len(words)


_LOOK_EVERY = 3.0  # s
PATIENCE = 5.0  # s between taking a lock and signing
_YOUNG = 6 * 3600.0  # s; systems that clean /tmp by age look at least that rarely


def listen(job: Job) -> None:
    """On a host that nobody can call, a word to the keeper (a cancellation, by another host) is found in the log: look
    for it. Ends with the process."""

    def look() -> None:
        while True:
            time.sleep(_LOOK_EVERY)
            with suppress(Exception):  # the share is away, or shows half of something: no word would ever come again
                if job.state().requested:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    threading.Thread(target=look, name="listen", daemon=True).start()


def stay_young(job: Job, leases: Callable[[], Iterable[str]]) -> None:
    """What this keeper has in /tmp is not taken for forgotten, however long it stays: its job's folder of this boot,
    the locks of these leases, and of the layer. Ends with the process."""

    def touch() -> None:
        while True:
            time.sleep(_YOUNG)
            lease.keep_young([*leases(), *uses.held()])
            for folder in (job.boot_folder, job.dialled):
                files.keep_young(folder)

    threading.Thread(target=touch, name="young", daemon=True).start()


def sign(path: Path) -> None:
    """Say in this boot's file `path` which process this is, for whoever has to signal it."""
    identity = {"pid": os.getpid(), "started": processes.started(os.getpid())}
    files.write_whole(path, json.dumps(identity).encode(), lasting=False)


def tell(job: Job) -> None:
    """SIGTERM to the keeper, if one lives. Raises MlboxError where it lives and can't be found."""
    tell_process(job.keeper_lock, job.keeper_pid, "keeper")


def tell_process(lock: Path, signed: Path, what: str) -> None:
    """SIGTERM to the process that has this lock and signed there. Raises MlboxError where there is one and can't be
    found.

    A pid alone could be a killed one's, given to another process since: its start time must match. Where something has
    removed what it signed, the kernel is asked who has the lock."""
    deadline = time.monotonic() + PATIENCE
    while is_held(lock):
        known = files.read_json(signed) or {}
        pid = known.get("pid", 0)
        if pid and processes.started(pid) == known.get("started"):
            os.kill(pid, signal.SIGTERM)
            return
        if time.monotonic() > deadline:
            if not signed.exists() and (holders := processes.holders(lock)):
                processes.send(holders, signal.SIGTERM)
                return
            raise errors.MlboxError(f"the {what} can't be found", f"{signed} on {os.uname().nodename} does not tell")
        time.sleep(0.02)  # it has taken its lock and not signed yet
