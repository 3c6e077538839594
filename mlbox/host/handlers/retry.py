"""Run an ended job once more: a new job from the same spec and code. What has ended stays as it ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.log import State, said
from mlbox.core.schedule import stuck
from mlbox.host import able, code, cron, lab, lookup, store, tick
from mlbox.host.handlers.submit import check, submit
from mlbox.host.job import Job
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    lab.identify(found.root)
    job = lookup.mine(found, str(call.args.get("job", "")))
    spec, state = job.whole(), job.state()
    if spec.session:
        raise errors.Usage(f"{spec.name} is a session", "mlbox session HOST starts another")
    if state.live:
        raise errors.Refused(f"job {spec.name} has not ended: it is {said(state.name)}", f"mlbox cancel {job.id} first")
    spec, rules = _once_more(job, spec, state), lab.rules(found)
    hosts = check(found, rules, spec)  # lab.yaml may have changed since
    if found.dry:
        _check_code(found, spec)
        return {"id": "", "name": spec.name, "of": job.id, "started": False, "waits": "", "elsewhere": []}
    with code.keeping(found):
        _check_code(found, spec)
        again = submit(found, spec)
    report = tick.behind(found)
    started = again.id in report.started
    why = stuck(spec.queue, spec.resources, rules.lab, hosts) or (report.waits or {}).get(again.id, "")
    elsewhere = able.elsewhere(found, rules.lab, spec.queue, spec.resources, hosts)
    return {
        "id": again.id, "name": spec.name, "of": job.id, "started": started, "host": found.host,
        "waits": "" if started else why, "trouble": rules.trouble or report.trouble,
        "elsewhere": [] if started else elsewhere, "unattended": "" if started else cron.missing(found),
    }  # fmt: skip


def _check_code(found: store.Store, spec: JobSpec) -> None:
    if spec.code and spec.code not in dict(code.kept(found)):
        raise errors.Refused(f"the code of job {spec.name} is not kept any more", "mlbox submit sends it anew")


def _once_more(job: Job, spec: JobSpec, state: State) -> JobSpec:
    """From where it was moved to; of an array this one alone, with its index, by which its command knows its part."""
    last = waiting(job.id, job.owner, spec, state)
    return replace(spec, after=(), array="", queue=last.queue, priority=last.priority)
