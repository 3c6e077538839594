"""What jobs recorded of themselves beside what their logs say: whatever does not fit together is a violation. Pure.

Times are of CLOCK_MONOTONIC, which the lab's hosts have in common and nobody sets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlbox.core import log, slots

Json = dict[str, Any]
BEAT = 0.05  # s from one sign of life to the next
_LATE = 1.0  # s that a sign of life may be late where two cores do the work of three hosts


@dataclass(frozen=True)
class Violation:
    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}"


@dataclass(frozen=True)
class Run:
    """One process of a job's: from its first to its last sign of life. `ended`: it came to its end by itself."""

    job: str
    attempt: int
    host: str
    gpus: tuple[str, ...] = ()
    share: int = 0  # MiB of its one GPU; 0: the GPUs are its alone
    start: float = 0.0
    last: float = 0.0
    ended: bool = True

    def __str__(self) -> str:
        return f"{self.job}.{self.attempt} on {self.host} ({self.start:.2f} to {self.last:.2f})"


@dataclass(frozen=True)
class Still:
    """A host was frozen, or switched off: nobody knew of it until `end` (its end, or a person's word), so nothing of it
    may have been replaced."""

    host: str
    begin: float
    end: float


def bounded(run: Run, stills: Iterable[Still]) -> Run:
    """A run without an end, whose signs of life stopped together with its host, lasted as long as that."""
    ends = [s.end for s in stills if s.host == run.host and s.begin - _LATE <= run.last <= s.end]
    if run.ended or not ends:
        return run
    return Run(run.job, run.attempt, run.host, run.gpus, run.share, run.start, max(run.last, *ends), run.ended)


def of_runs(runs: Sequence[Run], memory: Mapping[str, int]) -> list[Violation]:
    """No job twice at once, no attempt twice, and no GPU shared beyond what was asked. `memory`: MiB by UUID."""
    found = []
    by_job, by_gpu = defaultdict(list), defaultdict(list)
    for run in sorted(runs, key=lambda run: run.start):
        by_job[run.job].append(run)
        for uuid in run.gpus:
            by_gpu[uuid].append(run)
    for its in by_job.values():
        for number, run in enumerate(its):
            for earlier in its[:number]:
                if run.start < earlier.last:
                    found.append(Violation("a job ran twice at once", f"{earlier} and {run}"))
                elif run.attempt == earlier.attempt:
                    found.append(Violation("an attempt ran twice", f"{earlier} and {run}"))
    for uuid, its in by_gpu.items():
        found += _of_gpu(uuid, its, memory.get(uuid, 0))
    return found


def _of_gpu(uuid: str, runs: Sequence[Run], memory: int) -> Iterable[Violation]:
    """Who is on it changes at starts only for the worse, so it is looked at each start."""
    there: list[Run] = []
    for run in runs:
        there = [*(other for other in there if other.last > run.start), run]
        words = f"{uuid}: {', '.join(map(str, there))}"
        if len(there) > 1 and any(not other.share for other in there):
            yield Violation("a GPU was not left alone", words)
        elif sum(other.share for other in there) > memory:
            yield Violation("a GPU was overfull", f"{words}: more than {memory} MiB")


@dataclass(frozen=True)
class Fenced:
    """A host of which a person has said that it is gone, and not yet that it is back."""

    host: str
    begin: float
    end: float


def of_fenced(runs: Iterable[Run], fenced: Sequence[Fenced]) -> list[Violation]:
    """It starts nothing, though it may be up."""
    return [
        Violation("a fenced host started a job", f"{run}: fenced {gone.begin:.2f} to {gone.end:.2f}")
        for run in runs
        for gone in fenced
        if run.host == gone.host and gone.begin < run.start < gone.end
    ]


@dataclass(frozen=True)
class Asked:
    """What a job was to be: GPUs by number (of a share: one), and how it may end."""

    gpus: int = 0
    share: int = 0
    ends: frozenset[str] = frozenset(["finished"])
    recorded: bool = True  # it records its runs: a session does not


def of_log(job: str, reading: slots.Reading, asked: Asked, runs: Sequence[Run]) -> list[Violation]:
    """One terminal state, reached legally; attempts that follow one another; runs that were claimed just so."""

    def violation(kind: str, words: object) -> Violation:
        return Violation(kind, f"{job}: {words}")

    seen = slots.fold(reading)
    events = list(seen.events.values())
    found = [violation("a slot is torn", number) for number in seen.torn]
    # Of a slot that is complete it is in nobody's way: its writer was killed before it could remove it.
    complete = {number for number, slot in enumerate(reading.slots, 1) if slot}
    found += [violation("an intent is left", i) for i in reading.intents if i.slot not in complete]
    state = log.State()
    for number, event in enumerate(events):
        if not log.may_follow(state.name, str(event.get("event"))):
            found.append(violation("an event is not legal", f"{event} after {state.name or 'nothing'}"))
        state = log.fold(events[: number + 1])
    if state.name not in log.TERMINAL:
        found.append(violation("a job did not end", f"it is {state.name or 'nowhere'}"))
    elif state.name not in asked.ends:
        found.append(violation("a job ended otherwise", f"{state.name}: {state.facts.get('why', '')}"))
    claims = [event for event in events if event.get("event") == "claimed"]
    if [claim["attempt"] for claim in claims] != list(range(1, len(claims) + 1)):
        found.append(violation("attempts don't follow one another", [claim["attempt"] for claim in claims]))
    by_attempt = {claim["attempt"]: claim for claim in claims}
    for run in runs:
        claim = by_attempt.get(run.attempt, {})
        fits = (claim.get("host"), sorted(claim.get("gpus", ())), claim.get("share", 0))
        if fits != (run.host, sorted(run.gpus), run.share) or len(run.gpus) != asked.gpus or run.share != asked.share:
            found.append(violation("a run is not as it was claimed and asked for", f"{run} {run.gpus}: {claim}"))
    ran = any(run.ended and run.attempt == state.attempt for run in runs)
    if asked.recorded and state.name == "finished" and not ran:
        found.append(violation("a job finished and did not run", f"attempt {state.attempt}"))
    return found
