"""A host is gone for good, by a person's word: what it ran is lost, and is in line again."""

from __future__ import annotations

import time
from typing import Any

from mlbox.core import ids
from mlbox.core.hints import waiting
from mlbox.core.log import State
from mlbox.core.verdict import lost
from mlbox.host import attempts, ready, store, view
from mlbox.host.job import Job

Json = dict[str, Any]


def host(found: store.Store, name: str) -> list[str]:
    """`name` is gone for good, says a person: this user's jobs there are in line again, whatever it was doing.

    Should it come back all the same, it finds its marks fenced, ends what it runs, and that counts for nothing."""
    requeued = []
    for id_ in view.names(found.on(name) / "live"):
        if not ids.is_ulid(id_):
            continue
        job = found.job(id_)
        if found.is_fenced(job, name):
            continue
        if found.dry:
            requeued += [job.id] if _loss(found, job, name)[1].waiting else []
            continue
        job.log().fence(name)
        spec = job.shown()  # of one whose spec is lost, the next claim says so; the others go on
        event, state = _loss(found, job, name)
        if event:
            job.append(str(event.pop("event")), event, state.attempt)
            state = job.state()
        if state.waiting:
            ready.publish(found, waiting(job.id, job.owner, spec, state))
            requeued.append(job.id)
        found.mark_fenced(job, name)
        if not state.live:
            attempts.settle(found, job, spec)
    return requeued


def _loss(found: store.Store, job: Job, name: str) -> tuple[Json, State]:
    """The event by which it is lost on `name`, empty where it does not run there; and its state behind that."""
    state = job.state()
    if not state.running or state.facts.get("host") != name:
        return {}, state
    event = lost(job.shown(), state, f"host {name} was declared gone by {found.user}", time.time())
    return event, job.foreseen(event["event"], event)
