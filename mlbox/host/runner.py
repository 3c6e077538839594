"""The process that stays with one attempt of a job while everything else may die: it runs the job's command.

    <boot folder>/attempt.lock   inherited, and held for as long as this lives: its end can be awaited, also by a
                                 later keeper
    <boot folder>/attempt.pid    which process it is, for whoever has to signal it
    <boot folder>/room           space that the claim has taken for this record: a job may well fill /tmp
    <boot folder>/exit.json      how the command ended, there before the lock is freed

Forked by the keeper: another interpreter's start would cost each job several times what all else of its start does. It
inherits the GPU leases and nobody else holds them, so a GPU is free when the command has ended and not before,
whatever became of the keeper. Output goes through it to the share, and what is beyond the limit, or does not fit on
a full disk, is counted instead. SIGTERM: the command gets SIGTERM, its grace time, and SIGKILL with all its children.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import text
from mlbox.host import here, keeping, processes
from mlbox.host.run import Signals

Json = dict[str, Any]
LOCK, PID, _ROOM = "attempt.lock", "attempt.pid", "room"
_FOR_A_START, _FOR_THE_END = 1 << 16, 1 << 12  # bytes
_PR_SET_CHILD_SUBREAPER = 36
_BLOCK = 1 << 16
_NOTE = "\n[mlbox: {dropped} bytes of output were dropped: {why}]\n"
_UNSURE = "\n[mlbox: the end of the output may be missing: {why}]\n"


@dataclass(frozen=True)
class Command:
    """What to run. `place`: the boot folder; `limit`: bytes of output; `grace`: s between SIGTERM and SIGKILL."""

    job: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    place: Path
    output: Path
    limit: int
    grace: float


class Output:
    """The attempt's output file: appended to, never beyond `limit` bytes, and never a reason to stop the job."""

    def __init__(self, path: Path, limit: int) -> None:
        self.dropped, self._why, self._limit = 0, "", limit
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            self._left = limit - os.fstat(self._file).st_size
        except OSError as error:
            self._file, self._left, self._why = -1, 0, str(error.strerror)

    def write(self, data: bytes) -> None:
        kept, rest = data[: max(0, self._left)], data[max(0, self._left) :]
        if rest:
            self._drop(len(rest), f"the limit of {text.mebibytes(self._limit >> 20)} is reached")
        while kept:
            try:
                written = os.write(self._file, kept)
            except OSError as error:
                self._drop(len(kept), str(error.strerror))
                return
            self._left -= written
            kept = kept[written:]

    def _drop(self, count: int, why: str) -> None:
        self.dropped, self._why = self.dropped + count, self._why or why

    def close(self) -> str:
        """What is to be said of what was dropped and found no room itself: the keeper does, when there is some."""
        note = _NOTE.format(dropped=self.dropped, why=self._why).encode() if self.dropped else b""
        with suppress(OSError):
            while note:
                note = note[os.write(self._file, note) :]
        try:
            os.close(self._file)
        except OSError as error:  # a share tells only now that what it took did not get there
            if self._file >= 0:
                note = note or _UNSURE.format(why=error.strerror).encode()
        return note.decode()


def make_room(place: Path) -> None:
    """What a start writes to the boot folder `place` finds room, and the record of the end does even if none is left by
    then. Raises HostUnready: where a job can't be kept, it is not to be claimed."""
    try:
        with (place / _ROOM).open("wb") as file:
            file.write(bytes(_FOR_A_START))
            file.truncate(_FOR_THE_END)
    except OSError as error:
        raise errors.HostUnready(f"{place.parent} takes no job: {error.strerror}", "is there room in /tmp?") from None


