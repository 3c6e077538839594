"""A session whose keeper was killed: another one takes it over, or it has ended."""

from __future__ import annotations

import time

from mlbox.core.job import JobSpec
from mlbox.core.log import State, number
from mlbox.core.verdict import lost
from mlbox.host import engines, keeping, link, processes, store
from mlbox.host.job import Job
from mlbox.host.keeper import Claim, Keeper
from mlbox.host.usage import add as add_usage


def rescue(found: store.Store, job: Job, state: State, spec: JobSpec, keeper_lock: int) -> bool:
    """Adopt a session without a keeper, or end it; True when it lives on, and its new keeper has the lock. One from a
    queue may be in line again then: its hints are to follow."""
    if state.name == "started" and link.answers(job.sockets / "guest.sock"):
        facts, elapsed = state.facts, processes.since(state.facts.get("uptime"))
        limit = number(facts.get("time_limit"))
        claim = Claim(found, job, spec.work, "", tuple(facts.get("gpus", ())), state.attempt, time_limit=limit)
        keeping.detach(lambda: Keeper(claim, {}).adopt(elapsed), job.keeper_log(state), (keeper_lock,))
        return True
    engines.by_name(spec.work.runtime, found).remove(job.id, 0)
    rebooted = state.facts.get("boot") not in (None, processes.boot_id())
    why = "the host was restarted" if rebooted else "its keeper and its container or process ended"
    event = lost(spec, state, why, time.time())
    if job.append(str(event.pop("event")), event, state.attempt):
        add_usage(found, job, job.state())
    return False
