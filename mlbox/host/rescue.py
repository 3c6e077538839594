"""A session whose keeper was killed: another one takes it over, or it has ended."""

from __future__ import annotations

import time

from mlbox.core.log import State, number
from mlbox.core.session import Spec
from mlbox.host import engines, keeping, link, processes, store
from mlbox.host.job import Job
from mlbox.host.keeper import Claim, Keeper
from mlbox.host.usage import add as add_usage


def rescue(found: store.Store, job: Job, state: State, spec: Spec, keeper_lock: int) -> bool:
    """Adopt a session without a keeper, or end it; True when it lives on, and its new keeper has the lock."""
    if state.name == "started" and link.answers(job.sockets / "guest.sock"):
        facts, elapsed = state.facts, processes.since(state.facts.get("uptime"))
        limit = number(facts.get("time_limit"))
        claim = Claim(found, job, spec, "", tuple(facts.get("gpus", ())), state.attempt, time_limit=limit)
        keeping.detach(lambda: Keeper(claim, {}).adopt(elapsed), job.attempt(1) / "keeper.log", (keeper_lock,))
        return True
    engines.by_name(spec.runtime, found).remove(job.id, 0)
    rebooted = state.facts.get("boot") not in (None, processes.boot_id())
    why = "the host was restarted" if rebooted else "its keeper and its container or process ended"
    if job.append("failed", {"at": time.time(), "reason": "lost", "why": why}, state.attempt):
        add_usage(found, job, job.state())
    found.end(job)
    return False
