"""Cancel a job, or by its name what is left of an array. A waiting one is cancelled on return; of a running one its
keeper is told, wherever it is. What a waiting one held up starts with the tick that the caller asks for behind all
that it cancels: with an earlier one, what is to be cancelled next might start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.log import State
from mlbox.host import able, attempts, keeping, lab, lookup, ready, store, view
from mlbox.host.job import Job
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    lab.identify(found.root)
    rules = lab.rules(found)
    wanted = str(call.args.get("job", ""))
    jobs = _meant(found, wanted)
    silent = view.silent(found, rules.lab)
    ended = [_cancel(call, found, rules, job, silent) for job in jobs]
    left = any(one["state"] == "cancelled" and not one["already"] for one in ended)  # the line
    elsewhere = able.others(found, rules.lab) if left and not found.dry else []
    return {**ended[0], "more": ended[1:], "elsewhere": elsewhere, "trouble": rules.trouble}


def _meant(found: store.Store, wanted: str) -> list[Job]:
    """One, or what is left of an array that is called so; all of it where nothing of that name is left to end."""
    try:
        return lookup.array(found, wanted) or [lookup.mine(found, wanted)]
    except errors.NotFound:
        with suppress(errors.NotFound):
            first = lookup.job(found, wanted, whole=True)
            spec = first.shown()
            if (first.owner, spec.name, spec.array) == (found.user, wanted, first.id):
                those = list(lookup.of_array(found, first))
                if not any(made.state().live for made in those):
                    return those
        raise


def _cancel(call: Call, found: store.Store, rules: lab.Rules, job: Job, silent: Mapping[str, float]) -> Json:
    if job.spec().session and job.state().running and not call.args.get("session"):
        raise errors.Usage(f"{job.spec().name} is a session", f"mlbox session shutdown {job.spec().name}")
    already, spec = not job.state().live, job.spec()
    state = request(found, job)
    host = str(state.facts.get("host", ""))
    if state.running and host == found.host and not found.dry:
        keeping.tell(job)
    return {
        "id": job.id, "name": spec.name, "array": spec.array, "array_index": spec.array_index,
        "state": state.name, "requested": state.requested, "already": already,
        "why": str(state.facts.get("why", "")), "host": host,
        "nudge": rules.lab.ssh_name(host) if state.running and host != found.host else "",
        "silent": silent.get(host, 0.0) if state.running else 0.0,
    }  # fmt: skip


def request(found: store.Store, job: Job) -> State:
    """The claim and the cancellation race for the same slot: one of them wins, and the loser looks again. Of a dry run,
    the state as it would be."""
    spec = job.spec()
    place = waiting(job.id, job.owner, spec, job.state())
    facts = {"at": time.time(), "by": found.user}
    while True:
        state = job.state()
        event = _event(state)
        said = {**facts, "why": f"cancelled by {found.user}"} if event == "cancelled" else facts
        if not event:
            return state
        if found.dry:
            return job.foreseen(event, said)
        if event == "cancelled" and job.append(event, said):
            attempts.settle(found, job, spec)
            ready.withdraw(found, place)  # last: while it is there, a tick finds what a crash left undone
            return job.state()
        if event == "cancel_requested" and job.append(event, said, state.attempt):
            found.mark_ending(job, str(state.facts.get("host", "")))
            return job.state()


def _event(state: State) -> str:
    """By which it is cancelled; empty where there is nothing to do."""
    if not state.live or state.requested == "cancel_requested":
        return ""
    return "cancelled" if state.waiting else "cancel_requested"
