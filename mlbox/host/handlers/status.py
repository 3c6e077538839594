"""This host at a glance: its GPUs, who holds and uses them, and this user's sessions."""

from __future__ import annotations

import os
from typing import Any

from mlbox.host import inventory, keeper, store
from mlbox.host.handlers.sessions import describe
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root)
    gpus, driver = inventory.gpus()
    return {
        "host": found.host,
        "driver": driver,
        "gpus": [inventory.to_wire(g) for g in gpus],
        "load": list(os.getloadavg()),
        "cpus": os.cpu_count() or 1,
        "sessions": [describe(job) for job in keeper.sweep(found)],
    }
