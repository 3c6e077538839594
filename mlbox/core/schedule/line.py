"""One pass over the line: who starts, who is preempted, who waits and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import replace

from mlbox.core import text
from mlbox.core.gpu import Gpu
from mlbox.core.lab import Queue
from mlbox.core.resources import GIB, Resources
from mlbox.core.schedule.hindrance import dead, hindrance
from mlbox.core.schedule.limits import Tally
from mlbox.core.schedule.order import in_order, yields
from mlbox.core.schedule.room import ENDLESS, GRACE, NOW, Claim, Kept, Room, end, expected_end, reserve
from mlbox.core.schedule.view import Plan, Running, Start, View, Waiting
from mlbox.core.schedule.words import are_free, ordinal, who

SAID = 4  # holders of GPUs that a reason lists


def plan(view: View, now: float) -> Plan:
    work = _Work(view, now)
    ready = []
    for job in view.waiting:
        why = dead(job, view)
        if why and view.acting in (None, job.owner):
            work.fail[job.id] = text.safe(why)
        elif why or (why := hindrance(job, view, now)):
            work.waits[job.id] = text.safe(why)
        else:
            ready.append(job)
    for job in in_order(ready, view, now):
        work.consider(job)
    return work.plan()


class _Work:
    """The plan in the making."""

    def __init__(self, view: View, now: float) -> None:
        self._view, self._now = view, now
        self._room = Room(view, lambda run: expected_end(run, now))
        self._tally = Tally(view.lab, view.running)
        self._kept: Kept | None = None
        self._line: Counter[str] = Counter()
        self._stuck: dict[tuple[object, ...], str] = {}  # why, for all who ask for the same, until room changes
        self._ending = {run.id for run in view.running if run.ending}  # and who is to end by this plan
        self._made_for: set[str] = set()  # by the end of others
        self.start: list[Start] = []
        self.preempt: dict[str, str] = {}
        self.fail: dict[str, str] = {}
        self.waits: dict[str, str] = {}

    def plan(self) -> Plan:
        kept = {self._kept.job.id} if self._kept else set()
        return Plan(tuple(self.start), self.preempt, self.fail, self.waits, frozenset(kept | self._made_for))

    def consider(self, job: Waiting) -> None:
        asked, here = job.resources, job.id in self._view.reserved_here
        wanted = asked.gpus_on(self._view.host)
        full = self._tally.full(job)
        greedy, held = self._tally.greedy(job, wanted)
        if full or (greedy and not asked.gpu_share):
            return self._wait(job, full or greedy, in_line=False)
        barred = frozenset(g.uuid for g in self._room.cards if greedy and g.uuid not in held)
        # In a queue, nobody has more priority than those before; a user may, over that user's own jobs only.
        key = (job.queue, asked, here, job.owner if self._rule(job).preempts else "")
        if barred or key not in self._stuck:
            found = self._find(job, barred)
            if found is not None:
                return self._take(job, found)
            if barred:
                return self._wait(job, greedy, in_line=False)
            if here and self._make_room(job):
                return None
            if here and self._kept is None:
                self._kept = reserve(job, self._room, wanted, self._lack(job)[0])
                if self._kept:
                    return self._wait(job, self._shortage(job) + self._expected(self._kept))
            self._stuck[key] = self._shortage(job)
        return self._wait(job, self._stuck[key])

    def _rule(self, job: Waiting) -> Queue:
        return self._view.lab.queues[job.queue]

    def _until(self, job: Waiting) -> float:
        limit = self._rule(job).time_limit_for(job.resources.time_limit)
        return end(self._now, limit, self._now)

    def _find(self, job: Waiting, barred: Set[str] = frozenset()) -> tuple[str, ...] | None:
        """GPUs to start on without delaying the job that room is kept for."""
        kept = self._kept
        if kept and not self._until(job) <= kept.at < ENDLESS:
            at = kept.at if kept.at < ENDLESS else NOW
            asked, first = job.resources, kept.job.resources
            if asked.cpus > max(0, self._room.cpus(at) - first.cpus):
                return None
            if asked.memory > max(0, self._room.memory(at) - first.memory):
                return None
            barred = barred | kept.gpus
        return self._room.place(job.resources, NOW, barred)

    def _take(self, job: Waiting, gpus: tuple[str, ...]) -> None:
        self._hold(job, gpus)
        if self._view.acting in (None, job.owner):
            limit = self._rule(job).time_limit_for(job.resources.time_limit)
            self.start.append(Start(job.id, gpus, job.resources.gpu_share, limit))
        else:
            self._wait(job, f"starts at {job.owner}'s next tick on {self._view.host.name}")

    def _hold(self, job: Waiting, gpus: tuple[str, ...]) -> None:
        asked, words = job.resources, f"kept for {who(job)}, which is ahead"
        self._room.add(Claim(job.id, words, gpus, asked.gpu_share, asked.cpus, asked.memory, self._until(job)))
        self._tally.add(job, gpus)
        self._stuck.clear()

    # ---- preemption

    def _make_room(self, job: Waiting) -> bool:
        """Whether others are told to end for the job, or are ending: the room is then taken for it."""
        if not self._rule(job).preempts:
            return False
        victims = self._victims(job)
        claims = [self._room.remove(run.id) for run in victims]
        gpus = self._find(job) if victims else None
        for claim in claims:  # until they are gone, what they hold is theirs
            self._room.add(replace(claim, until=min(claim.until, self._now + GRACE)))
        if gpus is None:
            return False
        mine = [run for run in victims if self._view.acting in (None, run.owner) and run.id not in self._ending]
        self.preempt.update((run.id, job.id) for run in mine)
        self._ending.update(run.id for run in victims)
        self._hold(job, gpus)
        self._made_for.add(job.id)
        self._wait(job, "starts when room is made by the end of " + " and ".join(map(who, victims)))
        return True

    def _victims(self, job: Waiting) -> list[Running]:
        """Those whose end lets the job start: what ends anyway, and of the others the fewest, the youngest."""
        runs = [r for r in self._view.running if r.id in self._room.claims]
        lab, line = self._view.lab, self._view.host.queues
        runs = [r for r in runs if r.id in self._ending or yields(r, job, lab, line)]
        runs.sort(key=lambda r: (r.id in self._ending, self._worth(r, job.resources), r.started, r.id))
        gone = {run.id: self._room.remove(run.id) for run in runs}
        enough = self._find(job) is not None
        for run in runs if enough else ():  # whoever can stay, stays: the least useful first, then the oldest
            self._room.add(gone[run.id])
            if self._find(job) is not None:
                del gone[run.id]
            else:
                self._room.remove(run.id)
        for claim in gone.values():
            self._room.add(claim)
        return [run for run in runs if run.id in gone] if enough else []

    def _worth(self, run: Running, asked: Resources) -> float:
        """How much of what the job lacks would come free: 1 is all of its GPUs, or of its CPUs, or memory."""
        room, worth = self._room, 0.0
        gpus = asked.gpus_on(self._view.host) - len(room.open(asked))
        if gpus > 0:
            cards = [g for g in room.cards if g.uuid in run.gpus and asked.matches(g)]
            worth += min(1.0, sum(1 / len(room.on[g.uuid]) for g in cards) / gpus)
        for held, lacking in ((run.cpus, asked.cpus - room.cpus()), (run.memory, asked.memory - room.memory())):
            if lacking > 0:
                worth += min(1.0, held / lacking)
        return worth

    # ---- words

    def _wait(self, job: Waiting, why: str, in_line: bool = True) -> None:
        self._line[job.queue] += 1
        place = f"{ordinal(self._line[job.queue])} in queue {job.queue}; " if in_line else ""
        self.waits[job.id] = text.safe(place + why)

    def _shortage(self, job: Waiting) -> str:
        lacks, has = self._lack(job)
        return f"asks for {lacks}, {has}" if lacks else self._kept_words()

    def _lack(self, job: Waiting) -> tuple[str, str]:
        """What of all that the job asks for is not free, and what is."""
        asked, host, room = job.resources, self._view.host, self._room
        wanted, free = asked.gpus_on(host), len(room.open(asked))
        cpus, memory = max(0, room.cpus()), max(0, room.memory())
        if free < wanted:
            has = "no GPU has so much left" if asked.gpu_share else are_free(free)
            return asked.gpu_words(wanted), f"{has} on {host.name}{self._busy(asked)}"
        if asked.cpus > cpus:
            return text.count(asked.cpus, "CPU"), f"{are_free(cpus)} on {host.name}"
        if asked.memory > memory:
            left = text.mebibytes(memory // GIB * GIB if memory > GIB else memory)
            return f"{text.mebibytes(asked.memory)} of memory", f"{left} are free on {host.name}"
        return "", ""

    def _busy(self, asked: Resources) -> str:
        """Who is on the GPUs that would do, the first few."""
        free = {g.uuid for g in self._room.open(asked)}
        cards = [g for g in self._view.host.gpus if asked.matches(g) and g.uuid not in free]
        said: dict[str, list[str]] = {}
        for card in sorted(cards, key=lambda g: g.index):
            said.setdefault(self._state(card), []).append(str(card.index))
        parts = [f"GPU {', '.join(numbers)} {words}" for words, numbers in said.items()]
        more = sum(map(len, list(said.values())[SAID:]))
        return f" ({'; '.join(parts[:SAID] + ([f'{more} more'] if more else []))})"

    def _state(self, card: Gpu) -> str:
        if card.error:
            return f"out of order: {card.error}"
        words = sorted(claim.words for claim in self._room.on[card.uuid].values())
        return words[0] + (f" and {len(words) - 1} more" if len(words) > 1 else "")

    def _kept_words(self) -> str:
        """Why there is room, and the job may not have it."""
        assert self._kept  # nothing else keeps what is free
        hint, left = "", self._kept.at - GRACE - self._now
        if 1 <= left < ENDLESS:
            hint = f"; with a time limit of at most {text.duration(left)} it could go first"
        return f"kept for {who(self._kept.job)}, which waits for {self._kept.lacks}{hint}"

    def _expected(self, kept: Kept) -> str:
        return f"; room is expected in {text.duration(kept.at - self._now)}" if kept.at < ENDLESS else ""
