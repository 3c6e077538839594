"""This host at a glance: its GPUs, who holds and uses them, this user's sessions, everybody's jobs, the queues."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from mlbox.core.lab import Lab
from mlbox.core.schedule import Running
from mlbox.host import inventory, lab, ready, store, view
from mlbox.host.engines import aside
from mlbox.host.handlers.sessions import describe, is_session, out_of_reach
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root)
    gpus, driver = inventory.gpus(found)
    sessions = [describe(job) for job in sweep(found) if is_session(job)]
    reply: Json = {
        "host": found.host, "driver": driver, "gpus": [inventory.to_wire(g) for g in gpus],
        "load": list(os.getloadavg()), "cpus": os.cpu_count() or 1, "sessions": sessions, "jobs": [], "queues": [],
    }  # fmt: skip
    if (found.root / "mlbox.json").exists():
        rules = lab.rules(found)
        left_alone = [f"{found.host}: {why}" for why in aside.words(found)]
        reply.update(_queue(found, rules.lab), trouble="\n".join(filter(None, (rules.trouble, *left_alone))))
    elif call.root is not None and not (found.root / "users").exists():  # it was named, and is empty, or not there
        reply["trouble"] = f"nothing of mlbox's is in {found.root} on {found.host}: is its filesystem mounted?"
    return reply


def _out_of_reach(found: store.Store, rules: Lab, running: list[Running], drained: Mapping[str, str]) -> list[Json]:
    """Hosts that can't be asked, as they last told of themselves, and how long ago they were seen (s)."""
    told = []
    own = {job["id"]: job for job in out_of_reach(found)}
    for name, host in rules.hosts.items():
        if not host.reverse or name == found.host:
            continue
        reports = [r for user in view.known_users(found) if (r := view.report(found, name, user))]
        document, seen = max(reports, key=lambda r: r[1], default=({}, 0.0))
        told.append({
            "host": name, "via": host.via, "age": max(0.0, time.time() - seen) if seen else None,
            "gpus": _held(document.get("gpus", []), [run for run in running if run.host == name]),
            "driver": str(document.get("driver", "")),
            "sessions": [job for job in own.values() if job["host"] == name], "drained": drained.get(name, ""),
            "jobs": [_job(found, run) for run in running if run.host == name and run.kind == "job"],
        })  # fmt: skip
    return told


def _silent(found: store.Store, rules: Lab, running: list[Running], drained: Mapping[str, str]) -> list[Json]:
    """Hosts of which nothing was heard, for how long (s), if lab.yaml names them or they run jobs."""
    told = []
    for name, silent in view.silent(found, rules).items():
        jobs = [_job(found, run) for run in running if run.host == name]
        if not rules.host(name).reverse and (jobs or name in rules.hosts):
            told.append({"host": name, "silent": silent, "jobs": jobs, "drained": drained.get(name, "")})
    return told


def _held(gpus: list[Json], running: list[Running]) -> list[Json]:
    """With their holders of now: a host tells of itself before it starts what it has chosen, not behind it."""
    holders = {uuid: {"user": run.owner, "session": run.id} for run in running for uuid in run.gpus}
    return [{**gpu, "holder": holders.get(gpu["uuid"])} for gpu in gpus]


def _job(found: store.Store, run: Running) -> Json:
    name = found.job(run.id, run.owner).shown().title
    return {"id": run.id, "name": name, "owner": run.owner, "queue": run.queue, "gpus": list(run.gpus),
            "since": run.started}  # fmt: skip


def _queue(found: store.Store, rules: Lab) -> Json:
    """The jobs that run here, and the queues as the whole lab has them."""
    users = list(view.known_users(found))
    everything = [run for user in users for run in view.running_of(found, user)]
    running = [run for run in everything if run.kind == "job"]
    paused, drained = view.marks(found.root / "paused"), view.marks(found.root / "drained")
    return {
        "jobs": [_job(found, run) for run in running if run.host == found.host],
        "lab": {name: ssh for name in rules.hosts if (ssh := rules.ssh_name(name))},
        "queues": [{"name": name, "waiting": sum(ready.count(found, user, name) for user in users),
                    "running": sum(run.queue == name for run in running), "paused": paused.get(name, "")}
                   for name in rules.queues],
        "drained": drained.get(found.host, ""), "out_of_reach": _out_of_reach(found, rules, everything, drained),
        "silent": _silent(found, rules, running, drained),
    }  # fmt: skip
