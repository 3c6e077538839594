"""What waits for something other than room: for other jobs, a time, its queue, its host, or for any host at all."""

from __future__ import annotations

from collections.abc import Collection

from mlbox.core import text
from mlbox.core.lab import Lab
from mlbox.core.resources import HostFacts, Resources, fits
from mlbox.core.schedule.after import After, Ends
from mlbox.core.schedule.view import View, Waiting
from mlbox.core.schedule.words import clock, short

LONGEST_BACKOFF = 3600.0  # s
ENDED = frozenset(["finished", "failed", "cancelled"])


def dead(job: Waiting, view: View) -> str:
    """Why the job can never run any more."""
    for after in job.after:
        bad, state = _ends(after, view).bad, view.states.get(after.job, "")
        if after.array and after.end == "ok" and bad:
            return f"it was to run after array {short(after.job)}, of which {text.count(bad, 'job')} did not succeed"
        if not after.array and after.end == "ok" and state in _PAST:
            return f"it was to run after job {short(after.job)}, which {_PAST[state]}"
    return ""


def _ends(after: After, view: View) -> Ends:
    return view.arrays.get((after.job, after.array), Ends())


_PAST = {"failed": "failed", "cancelled": "was cancelled"}
_STATES = {"": "not found", "submitted": "waiting", "claimed": "starting", "started": "running"}


def hindrance(job: Waiting, view: View, now: float) -> str:
    """Why the job, in a queue that this host serves, is in no line on it at all."""
    host = view.host
    for after in job.after:
        left, state = after.array - _ends(after, view).ended, view.states.get(after.job, "")
        if after.array and left:
            return f"waits for {left} of {after.array} of array {short(after.job)}"
        if not after.array and state not in ENDED:
            return f"waits for job {short(after.job)} ({_STATES.get(state, state)})"
    if now < job.not_before <= now + LONGEST_BACKOFF:  # beyond speaks another clock, or ours as it was
        rest = job.not_before - now
        soon = f" (in {text.duration(rest)})" if rest >= 60 else ""  # without cron this stays as it was told
        return f"retry not before {clock(job.not_before)}{soon}, with cron's next pass"
    if job.queue in view.paused:
        return f"queue {job.queue} is paused" + (f" by {view.paused[job.queue]}" if view.paused[job.queue] else "")
    if host.drained:
        return f"host {host.name} is being drained"
    return fits(job.resources, host) or host.unable.get(job.turn, "")


def unserved(queue: str, lab: Lab, hosts: Collection[HostFacts]) -> str:
    """Why no host at all looks into the queue; `hosts`: all of the lab that have ever told of themselves."""
    if queue not in lab.queues:
        return f"queue {queue} is not in lab.yaml"
    served = {name for host in hosts for name in host.queues}.union(*(host.queues for host in lab.hosts.values()))
    return f"no host serves queue {queue}" if queue not in served and (hosts or lab.hosts) else ""


def stuck(queue: str, asked: Resources, lab: Lab, hosts: Collection[HostFacts]) -> str:
    """Why no host of the lab would start it now, which none of their ticks can say; empty where one may, or none could
    ever."""
    why = unserved(queue, lab, hosts)
    if why:
        return f"{why}; mlbox move puts the job in another"
    able = {host.name: host.away for host in hosts if queue in host.queues and not fits(asked, host)}
    known = {host.name for host in hosts}
    for host in lab.hosts.values():
        if host.name not in known and queue in host.queues and asked.may_be_on(host.name, host.labels):
            able[host.name] = "has never been heard of"
    if not able or not all(able.values()):
        return ""
    if len(able) == 1:
        return "".join(f"only {name} could run it, and it {state}" for name, state in able.items())
    return "of those that could run it, " + ", and ".join(f"{name} {state}" for name, state in sorted(able.items()))