def _record(place: Path, facts: Json) -> None:
    """Written in its place, which takes no room anew; whoever reads it waits for the lock."""
    with open(os.open(place / _ROOM, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(json.dumps(facts).encode())
        file.truncate()
    os.replace(place / _ROOM, place / "exit.json")


def run(command: Command) -> None:
    """In a process of its own (keeping.detach)."""
    with suppress(AttributeError, OSError):  # macOS has none; there children are found by their mark
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = Signals()
    keeping.sign(command.place / PID)
    output = Output(command.output, command.limit)
    killed_before, among_ours = _oom_kills(), _oom_kills_among_ours()
    try:
        found = _run(command, signals, output)
    except (OSError, ValueError) as error:  # no such program, no such folder: as a shell says it; words that are none
        output.write(_not_run(command.argv, error).encode(errors="replace"))
        found = {"exit": 126 if isinstance(error, PermissionError) else 127, "signal": 0}
    unsaid = output.close()
    oom = not found.get("stopped") and (
        (found["signal"] == signal.SIGKILL and _oom_kills() > killed_before)
        or (found["exit"] == 128 + signal.SIGKILL and _oom_kills_among_ours() > among_ours)  # a shell tells it so
    )
    _record(command.place, {**found, "oom": oom, "dropped": output.dropped, "unsaid": unsaid})


def _not_run(argv: tuple[str, ...], error: OSError | ValueError) -> str:
    why = error.strerror if isinstance(error, OSError) else error
    hint = _OF_A_FILE.get(error.errno or 0, "") if isinstance(error, OSError) and "/" in argv[0] else ""
    if len(argv) == 1 and " " in argv[0].strip():  # a line for a shell that nobody was asked to read
        hint = "it is one word; without quotes, or as sh -c '…', it is a command and its arguments"
    return f"mlbox: {argv[0]}: {why}\n" + (f"mlbox: {hint}\n" if hint else "")


_OF_A_FILE = {
    errno.EACCES: "it may not be executed: chmod +x, or name what runs it: python3 FILE",
    errno.ENOEXEC: "its first line should name what runs it (#!/usr/bin/env python3), or you do: python3 FILE",
}


def _oom_kills() -> int:
    """How many processes this kernel has killed for want of memory."""
    return _count(Path("/proc/vmstat"))


def _oom_kills_among_ours(known: Path = Path("/proc/self/cgroup"), top: Path = Path("/sys/fs/cgroup")) -> int:
    """How many of this control group's; 0 where there is none but the host's own, or it does not count."""
    with suppress(OSError):
        for line in known.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if group != "/" and controllers in ("", "memory"):
                name = "memory/{}/memory.oom_control" if controllers else "{}/memory.events"
                found = _count(top / name.format(group.strip("/")))
                if found:
                    return found
    return 0


def _count(path: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _run(command: Command, signals: Signals, output: Output) -> Json:
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            command.argv, stdin=subprocess.DEVNULL, stdout=write, stderr=write, env=command.env, cwd=command.folder,
            start_new_session=True, umask=here.umask,
        )  # fmt: skip
    finally:
        os.close(write)
    stopped = _pump(command.grace, process, signals, read, output)
    _kill_rest(command.job, process)
    os.set_blocking(read, False)  # a child in some other session may hold the other end open for ever
    with suppress(BlockingIOError):
        while data := os.read(read, _BLOCK):
            output.write(data)
    os.close(read)
    code = process.wait()
    return {"exit": max(code, 0), "signal": max(-code, 0), "stopped": stopped}


def _pump(grace: float, process: subprocess.Popen[bytes], signals: Signals, read: int, output: Output) -> bool:
    """Output to the file until the command has ended; whether it was told to."""
    deadline: float | None = None
    with selectors.DefaultSelector() as selector:
        for descriptor in (read, signals.wake_r, signals.stop_r):
            selector.register(descriptor, selectors.EVENT_READ)
        while process.poll() is None:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = {key.fd for key, _ in selector.select(timeout)}
            signals.drain()
            if read in ready:
                data = os.read(read, _BLOCK)
                output.write(data)
                if not data:
                    selector.unregister(read)
            if signals.stop_r in ready:
                selector.unregister(signals.stop_r)
                deadline = time.monotonic() + grace
                _signal(process, signal.SIGTERM)
            if deadline is not None and time.monotonic() >= deadline:
                _signal(process, signal.SIGKILL)
    return deadline is not None


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _kill_rest(job: str, process: subprocess.Popen[bytes]) -> None:
    """What the command left running would hold the GPU: it ends with the job, wherever it went and whatever it did
    to its environment. Not so the jobs that it has submitted."""
    _signal(process, signal.SIGKILL)
    for _ in range(100):
        left = {*processes.marked(job), *processes.descendants(os.getpid())} - {os.getpid()}
        left -= processes.apart() if left else set()  # which looks at every process once more
        if not left:
            return
        processes.send(left, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.01)  # orphans are reaped as they end; there is no one event for all
