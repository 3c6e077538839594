"""One pass over the queue, on request: `queue process`, and the laptop's word to a host that something changed."""

from __future__ import annotations

from typing import Any

from mlbox.host import store, tick
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    report = tick.foresee(found) if found.dry else tick.run(found)
    return {
        "host": found.host, "started": list(report.started), "preempted": list(report.preempted),
        "failed": list(report.failed), "waits": report.waits or {}, "trouble": report.trouble, "busy": report.busy,
        "whole": report.whole,
    }  # fmt: skip
