"""On which one host of the lab a job waits for room: where it could have it first.

    NOW         as far as it is free
    SOON        those that end, or may be told to end for the job, are gone
    a time      those with a time limit are
    SOME_DAY    a job without one ends by itself
    ENDLESS     a session does by its user's word, and of what a stranger has nobody knows

Every host's ticks come to the same by themselves, from inventories and live hints: so no clock is read, and nothing is
reckoned with that only a host itself sees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from mlbox.core.lab import Lab
from mlbox.core.resources import HostFacts, fits
from mlbox.core.schedule.order import yields
from mlbox.core.schedule.room import ENDLESS, Room
from mlbox.core.schedule.view import Running, View, Waiting

SOON, SOME_DAY = -1e15, 1e15  # before and after all times that a hint may tell


def reserved_on(view: View, others: Iterable[HostFacts]) -> frozenset[str]:
    """The waiting jobs that wait for room on the view's host: View.reserved_here. `others`: the lab's other hosts."""
    rooms = _Rooms(view.lab, view.running)
    hosts = (view.host, *others)
    found: dict[tuple[object, ...], str] = {}
    reserved = []
    for job in view.waiting:
        able = [host for host in hosts if (job.owner, job.id) not in host.unable]
        key = (job.resources, tuple(host.name for host in able), *rooms.sort(job))
        if key not in found:
            found[key] = rooms.first(job, able)
        if found[key] == view.host.name:
            reserved.append(job.id)
    return frozenset(reserved)


class _Rooms:
    """Who holds what on each host, in the eyes of those who ask."""

    def __init__(self, lab: Lab, running: Iterable[Running]) -> None:
        self._lab = lab
        self._running: dict[str, list[Running]] = defaultdict(list)
        for run in running:
            self._running[run.host].append(run)
        self._made: dict[tuple[object, ...], Room] = {}

    def first(self, job: Waiting, hosts: Iterable[HostFacts]) -> str:
        """Of equals the host with most of it free, for that one keeps it; then by name. Empty where there is none."""
        able = [h for h in hosts if job.queue in h.queues and not h.away and not fits(job.resources, h)]
        places = []
        for host in able:
            room = self._room(host, job)
            at = room.earliest(job.resources)
            if at is not None:
                free = len(room.open(job.resources)) if job.resources.gpus_on(host) else room.cpus()
                places.append((at, -free, host.name))
        return min(places, default=(0, 0, ""))[2]

    def sort(self, job: Waiting) -> tuple[object, ...]:
        """Jobs for which the same give way."""
        return (job.queue, job.owner, job.priority) if self._lab.queues[job.queue].preempts else (job.queue,)

    def _room(self, host: HostFacts, job: Waiting) -> Room:
        key = (host.name, *self.sort(job))
        if key not in self._made:

            def gone(run: Running) -> float:
                if run.ending or yields(run, job, self._lab, host.queues):
                    return SOON
                if run.time_limit:
                    return run.started + run.time_limit
                return ENDLESS if run.kind == "session" else SOME_DAY

            self._made[key] = Room(View(host, self._lab, running=self._running[host.name]), gone)
        return self._made[key]
