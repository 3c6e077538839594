"""What a plan is made from, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlbox.core.lab import Lab
from mlbox.core.resources import HostFacts, Resources, Turn
from mlbox.core.schedule.after import After, Ends


@dataclass(frozen=True)
class Waiting:
    """A job in a queue. Ids are ULIDs: they sort as the jobs were submitted."""

    id: str
    owner: str
    queue: str = "default"
    resources: Resources = field(default_factory=Resources)
    priority: int = 0
    rank: int = 0  # moves among its owner's of one priority: lower goes first, `top` is below all others
    after: tuple[After, ...] = ()
    array: str = ""
    array_limit: int = 0  # of the array's jobs at once; 0 is no limit
    not_before: float = 0.0
    kind: str = "job"  # or session, in words
    moves: int = 0  # until it stood here: of two places of one job, the one after more moves is the newer
    attempt: int = 0  # how many there were

    @property
    def turn(self) -> Turn:
        """As which a host may pass it over (HostFacts.unable)."""
        return self.owner, self.id, self.attempt


@dataclass(frozen=True)
class Running:
    """A job that was claimed and has not ended, anywhere in the lab."""

    id: str
    owner: str
    host: str
    queue: str = "default"
    gpus: tuple[str, ...] = ()  # UUIDs
    share: int = 0  # MiB of its GPU; 0: the GPUs are its alone
    cpus: int = 0
    memory: int = 0  # MiB
    priority: int = 0
    started: float = 0.0
    time_limit: int = 0
    array: str = ""
    ending: bool = False  # it was told to end (preempted, cancelled)
    kind: str = "job"
    asking: bool = False  # its host still looks whether a limit allows it


@dataclass(frozen=True)
class View:
    """What a tick read. On a GPU with shares, `host.gpus` tell only of processes that are no job's."""

    host: HostFacts
    lab: Lab = field(default_factory=Lab)
    waiting: Sequence[Waiting] = ()  # of all users whom this host serves
    running: Sequence[Running] = ()
    shares: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # leased: UUID -> job -> MiB
    memory_free: int | None = None  # MiB of the host as measured; None: not known
    states: Mapping[str, str] = field(default_factory=dict)  # of the jobs that others wait for
    arrays: Mapping[tuple[str, int], Ends] = field(default_factory=dict)  # and of arrays: (first job, of how many)
    usage: Mapping[str, float] = field(default_factory=dict)  # decayed GPU-seconds of ended jobs, per user
    paused: Mapping[str, str] = field(default_factory=dict)  # queue -> by whom
    reserved_here: frozenset[str] = frozenset()  # jobs that wait for room on this host (`reserved_on`)
    acting: str | None = None  # the user whose jobs this tick may touch; None: everybody's


@dataclass(frozen=True)
class Start:
    """A job that is to start now, and on what."""

    job: str
    gpus: tuple[str, ...]  # UUIDs
    share: int  # MiB of the one GPU; 0: the GPUs are the job's alone
    time_limit: int  # s, by request and queue; 0: none


def running(job: Waiting, start: Start, host: str, now: float) -> Running:
    """As the job stands there from its start on."""
    asked = job.resources
    return Running(
        job.id, job.owner, host, job.queue, start.gpus, start.share, asked.cpus, asked.memory, job.priority, now,
        start.time_limit, job.array, kind=job.kind,
    )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is to be done; each waiting job is in `start`, in `fail` or in `waits`."""

    start: tuple[Start, ...]
    preempt: Mapping[str, str]  # running job -> the waiting job that it makes room for
    fail: Mapping[str, str]  # waiting job that can never run -> why
    waits: Mapping[str, str]  # any other waiting job -> why it waits
    kept: frozenset[str] = frozenset()  # waiting jobs that room is kept or made for: others wait because of them
