"""Jobs as a table: what runs, what waits and why, and what ended lately."""

from __future__ import annotations

from typing import Any

from mlbox.host import archive, files, lab, ready, store, view
from mlbox.host.serve import Call

Json = dict[str, Any]
_WAITING, _ENDED = 200, 20


def run(call: Call) -> Json:
    found = store.Store(call.root)
    if call.root is None and not (found.root / "mlbox.json").exists():
        return {"host": found.host, "jobs": []}  # nobody has submitted anything here yet
    lab.identify(found.root)
    users = list(view.known_users(found)) if call.args.get("all") else [found.user]
    wanted, ended = call.args.get("queue", ""), call.args.get("ended", _ENDED)
    reasons = why_they_wait(found, users)
    rows = [row for user in users for row in _rows(found, user, reasons, int(ended))]
    return {"host": found.host, "jobs": [row for row in rows if not wanted or row["queue"] == wanted]}


def _rows(found: store.Store, user: str, reasons: Json, ended: int) -> list[Json]:
    rows: dict[str, Json] = {}
    for row in reversed(archive.latest(found, user, ended)):
        rows[str(row.get("id"))] = row
    for run in view.running_of(found, user):
        if run.kind == "job":
            rows.update(_row(found, run.id, user, ""))
    for queue in ready.queues(found, user):
        for job in ready.heads(found, user, queue, _WAITING):
            rows.update(_row(found, job.id, user, reasons.get(job.id, "")))
    return [rows[id_] for id_ in sorted(rows)]


def _row(found: store.Store, job: str, user: str, waits: str) -> dict[str, Json]:
    made = found.job(job, user)
    try:
        return {job: {**archive.summary(made, made.shown(), made.state()), "waits": waits}}
    except OSError:
        return {}


def why_they_wait(found: store.Store, users: list[str]) -> Json:
    """What the hosts last said; of a host that starts nothing the reason counts, not that it serves another queue."""
    reasons: Json = {}
    for user in users:
        for host in view.names(found.own(user) / "on"):
            told = files.read_json(found.on(host, user) / "waits.json")
            for job, why in (told if isinstance(told, dict) else {}).items():
                if job not in reasons or host == found.host:
                    reasons[str(job)] = str(why)
    return reasons
