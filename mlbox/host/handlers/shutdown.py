"""End a session. On return its container is gone and its GPUs are free, whoever kept it or nobody."""

from __future__ import annotations

import fcntl
import threading
import time
from typing import IO, Any

from mlbox import errors
from mlbox.core import ids
from mlbox.host import keeping, store
from mlbox.host.handlers import cancel
from mlbox.host.handlers.logs import pause
from mlbox.host.handlers.sessions import describe, is_session, out_of_reach, pick_own
from mlbox.host.job import Job
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]
_PATIENCE = 150.0  # s; an engine's stop and removal may take 70 s each


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    wanted = str(call.args.get("session", ""))
    live = [job for job in sweep(found) if is_session(job)]
    if ids.is_ulid(wanted) and wanted not in [job.id for job in live]:
        ended = found.job(wanted)
        state = ended.state()
        if state.name and not state.live:
            return {"session": describe(ended), "freed": [], "already": str(state.facts.get("why", state.name))}
    if wanted not in ("", *(job.id for job in live), *(describe(job)["name"] for job in live)):
        for session in out_of_reach(found):
            if wanted in (session["id"], session["name"]):
                return _elsewhere(call, found, session)
    job = pick_own(live, wanted, found)
    described = describe(job)
    if found.dry:
        return {"session": described, "freed": described["gpus"]}
    call.progress(text=f"ending {described['name']}")
    with job.keeper_lock.open("rb") as held:
        keeping.tell(job)
        _await_end(job, held)
    if job.state().live:
        raise errors.MlboxError(
            f"{described['name']} has not ended: what runs for it could not be removed",
            f"see {job.keeper_log(job.state())} on the host; any later call to it tries again",
        )
    return {"session": described, "freed": described["gpus"]}


def _elsewhere(call: Call, found: store.Store, session: Json) -> Json:
    """On a host that can't be asked: the word goes into the log, where that one's keeper finds it within seconds."""
    if found.dry:
        return {"session": session, "freed": session["gpus"]}
    job, deadline = found.job(session["id"]), time.monotonic() + _PATIENCE
    call.progress(text=f"ending {session['name']} on {session['host']}")
    cancel.request(found, job)
    while job.state().live:
        if time.monotonic() > deadline:
            raise errors.MlboxError(
                f"{session['name']} on {session['host']} has not ended within {_PATIENCE:.0f} s",
                f"is {session['host']} on, and its cron at work? it ends the session as soon as it reads its log",
            )
        pause()
    return {"session": session, "freed": session["gpus"]}


def _await_end(job: Job, held: IO[bytes]) -> None:
    """The keeper's end, as an event: the kernel frees its lock. In a thread, so that the wait has an end too."""
    waiter = threading.Thread(target=fcntl.flock, args=(held, fcntl.LOCK_SH), daemon=True)
    waiter.start()
    waiter.join(_PATIENCE)
    if waiter.is_alive():
        raise errors.MlboxError(
            f"session {job.id} has not ended within {_PATIENCE:.0f} s",
            f"see {job.keeper_log(job.state())} on the host; it goes on ending",
        )
