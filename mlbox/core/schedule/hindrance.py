"""What waits for something other than room: for other jobs, a time, its queue, its host."""

from __future__ import annotations

from collections.abc import Mapping

from mlbox.core import text
from mlbox.core.resources import fits
from mlbox.core.schedule.view import View, Waiting
from mlbox.core.schedule.words import clock, short

LONGEST_BACKOFF = 3600.0  # s
ENDED = frozenset(["finished", "failed", "cancelled"])


def dead(job: Waiting, states: Mapping[str, str]) -> str:
    """Why the job can never run any more."""
    for after in job.after:
        state = states.get(after.job, "")
        if after.end == "ok" and state in ENDED and state != "finished":
            return f"it was to run after job {short(after.job)}, which {_PAST[state]}"
    return ""


_PAST = {"failed": "failed", "cancelled": "was cancelled"}
_STATES = {"": "not found", "submitted": "waiting", "claimed": "starting", "started": "running"}


def hindrance(job: Waiting, view: View, now: float) -> str:
    """Why the job is in no line on this host at all."""
    host = view.host
    if job.queue not in view.lab.queues:
        return f"queue {job.queue} is not in lab.yaml; mlbox move puts the job in another"
    if job.queue not in host.queues:
        return f"{host.name} does not serve queue {job.queue}"
    for after in job.after:
        state = view.states.get(after.job, "")
        if state not in ENDED:
            return f"waits for job {short(after.job)} ({_STATES.get(state, state)})"
    if now < job.not_before <= now + LONGEST_BACKOFF:  # beyond speaks another clock, or ours as it was
        return f"retry not before {clock(job.not_before)} (in {text.duration(job.not_before - now)})"
    if job.queue in view.paused:
        return f"queue {job.queue} is paused" + (f" by {view.paused[job.queue]}" if view.paused[job.queue] else "")
    if host.drained:
        return f"host {host.name} is being drained"
    return fits(job.resources, host)
