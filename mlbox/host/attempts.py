"""One try at a job on this host, as its keeper and its keeper's successors know it, and its end on record."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.core.verdict import Outcome, verdict
from mlbox.host import archive, engines, files, keeping, ready, runner, slots, store, usage
from mlbox.host.engines import aside
from mlbox.host.job import Job

_PATIENCE = 3600.0  # s that an end waits for a log that can't be written (a hung or full share)
_PAUSE = 5.0
_END = 1 << 14  # bytes of an output
_ENGINE_FAILED = 125  # how `docker run` and `podman run` end of themselves: no such command, no answer, killed under it


@dataclass(frozen=True)
class Attempt:
    """One try at running a job on this host."""

    found: store.Store
    job: Job
    spec: JobSpec
    number: int
    gpus: tuple[str, ...]
    share: int  # MiB of the one GPU; 0: the GPUs are the job's alone
    time_limit: int  # s; 0: none
    after: Callable[[], None]  # what the end of a job makes possible: a tick
    identity: str = ""  # of the image, where it is known to be here

    @property
    def folder(self) -> Path:
        return self.job.attempt(self.number)

    @property
    def runner_lock(self) -> Path:
        return self.job.boot_folder / runner.LOCK

    @property
    def runner_pid(self) -> Path:
        return self.job.boot_folder / runner.PID

    @property
    def leases(self) -> tuple[str, ...]:
        """The names of its GPUs' locks; its runner has them, whoever its keeper is (host/lease.py)."""
        return (*self.gpus, *(f"{uuid}.share.{self.job.id}" for uuid in self.gpus if self.share))

    def runs(self) -> bool:
        return keeping.is_held(self.runner_lock)


def outcome(attempt: Attempt, engine: engines.Engine) -> Outcome:
    """By the runner's record. Before the engine removes what is left."""
    record = files.read_json(attempt.job.boot_folder / "exit.json")
    if not isinstance(record, dict):
        return Outcome(lost="its runner was killed")
    code_, oom, stopped = int(record.get("exit", 0)), bool(record.get("oom")), bool(record.get("stopped"))
    number = int(record.get("signal", 0))
    if attempt.spec.work.runtime != "process":
        seen, for_memory = engine.ending(attempt.job.id) if code_ in (_ENGINE_FAILED, 137) else (code_, False)
        if code_ == _ENGINE_FAILED != seen and not stopped:  # the job's own 125 is the container's, too
            runtime = attempt.spec.work.runtime
            if seen is not None:
                return Outcome(lost=f"{runtime} failed while it ran (its output)")
            from mlbox.host import failure

            return not_started(attempt, failure.not_started(runtime, _said(attempt)))
        oom = oom or for_memory
        number = number or (code_ - 128 if 128 < code_ < 160 else 0)
    return Outcome(code_, number, oom, stopped=stopped)


def not_started(attempt: Attempt, error: errors.HostUnready) -> Outcome:
    """Nothing of it ran. Where that is the host's trouble, it is spared what else waits for the same."""
    from mlbox.host import failure  # few starts fail

    runtime = attempt.spec.work.runtime
    if isinstance(error, failure.NotStarted) or runtime == "process":  # which has no engine
        return Outcome(unstarted=error.message)
    aside.put(attempt.found, runtime, bool(attempt.gpus), error.message)
    return Outcome(unready=error.message)


def _said(attempt: Attempt) -> str:
    """The end of its output: the engine's own words, where nothing ran."""
    with suppress(OSError), (attempt.folder / "output.log").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
        return file.read(_END).decode(errors="replace")
    return ""


def finish(attempt: Attempt, outcome: Outcome) -> None:
    """Record the end, and let the hints follow; nothing of the attempt runs any more. The share may be away: then it
    waits."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            record(attempt, outcome)
            return
        except (OSError, slots.Unsettled) as error:
            if time.monotonic() > deadline:
                raise
            print(f"the end is not on record yet: {error}", file=sys.stderr)
            time.sleep(_PAUSE)


def record(attempt: Attempt, outcome: Outcome) -> None:
    """Again after an error: what of it was done already is seen, and not done twice."""
    job, found = attempt.job, attempt.found
    _say_what_was_dropped(attempt)
    state = job.state()
    event = verdict(attempt.spec, state, outcome, time.time())
    ended = job.append(str(event.pop("event")), event, attempt.number)
    state = _seen(job)
    if state.running or state.attempt != attempt.number:
        found.end(job)  # a later claim, somewhere: this attempt counts for nothing
        return
    if ended:
        usage.add(found, job, state)
    settle(found, job, attempt.spec)


def _say_what_was_dropped(attempt: Attempt) -> None:
    """In the output itself, where the runner found no room for even that on a full share."""
    path = attempt.job.boot_folder / "exit.json"
    record = files.read_json(path)
    if isinstance(record, dict) and record.get("unsaid"):
        with (attempt.folder / "output.log").open("a") as file:
            file.write(str(record["unsaid"]))
        files.write_whole(path, json.dumps({**record, "unsaid": ""}).encode())


def _seen(job: Job) -> State:
    """Its state; not that of no job at all, where the share is away or shows what is old. Raises OSError."""
    state = job.state()
    if not state.name:
        raise OSError(errno.ESTALE, "its log is empty just now", str(job.folder / "ev"))
    return state


def settle(found: store.Store, job: Job, spec: JobSpec) -> None:
    """The hints after an end: in line again, or in the archive."""
    state = _seen(job)
    if state.waiting:
        ready.publish(found, waiting(job.id, job.owner, spec, state))
    else:
        archive.add(found, job, spec, state)
    found.end(job)
