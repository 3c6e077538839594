"""Move a waiting job: to another queue, another priority, or to the top or bottom of its own jobs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.log import said
from mlbox.core.schedule import Waiting
from mlbox.host import able, lab, lookup, ready, store, tick
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    lab.identify(found.root)
    job = lookup.mine(found, str(call.args.get("job", "")))
    spec, state = job.spec(), job.state()
    if not state.waiting:
        raise errors.Refused(
            f"job {spec.name} does not wait: it is {said(state.name)}", "only a waiting job can be moved"
        )
    now = waiting(job.id, job.owner, spec, state)
    to = _place(found, now, call.args)
    rules = lab.rules(found)
    if to.queue != now.queue:
        able.check(found, rules, to.queue, to.resources, spec.output_limit)
    elif not rules.usable:
        raise errors.HostUnready(rules.trouble, "mend lab.yaml first")
    JobSpec(command=("true",), queue=to.queue, priority=to.priority)  # within what a job may ask for
    reply = {"id": job.id, "name": spec.name, "queue": to.queue, "priority": to.priority, "started": False,
             "trouble": rules.trouble, "elsewhere": []}  # fmt: skip
    if found.dry:
        return reply
    elsewhere = able.elsewhere(found, rules.lab, to.queue, to.resources)
    facts = {"at": time.time(), "queue": to.queue, "priority": to.priority, "rank": to.rank}
    found.mark_making(job, moved=True)  # the next sweep puts it where its log has it
    if not job.append("moved", facts):
        found.unmark_making(job)
        raise errors.Refused(f"job {spec.name} has just been started", "mlbox show tells where")
    ready.publish(found, replace(to, moves=now.moves + 1))
    if (to.queue, to.priority, to.rank) != (now.queue, now.priority, now.rank):
        ready.withdraw(found, now)
    found.unmark_making(job)
    report = tick.behind(found)
    started = job.id in report.started
    told = {"trouble": rules.trouble or report.trouble, "elsewhere": [] if started else elsewhere}
    return {**reply, "started": started, **told}


def _place(found: store.Store, job: Waiting, args: Json) -> Waiting:
    queue, priority, where = args.get("queue") or job.queue, args.get("priority"), args.get("where", "")
    if type(priority) not in (int, type(None)) or where not in ("", "top", "bottom") or not isinstance(queue, str):
        raise errors.Usage("a job moves to a queue, a priority, the top or the bottom")
    to = replace(job, queue=queue, priority=job.priority if priority is None else priority)
    used = ready.ranks(found, found.user, to.queue, to.priority)
    if where:
        return replace(to, rank=min(used, default=0) - 1 if where == "top" else max(used, default=0) + 1)
    return replace(to, rank=0) if (to.queue, to.priority) != (job.queue, job.priority) else to
