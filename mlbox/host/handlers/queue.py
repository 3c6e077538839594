"""Queues: list them, make one, pause and resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlbox import errors
from mlbox.core import text
from mlbox.core.lab import Lab
from mlbox.host import lab, marks, ready, store, view
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    lab.identify(found.root)
    rules = lab.rules(found)
    queues, paused = rules.lab, view.marks(found.root / "paused")
    name, what = str(call.args.get("queue", "")), str(call.args.get("do", "list"))
    if what == "create":
        edit = _new(found, rules, name)
        queues = edit.lab
        if not found.dry:
            edit.write()
            queues = lab.rules(found).lab  # as the last good one from here on, should the next edit break the file
    elif what in ("pause", "resume"):
        if name not in queues.queues:
            raise errors.NotFound(f"there is no queue {text.safe(name)}", "there are: " + ", ".join(queues.queues))
        why = str(call.args.get("why", ""))
        paused = {**paused, name: view.said_by(found.user, why) if what == "pause" else ""}
        if found.dry:
            marks.check(found.root / "paused" / name)
        else:
            _pause(found, name, what == "pause", why)
    told = _list(found, queues, paused)
    serving = [host for queue in told if queue["name"] == name for host in queue["hosts"]]
    return {"host": found.host, "queues": told, "trouble": rules.trouble, "nudge": lab.others(found, serving)}


def _list(found: store.Store, rules: Lab, paused: Mapping[str, str]) -> list[Json]:
    users = list(view.known_users(found))
    running = [run for user in users for run in view.running_of(found, user)]
    hosts = view.published(found, rules, users)
    return [
        {
            "name": name, "waiting": sum(ready.count(found, user, name) for user in users),
            "running": sum(run.queue == name for run in running), "paused": paused.get(name, ""),
            "hosts": [host.name for host in hosts if name in host.queues],
            "time_limit": queue.time_limit, "max_running": queue.max_running,
        }
        for name, queue in rules.queues.items()
    ]  # fmt: skip


def _pause(found: store.Store, name: str, pause: bool, why: str) -> None:
    path = found.root / "paused" / name
    if pause:
        marks.leave(found, path, why)
    else:
        marks.take_back(path)


def _new(found: store.Store, rules: lab.Rules, name: str) -> lab.Edit:
    """A line in lab.yaml, which keeps its comments."""
    if not text.is_name(name):
        raise errors.Usage(f"{text.safe(name)[:80]!r} can't be a queue's name", text.name_hint(name))
    if rules.trouble:
        raise errors.Refused(f"lab.yaml is broken: {rules.trouble}", "mend it first")
    if name in rules.lab.queues:
        raise errors.Refused(f"there is a queue {name} already", "another name; mlbox queue list shows all there are")
    return lab.adding(found.root, "queues", name, "{}", "" if name == "default" else "  default: {}\n")
