"""A job's output, and with `follow` what it prints from now on, until it ends: one connection, no polling by it.

The file is on a share, where no host is told of another's writes, so this end looks; the caller only reads.
"""

from __future__ import annotations

import codecs
import os
import select
import stat
import time
from contextlib import suppress
from typing import Any, BinaryIO

from mlbox import errors
from mlbox.host import lab, lookup, store
from mlbox.host.handlers.jobs import Fresh
from mlbox.host.job import Job
from mlbox.host.serve import Call

Json = dict[str, Any]
_BLOCK = 1 << 16
_LOOK_EVERY = 0.25  # s
_SILENCE = 3.0  # s without a word; most jobs print one sooner


def run(call: Call) -> Json:
    found = store.Store(call.root)
    lab.identify(found.root)
    job = lookup.mine(found, str(call.args.get("job", "")))
    follow, wanted = bool(call.args.get("follow")), int(call.args.get("attempt", 0))
    output = _Output(job, _attempt(job, wanted), call.args.get("tail"))
    said, reasons = ("", ""), Fresh(found, job)
    while True:
        if follow:
            _follow(call, job, output)
        else:
            output.send(call, last=True)
        state = job.state()
        if not state.name:  # it was pruned just now
            raise lookup.absent(found, job.id)
        if follow and not wanted and output.number < state.attempt:
            output = _Output(job, output.number + 1)
            continue
        why = (reasons.why(state) if state.waiting else "") or str(state.facts.get("why", ""))
        if not follow or not state.live or wanted:
            return {"state": state.name, "exit": state.facts.get("exit"), "signal": state.facts.get("signal"),
                    "why": why, "attempt": output.number}  # fmt: skip
        if (state.name, why) != said:
            said = (state.name, why)
            call.progress(state=state.name, why=why)
        pause()


def _attempt(job: Job, wanted: int) -> int:
    """Which one is meant, by 0 the latest. Raises NotFound where there was none of that number."""
    had = job.state().attempt
    if 0 <= wanted <= had:
        return wanted or had
    raise errors.NotFound(
        f"there is no attempt {wanted} of job {job.shown().name}: it has had {had}", "mlbox show tells of each"
    )


def _follow(call: Call, job: Job, output: _Output) -> None:
    """One attempt, to its end."""
    while True:
        state = job.state()
        over = state.attempt != output.number or not state.running
        output.send(call, over)  # after the state was read: nothing is printed after an end
        if over:
            return
        output.say_silent(call, state.name)
        pause()


class _Output:
    """What an attempt has printed, and how far it has been sent; `tail`: of what is there at first, so many lines."""

    def __init__(self, job: Job, number: int, tail: int | None = None) -> None:
        self.number = number
        self._path, self._tail, self._offset = job.attempt(number) / "output.log", tail, 0
        self._due = time.monotonic() + _SILENCE
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may come in two pieces

    def send(self, call: Call, last: bool) -> None:
        """What is there by now; `last`: half a letter at its end stays one."""
        tail, self._tail = self._tail, None
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        with os.fdopen(descriptor, "rb") as file:
            # Asks the server: GlusterFS goes on showing what it knew for up to a second after another host has written.
            with suppress(OSError):  # a share that is read-only now is no reason not to read
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode))
            if tail is not None:
                self._offset = _start_of_tail(file, os.fstat(descriptor).st_size, tail)
            file.seek(self._offset)
            while data := file.read(_BLOCK):
                self._offset += len(data)
                self._say(call, self._decoder.decode(data))
        if last:
            self._say(call, self._decoder.decode(b"", final=True))
            self._decoder.reset()

    def say_silent(self, call: Call, state: str) -> None:
        """Once: whoever looks at an empty screen can't tell a job that prints nothing from a connection that hangs."""
        if not self._offset and time.monotonic() >= self._due:
            self._due = float("inf")
            call.progress(silent=state)

    def _say(self, call: Call, words: str) -> None:
        if words:
            call.progress(output=words)


def _start_of_tail(file: BinaryIO, size: int, lines: int) -> int:
    """Where the last `lines` lines begin, looked for in the last MiB."""
    if lines <= 0:
        return size
    start = max(0, size - (1 << 20))
    file.seek(start)
    content = file.read()
    at = len(content) - content.endswith(b"\n")  # a last line without an end is one, too
    for _ in range(lines):
        at = content.rfind(b"\n", 0, at)
        if at < 0:
            return start
    return start + at + 1


def pause(seconds: float = _LOOK_EVERY) -> None:
    """Until the next look; ends at once when the caller has gone."""
    ready, _, _ = select.select([0], [], [], seconds)
    if ready and not os.read(0, _BLOCK):
        raise errors.MlboxError("the caller has gone")
