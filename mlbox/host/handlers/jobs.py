"""Jobs as a table: what runs, what waits and why, and what ended lately."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from mlbox import errors
from mlbox.core import ids, text
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.log import WAITING, State
from mlbox.core.resources import fits
from mlbox.core.schedule import stuck
from mlbox.host import archive, files, lab, ready, store, view
from mlbox.host.job import Job
from mlbox.host.serve import Call

Json = dict[str, Any]
_WAITING, _OF_ARRAY, _ENDED = 200, 20, 20
_RENEWED = 3.0  # s


def run(call: Call) -> Json:
    found = store.Store(call.root)
    if call.root is None and not (found.root / "mlbox.json").exists():
        return {"host": found.host, "jobs": []}  # nobody has submitted anything here yet
    lab.identify(found.root)
    users = list(view.known_users(found)) if call.args.get("all") else [found.user]
    wanted, ended = call.args.get("queue", ""), call.args.get("ended", _ENDED)
    if wanted and wanted not in (queues := lab.rules(found).lab.queues):
        raise errors.NotFound(f"there is no queue {text.safe(str(wanted))}", "there are: " + ", ".join(queues))
    reasons = Reasons(found, users)
    rows = [row for user in users for row in _rows(found, user, reasons, int(ended), wanted)]
    of_array = {row.get("array"): row["waits"] for row in rows if row.get("waits")}
    for row in rows:  # those behind the first of an array that waits are not looked at one by one
        if row.get("state") in WAITING and row.get("array") and not row.get("waits"):
            row["waits"] = of_array.get(row["array"], "")
    jobs = [row for row in rows if not wanted or row["queue"] == wanted]
    return {"host": found.host, "jobs": jobs, "trouble": reasons.trouble}


def _rows(found: store.Store, user: str, reasons: Reasons, ended: int, wanted: str) -> list[Json]:
    """`ended`: how many of these, all of queue `wanted` where one is."""

    def is_meant(line: Json) -> bool:
        return wanted in ("", line["queue"]) and _is_left(found.job(line["id"], user))

    rows = {row["id"]: row for row in reversed(archive.latest(found, user, ended, is_meant))}
    running = [run.id for run in view.running_of(found, user) if run.kind == "job"]
    in_line = (shown for queue in ready.queues(found, user) for shown in _in_line(found, user, queue))
    for job, more in (*((job, 0) for job in running), *in_line):
        rows.update(_row(found, job, user, reasons, more))
    return [rows[id_] for id_ in sorted(rows)]


def _in_line(found: store.Store, user: str, queue: str) -> list[tuple[str, int]]:
    """The first of a line, and of each array in it; with how many wait behind each that are not shown."""
    shown: list[tuple[str, int]] = []
    of_array, following = 0, ""
    for those in ready.together(found, user, queue):
        of_array = of_array if those[0] == following else 0  # an array may fill several folders
        taken = min(_OF_ARRAY - of_array, _WAITING - len(shown), len(those))
        of_array += taken
        shown += [(job, 0) for job in those[:taken]]
        shown[-1] = (shown[-1][0], shown[-1][1] + len(those[taken:]))
        following = ids.following(those[-1])
    return shown


def _is_left(job: Job) -> bool:
    """It was not pruned since. One whose spec was lost, or that can't be looked at now, is told of all the same."""
    with suppress(OSError):
        return job.is_there() or (job.folder.exists() and not job.is_going())
    return True


def _row(found: store.Store, job: str, user: str, reasons: Reasons, more: int) -> dict[str, Json]:
    made = found.job(job, user)
    try:
        spec, state = made.shown(), made.state()
        if not state.name and not made.is_there():
            return {}  # a place in line, and no job
        waits = reasons.of(made, spec, state) if state.waiting else ""
        summary = archive.summary(made, spec, state)
        return {job: {**summary, "waits": waits, "silent": reasons.silent(state), "more": more}}
    except OSError:
        return {}


class Reasons:
    """Why jobs wait, as the hosts last said; where some could run the job, theirs alone."""

    def __init__(self, found: store.Store, users: list[str]) -> None:
        self._here, self._rules = found.host, lab.rules(found)
        self.trouble = self._rules.trouble  # lab.yaml's
        everybody = view.known_users(found)
        self._hosts = {host.name: host for host in view.published(found, self._rules.lab, everybody)}
        self._told: dict[str, dict[str, str]] = {}
        for user in users:
            for host in view.names(found.own(user) / "on"):
                told = files.read_json(found.on(host, user) / "waits.json")
                for job, why in (told if isinstance(told, dict) else {}).items():
                    self._told.setdefault(str(job), {})[host] = str(why)

    def silent(self, state: State) -> float:
        """s for which nothing has been heard of the host that runs it, where that is too long."""
        host = self._hosts.get(str(state.facts.get("host", ""))) if state.running else None
        return host.silent if host else 0.0

    def by_host(self, job: Job, spec: JobSpec, state: State) -> dict[str, str]:
        """By no host where it concerns all of them."""
        queue = waiting(job.id, job.owner, spec, state).queue
        why = stuck(queue, spec.resources, self._rules.lab, list(self._hosts.values()))
        if why and self._rules.usable:
            return {"": why}
        told = self._told.get(job.id, {})
        fit = {host for host in told if host not in self._hosts or not fits(spec.resources, self._hosts[host])}
        return {host: told[host] for host in sorted(fit or told, key=lambda host: (host != self._here, host))}

    def of(self, job: Job, spec: JobSpec, state: State) -> str:
        return next(iter(self.by_host(job, spec, state).values()), "")


class Fresh:
    """Why one job waits, for whoever looks again and again: all that all hosts tell is read for it."""

    def __init__(self, found: store.Store, job: Job) -> None:
        self._found, self._job, self._due, self._why = found, job, 0.0, ""

    def why(self, state: State) -> str:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _RENEWED
            self._why = Reasons(self._found, [self._job.owner]).of(self._job, self._job.spec(), state)
        return self._why
