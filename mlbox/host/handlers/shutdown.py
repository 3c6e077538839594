"""End a session. On return its container is gone and its GPUs are free, whoever kept it or nobody."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import Any

from mlbox import errors
from mlbox.host import keeper, processes, store
from mlbox.host.handlers.sessions import describe, pick
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root)
    job = pick(keeper.sweep(found), str(call.args.get("session", "")), found)
    described = describe(job)
    call.progress(text=f"ending {described['name']}")
    with job.keeper_lock.open("rb") as held:
        _signal_keeper(job)
        fcntl.flock(held, fcntl.LOCK_SH)  # the keeper's end, as an event
    return {"session": described, "freed": described["gpus"]}


def _signal_keeper(job: store.Job) -> None:
    """A pid alone could be a killed keeper's, given to another process since: its start time must match."""
    deadline = time.monotonic() + 5
    while keeper.lives(job) and time.monotonic() < deadline:
        known = store.read_json(job.keeper_pid) or {}
        pid = known.get("pid", 0)
        if pid and processes.started(pid) == known.get("started"):
            os.kill(pid, signal.SIGTERM)
            return
        time.sleep(0.02)
    if keeper.lives(job):
        raise errors.MlboxError(
            f"the keeper of session {job.id} can't be found", f"see {job.attempt}/keeper.log on the host"
        )
