"""End a session. On return its container is gone and its GPUs are free, whoever kept it or nobody."""

from __future__ import annotations

import fcntl
import threading
from typing import IO, Any

from mlbox import errors
from mlbox.core import ids
from mlbox.host import keeping, store
from mlbox.host.handlers.sessions import describe, is_session, pick
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]
_PATIENCE = 150.0  # s; an engine's stop and removal may take 70 s each


def run(call: Call) -> Json:
    found = store.Store(call.root)
    wanted = str(call.args.get("session", ""))
    live = [job for job in sweep(found) if is_session(job)]
    if ids.is_ulid(wanted) and wanted not in [job.id for job in live]:
        ended = found.job(wanted)
        state = ended.state()
        if state.name and not state.live:
            return {"session": describe(ended), "freed": [], "already": str(state.facts.get("why", state.name))}
    job = pick(live, wanted, found)
    described = describe(job)
    call.progress(text=f"ending {described['name']}")
    with job.keeper_lock.open("rb") as held:
        keeping.tell(job)
        _await_end(job, held)
    if job.state().live:
        raise errors.MlboxError(
            f"{described['name']} has not ended: what runs for it could not be removed",
            f"see {job.attempt(1)}/keeper.log on the host; any later call to it tries again",
        )
    return {"session": described, "freed": described["gpus"]}


def _await_end(job: store.Job, held: IO[bytes]) -> None:
    """The keeper's end, as an event: the kernel frees its lock. In a thread, so that the wait has an end too."""
    waiter = threading.Thread(target=fcntl.flock, args=(held, fcntl.LOCK_SH), daemon=True)
    waiter.start()
    waiter.join(_PATIENCE)
    if waiter.is_alive():
        raise errors.MlboxError(
            f"session {job.id} has not ended within {_PATIENCE:.0f} s",
            f"see {job.attempt(1)}/keeper.log on the host; it goes on ending",
        )
