"""A person's word about a host: drain and resume it, or declare it gone (fence)."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from mlbox import errors
from mlbox.core import ids, resources, text
from mlbox.core import job as jobs
from mlbox.core.job import Outcome
from mlbox.host import batch, lab, ready, store, view
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root)
    lab.identify(found.root)
    name, what = str(call.args.get("name", "")) or found.host, str(call.args.get("do", ""))
    if not resources.is_label(name):
        raise errors.Usage(f"{text.safe(name)!r} can't be a host's name")
    path = found.root / "drained" / name
    if what == "drain":
        path.parent.mkdir(exist_ok=True)
        said = {"by": found.user, "at": time.time(), "why": str(call.args.get("why", ""))}
        store.write_whole(path, json.dumps(said).encode(), 0o644)
    elif what == "resume":
        path.unlink(missing_ok=True)
    elif what == "fence":
        return {"host": name, "requeued": _fence(found, name)}
    else:
        raise errors.Usage("a host is drained, resumed or fenced")
    running = [run.id for user in view.known_users(found) for run in view.running_of(found, user) if run.host == name]
    return {"host": name, "drained": path.exists(), "running": running}


def _fence(found: store.Store, name: str) -> list[str]:
    """`name` is gone for good, says a person: this user's jobs there are in line again, whatever it was doing.

    Should it come back all the same, it finds the later claim, ends its container and counts for nothing."""
    if name == found.host:
        raise errors.Refused(f"{name} is the host that answers this, so it is not gone", "mlbox host drain")
    requeued = []
    for id_ in view.names(found.on(name) / "live"):
        if not ids.is_ulid(id_):
            continue
        job = found.job(id_)
        job.log().fence(name)
        spec, state = job.spec(), job.state()
        if state.running and state.facts.get("host") == name:
            lost = Outcome(lost=f"host {name} was declared gone by {found.user}")
            event = jobs.verdict(spec, state, lost, time.time())
            job.append(str(event.pop("event")), event, state.attempt)
            state = job.state()
        if state.waiting:
            ready.publish(found, jobs.waiting(job.id, job.owner, spec, state))
            requeued.append(job.id)
        os.unlink(found.on(name) / "live" / id_)
        if not state.live:
            batch.settle(found, job, spec)
    return requeued
