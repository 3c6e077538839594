"""A job's output, and with `follow` what it prints from now on, until it ends: one connection, no polling by it.

The file is on a share, where no host is told of another's writes, so this end looks; the caller only reads.
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.host import lab, lookup, store
from mlbox.host.handlers.jobs import Fresh
from mlbox.host.job import Job
from mlbox.host.serve import Call

Json = dict[str, Any]
_BLOCK = 1 << 16
_LOOK_EVERY = 0.25  # s


def run(call: Call) -> Json:
    found = store.Store(call.root)
    lab.identify(found.root)
    job = lookup.mine(found, str(call.args.get("job", "")))
    follow, tail = bool(call.args.get("follow")), int(call.args.get("tail", 0))
    wanted = int(call.args.get("attempt", 0))
    said, reasons = ("", ""), Fresh(found, job)
    while True:
        state = job.state()
        if not state.name:  # it was pruned just now
            raise lookup.absent(found, job.id)
        number = wanted or state.attempt
        if number:
            _send(call, job.attempt(number) / "output.log", _Place(), tail) if not follow else _follow(
                call, job, number, tail
            )
            state = job.state()
        if not follow or not state.live or wanted:
            return {"state": state.name, "exit": state.facts.get("exit"), "signal": state.facts.get("signal"),
                    "why": str(state.facts.get("why", "")), "attempt": number}  # fmt: skip
        why = reasons.why(state) if state.waiting else ""
        if (state.name, why) != said:
            said = (state.name, why)
            call.progress(state=state.name, why=why or str(state.facts.get("why", "")))
        pause()


class _Place:
    """How far a file has been sent."""

    offset = 0


def _follow(call: Call, job: Job, number: int, tail: int) -> None:
    """One attempt, to its end."""
    place, path = _Place(), job.attempt(number) / "output.log"
    _send(call, path, place, tail)
    while True:
        state = job.state()
        over = state.attempt != number or not state.running
        _send(call, path, place, 0)  # after the state was read: nothing is printed after an end
        if over:
            return
        pause()


def _send(call: Call, path: Path, place: _Place, tail: int) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb") as file:
        # Asks the server: GlusterFS goes on showing what it knew for up to a second after another host has written.
        with suppress(OSError):  # a share that is read-only now is no reason not to read
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode))
        size = os.fstat(descriptor).st_size
        if tail and not place.offset:
            place.offset = _start_of_tail(file, size, tail)
        file.seek(place.offset)
        while data := file.read(_BLOCK):
            place.offset += len(data)
            call.progress(output=data.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode())


def _start_of_tail(file: Any, size: int, lines: int) -> int:
    """Where the last `lines` lines begin, looked for in the last MiB."""
    start = max(0, size - (1 << 20))
    file.seek(start)
    content = file.read()
    at = len(content)
    for _ in range(lines + 1):
        at = content.rfind(b"\n", 0, at)
        if at < 0:
            return start
    return start + at + 1


def pause(seconds: float = _LOOK_EVERY) -> None:
    """Until the next look; ends at once when the caller has gone."""
    ready, _, _ = select.select([0], [], [], seconds)
    if ready and not os.read(0, _BLOCK):
        raise errors.MlboxError("the caller has gone")
