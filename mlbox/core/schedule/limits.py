"""Limits: how many jobs and GPUs a queue, a user and an array may have at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set

from mlbox.core import text
from mlbox.core.lab import Lab
from mlbox.core.schedule.view import Running, Waiting

Key = tuple[str, ...]
_YOURS = "your limit in queue {}: "


class Tally:
    """How many jobs run and which GPUs are held, lab-wide, per queue, user and array. A share counts as its
    whole GPU, but several on one GPU count once."""

    def __init__(self, lab: Lab, running: Iterable[Running]) -> None:
        self._lab = lab
        self._jobs: Counter[Key] = Counter()
        self._gpus: dict[Key, set[str]] = defaultdict(set)
        for run in running:
            self.add(run, run.gpus)

    def add(self, job: Waiting | Running, gpus: Iterable[str]) -> None:
        keys: list[Key] = [("queue", job.queue), ("queue", job.queue, job.owner), ("user", job.owner)]
        self._jobs.update(keys + ([("array", job.array)] if job.array else []))
        for key in keys[1:]:
            self._gpus[key].update(gpus)

    def array_full(self, job: Waiting) -> bool:
        return bool(job.array) and self._jobs["array", job.array] >= job.array_limit > 0

    def full(self, job: Waiting) -> str:
        """Why one more job is too many."""
        rule, user = self._lab.queues[job.queue], self._lab.limits_of(job.owner)
        for key, limit, words in (
            (("array", job.array), job.array_limit if job.array else 0, "array limit: {0} of {1} running"),
            (("queue", job.queue), rule.max_running, f"queue {job.queue} is full: {{0}} of {{1}} running"),
            (("queue", job.queue, job.owner), rule.max_running_per_user, _YOURS.format(job.queue) + "{0} running"),
            (("user", job.owner), user.max_running, "your limit in this lab: {0} running"),
        ):
            if self._jobs[key] >= limit > 0:
                return words.format(self._jobs[key], limit)
        return ""

    def greedy(self, job: Waiting, more: int) -> tuple[str, Set[str]]:
        """Why `more` GPUs are too many, and those held already (a share may go there); or nothing."""
        rule, user = self._lab.queues[job.queue], self._lab.limits_of(job.owner)
        found: list[tuple[str, Set[str]]] = []
        for key, limit, words in (
            (("queue", job.queue, job.owner), rule.max_gpus_per_user, _YOURS.format(job.queue)),
            (("user", job.owner), user.max_gpus, "your limit in this lab: "),
        ):
            held = self._gpus[key]
            if more and len(held) + more > limit > 0:
                found.append(
                    (f"{words}{text.count(limit, 'GPU')}, you hold {len(held)} and this asks for {more}", held)
                )
        return min(found, key=lambda pair: len(pair[1]), default=("", frozenset()))


def limited(lab: Lab, job: Waiting) -> bool:
    """Whether there is any limit that the job could be beyond."""
    rule, user = lab.queues[job.queue], lab.limits_of(job.owner)
    of_queue = rule.max_running or rule.max_running_per_user or rule.max_gpus_per_user
    return bool(of_queue or user.max_running or user.max_gpus or (job.array and job.array_limit))


def exceeded(lab: Lab, running: Iterable[Running], job: Waiting, gpus: Sequence[str]) -> str:
    """Why the job with these GPUs is too much beside those that run."""
    tally = Tally(lab, running)
    greedy, held = tally.greedy(job, len(gpus))
    return tally.full(job) or ("" if job.resources.gpu_share and held >= set(gpus) else greedy)
