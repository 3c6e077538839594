"""This host at a glance: its GPUs, who holds and uses them, this user's sessions, everybody's jobs, the queues."""

from __future__ import annotations

import os
from typing import Any

from mlbox.core.lab import Lab
from mlbox.host import inventory, lab, ready, store, view
from mlbox.host.handlers.sessions import describe, is_session
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root)
    gpus, driver = inventory.gpus()
    sessions = [describe(job) for job in sweep(found) if is_session(job)]
    reply: Json = {
        "host": found.host, "driver": driver, "gpus": [inventory.to_wire(g) for g in gpus],
        "load": list(os.getloadavg()), "cpus": os.cpu_count() or 1, "sessions": sessions, "jobs": [], "queues": [],
    }  # fmt: skip
    if (found.root / "mlbox.json").exists():
        rules = lab.rules(found)
        reply.update(_queue(found, rules.lab), trouble=rules.trouble)
    return reply


def _queue(found: store.Store, rules: Lab) -> Json:
    """The jobs that run here, and the queues as the whole lab has them."""
    users = list(view.known_users(found))
    running = [run for user in users for run in view.running_of(found, user) if run.kind == "job"]
    paused, drained = view.marks(found.root / "paused"), view.marks(found.root / "drained")
    return {
        "jobs": [{"id": run.id, "owner": run.owner, "queue": run.queue, "gpus": list(run.gpus), "since": run.started}
                 for run in running if run.host == found.host],
        "queues": [{"name": name, "waiting": sum(ready.count(found, user, name) for user in users),
                    "running": sum(run.queue == name for run in running), "paused": paused.get(name, "")}
                   for name in rules.queues],
        "drained": drained.get(found.host, ""),
    }  # fmt: skip
