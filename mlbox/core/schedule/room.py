"""Room: what the host has, who holds what of it until when, and what is kept for the first that has to wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Callable

from mlbox.core import gpu
from mlbox.core.gpu import Gpu, GpuRequest
from mlbox.core.resources import Resources, size
from mlbox.core.schedule.view import Running, View, Waiting
from mlbox.core.schedule.words import short, who

ENDLESS = float("inf")
NOW = -ENDLESS  # as a time to look at: whatever has not ended yet is still there
GRACE = 60.0  # s that a job may take to be gone once its time is up


@dataclass(frozen=True)
class Claim:
    """What holds a part of the host: a job that runs or is planned, or a stranger on a GPU."""

    id: str
    words: str
    gpus: tuple[str, ...]
    share: int = 0
    cpus: int = 0
    memory: int = 0
    until: float = ENDLESS


def _claims(view: View, end_of: Callable[[Running], float]) -> Iterator[Claim]:
    here = {run.id: run for run in view.running if run.host == view.host.name}
    for run in here.values():
        words = f"held by {who(run)}" + (", which is ending" if run.ending else "")
        yield Claim(run.id, words, run.gpus, run.share, run.cpus, run.memory, end_of(run))
    for uuid, leases in view.shares.items():
        for job, memory in leases.items():
            if job not in here:
                yield Claim(job, f"shared with job {short(job)}", (uuid,), memory)
    alone = {uuid for run in here.values() if not run.share for uuid in run.gpus}
    shared = {uuid for run in here.values() if run.share for uuid in run.gpus}.union(view.shares)
    for card in view.host.gpus:  # the processes on a GPU that a job has alone are the job's
        obstacle = (replace(card, holder=None) if card.uuid in shared else card).obstacle
        if obstacle and card.uuid not in alone:
            yield Claim(card.uuid, obstacle, (card.uuid,))


def expected_end(run: Running, now: float) -> float:
    return now + GRACE if run.ending else end(run.started, run.time_limit, now)


def end(started: float, limit: int, now: float) -> float:
    """When a job with this time limit (s; 0: none) is gone. The grace is everybody's: given to those that run alone, it
    moved on before the first in line, and whoever asked for less than it would always have ended by then."""
    return max(started + limit, now) + GRACE if limit else ENDLESS


class Room:
    """What the host has, and who holds what of it until when (`end_of`). A broken GPU is no part of it."""

    def __init__(self, view: View, end_of: Callable[[Running], float]) -> None:
        self._host = view.host
        self.cards = sorted((g for g in view.host.gpus if not g.error), key=lambda g: g.index)
        self._unasked = 0  # MiB that strangers use, or jobs beyond what they asked for
        self.claims: dict[str, Claim] = {}
        self.on: dict[str, dict[str, Claim]] = defaultdict(dict)  # by GPU
        for claim in _claims(view, end_of):
            self.add(claim)
        if view.memory_free is not None:
            self._unasked = max(0, self.memory() - view.memory_free)

    def add(self, claim: Claim) -> None:
        self.claims[claim.id] = claim
        for uuid in claim.gpus:
            self.on[uuid][claim.id] = claim

    def remove(self, job: str) -> Claim:
        claim = self.claims.pop(job)
        for uuid in claim.gpus:
            del self.on[uuid][job]
        return claim

    def cpus(self, at: float = NOW) -> int:
        return self._host.cpus - sum(c.cpus for c in self.claims.values() if c.until > at)

    def memory(self, at: float = NOW) -> int:
        held = sum(c.memory for c in self.claims.values() if c.until > at)
        return self._host.memory - held - (self._unasked if at == NOW else 0)

    def left(self, card: Gpu, at: float = NOW) -> int:
        """MiB of the GPU that shares may still have; less than its size as soon as anybody is on it."""
        there = self._there(card, at)
        if any(not c.share for c in there):
            return 0
        return size(card) - sum(c.share for c in there)

    def _there(self, card: Gpu, at: float) -> list[Claim]:
        return [c for c in self.on[card.uuid].values() if c.until > at]

    def open(self, asked: Resources, at: float = NOW) -> list[Gpu]:
        """The GPUs that would do, as far as they are free."""
        return [g for g in self.cards if asked.matches(g) and self._is_open(g, asked.gpu_share, at)]

    def _is_open(self, card: Gpu, share: int, at: float) -> bool:
        """Not by memory where it is asked for as a whole: one that has none of its own is no less in use."""
        return self.left(card, at) >= share if share else not self._there(card, at)

    def _suitable(self, asked: Resources, at: float, barred: Set[str] = frozenset()) -> list[Gpu] | None:
        """Enough GPUs to choose from, where there are CPUs and memory too."""
        if asked.cpus > max(0, self.cpus(at)) or asked.memory > max(0, self.memory(at)):
            return None
        wanted = asked.gpus_on(self._host)
        found = [g for g in self.open(asked, at) if g.uuid not in barred] if wanted else []
        return found if len(found) >= wanted else None

    def place(self, asked: Resources, at: float = NOW, barred: Set[str] = frozenset()) -> tuple[str, ...] | None:
        """The GPUs to take, by UUID (none for a job without); None where there is no room."""
        found = self._suitable(asked, at, barred)
        wanted = asked.gpus_on(self._host)
        if found is None or not wanted:
            return None if found is None else ()
        request = asked.request
        if asked.gpu_share:  # the fullest, so that whole GPUs stay free
            best = min(gpu.preference(g.name, request.name) for g in found)
            found = [g for g in found if gpu.preference(g.name, request.name) == best]
            return (min(found, key=lambda g: (not self.on[g.uuid], self.left(g, at), g.index)).uuid,)
        bare = [replace(g, holder=None, processes=()) for g in found]
        return tuple(g.uuid for g in gpu.choose(GpuRequest(wanted, request.name, request.uuids), bare).gpus)

    def earliest(self, asked: Resources) -> float | None:
        """When there is room, as claims end (NOW: now); None if there never will be."""
        if self._suitable(asked, ENDLESS) is None:
            return None
        times = sorted({NOW, ENDLESS}.union(claim.until for claim in self.claims.values()))
        first, last = 0, len(times) - 1
        while first < last:  # with every end there is more room
            middle = (first + last) // 2
            if self._suitable(asked, times[middle]) is None:
                first = middle + 1
            else:
                last = middle
        return times[first]


@dataclass(frozen=True)
class Kept:
    """The reservation of the first job that has to wait for room: from when, and which GPUs."""

    job: Waiting
    at: float
    gpus: frozenset[str]
    lacks: str  # in words


def reserve(job: Waiting, room: Room, wanted: int, lacks: str) -> Kept | None:
    """The earliest time at which there is room, by the time limits of all; None if there never will be."""
    asked = job.resources
    at = room.earliest(asked)
    if at is None:
        return None
    free_from = {g: max((c.until for c in room.on[g.uuid].values()), default=NOW) for g in room.open(asked, at)}
    if at == ENDLESS:  # nobody knows which are next: the free ones first
        found = sorted(free_from, key=lambda g: (free_from[g], -room.left(g), g.index))
    else:  # the last to come free, so that others may have those that are free now
        found = sorted(free_from, key=lambda g: (-free_from[g], g.index))
    return Kept(job, at, frozenset(g.uuid for g in found[:wanted]), lacks)
