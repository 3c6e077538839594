"""The order: who goes first in the line, and who has to give way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mlbox.core.lab import Lab
from mlbox.core.schedule.view import Running, View, Waiting


def in_order(jobs: Iterable[Waiting], view: View, now: float) -> list[Waiting]:
    """Who goes first, of jobs in queues that the host serves. A rank counts among its owner's jobs only, and so does a
    priority beyond what the lab allows that user: whoever moves a job to the top passes nobody else's."""
    places = {name: number for number, name in enumerate(view.host.queues)}
    usage = used(view, now)
    turns: Counter[tuple[object, str]] = Counter()
    line = []
    for job in sorted(jobs, key=lambda job: (-job.priority, job.rank, job.id)):
        group = (places[job.queue], -view.lab.priority(job.owner, job.priority))
        turns[group, job.owner] += 1
        line.append(((group, turns[group, job.owner], usage[job.owner], job.id), job))
    return [job for _, job in sorted(line, key=lambda pair: pair[0])]


def used(view: View, now: float) -> Mapping[str, float]:
    """GPU-seconds per user, those of running jobs until now included. A job's end changes nothing in it:
    otherwise a user could be first while others' jobs run and last when they end, and wait for ever."""
    since: dict[tuple[str, str], float] = {}
    for run in view.running:
        for uuid in run.gpus:  # shares of one GPU are that GPU once
            since[run.owner, uuid] = min(run.started, since.get((run.owner, uuid), now))
    total = defaultdict(float, view.usage)
    for (owner, _), start in sorted(since.items()):
        total[owner] += min(now - start, view.lab.half_life)
    return total


def yields(run: Running, job: Waiting, lab: Lab, line: Sequence[str]) -> bool:
    """Whether `run` may be told to end for the job, where the queues of `line` are served: it has less priority, and is
    behind the job in the line too, for it would start again before the job otherwise."""
    queues = lab.queues
    if not queues[job.queue].preempts or run.queue not in queues or not queues[run.queue].preemptible:
        return False
    behind = run.queue not in line or line.index(run.queue) >= line.index(job.queue)
    of_one = run.owner == job.owner
    theirs = run.priority if of_one else lab.priority(run.owner, run.priority)
    ours = job.priority if of_one else lab.priority(job.owner, job.priority)
    return behind and (queues[run.queue].priority, theirs) < (queues[job.queue].priority, ours)
