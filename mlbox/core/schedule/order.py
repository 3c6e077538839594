"""The order: who goes first in the line, and on which host of the lab a job waits for room."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Callable

from mlbox.core.gpu import Gpu
from mlbox.core.resources import HostFacts, Resources, fits
from mlbox.core.schedule.view import View, Waiting


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


def reservation_host(job: Waiting, hosts: Iterable[HostFacts]) -> str:
    """The one host of the lab where the job waits for room: of those that can make it, the one with most
    matching GPUs free, ties by name. Every host computes the same from the published inventories."""
    able = [h for h in hosts if job.queue in h.queues and not h.away and not fits(job.resources, h)]
    able = [h for h in able if _matching(job.resources, h, lambda g: g.error) >= job.resources.gpus_on(h)]
    return min(((-_matching(job.resources, h, lambda g: g.obstacle), h.name) for h in able), default=(0, ""))[1]


def _matching(asked: Resources, host: HostFacts, obstacle: Callable[[Gpu], str]) -> int:
    return sum(asked.matches(g) and not obstacle(g) for g in host.gpus)


def reserved_on(host: str, jobs: Iterable[Waiting], hosts: Sequence[HostFacts]) -> frozenset[str]:
    """The jobs whose `reservation_host` is `host`: View.reserved_here."""
    found: dict[tuple[str, Resources], str] = {}
    reserved = []
    for job in jobs:
        key = (job.queue, job.resources)
        if key not in found:
            found[key] = reservation_host(job, hosts)
        if found[key] == host:
            reserved.append(job.id)
    return frozenset(reserved)
