"""One job, whole: what was asked for, what happened, where its output is, and why it waits."""

from __future__ import annotations

from typing import Any

from mlbox.host import archive, lab, lookup, store
from mlbox.host.handlers.jobs import Reasons
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root)
    lab.identify(found.root)
    job = lookup.job(found, str(call.args.get("job", "")))
    spec, state = job.spec(), job.state()
    if not state.name:  # it was pruned just now
        raise lookup.absent(found, job.id)
    reply: Json = {
        "job": archive.summary(job, spec, state), "spec": spec.without_secrets().to_wire(), "events": job.events(),
        "folder": str(job.folder), "waits": {}, "progress": "", "silent": 0.0,
    }  # fmt: skip
    if state.live:
        reasons = Reasons(found, [job.owner])
        reply["silent"] = reasons.silent(state)
        if state.waiting:
            reply["waits"] = reasons.by_host(job, spec, state)
    if state.name == "claimed" and job.owner == found.user:
        note = job.attempt(state.attempt) / "progress"
        reply["progress"] = note.read_text(errors="replace")[:200] if note.is_file() else ""
    return reply
