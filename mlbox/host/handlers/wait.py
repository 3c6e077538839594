"""Stay with a job in line until it runs or has ended: one connection, which says why it waits."""

from __future__ import annotations

from typing import Any

from mlbox.host import lab, lookup, store
from mlbox.host.handlers.jobs import Fresh
from mlbox.host.handlers.logs import pause
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root)
    lab.identify(found.root)
    job = lookup.mine(found, str(call.args.get("job", "")))
    reasons = Fresh(found, job)
    while True:
        state = job.state()
        host = str(state.facts.get("host", ""))
        if state.name == "started" or not state.live:
            place = lab.rules(found).lab.host(host)
            return {"state": state.name, "host": host, "ssh": place.ssh,
                    "via": place.via if place.reverse else "",
                    "why": str(state.facts.get("why", ""))}  # fmt: skip
        why = reasons.why(state) if state.waiting else f"starting on {host}"
        call.progress(state=state.name, why=why)
        pause()
