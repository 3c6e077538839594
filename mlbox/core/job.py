"""A job as it is submitted: what to run, in what, with which resources, and what to do when it does not go well.

Written once to spec.json, and read by everybody in the lab: no secret is in it. A session is a job without a
command. The same checked dataclass is made on the laptop and again on the host, so neither trusts the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from mlbox.core import ids, text
from mlbox.core.log import State
from mlbox.core.resources import Resources
from mlbox.core.schedule import After
from mlbox.core.session import Spec
from mlbox.errors import Usage

if TYPE_CHECKING:
    from mlbox.core.schedule import Running, Waiting

Json = dict[str, Any]

REASONS = ("exit", "signal", "oom", "timeout", "lost")  # why an attempt did not succeed
ON_HOST_LOSS = ("", "hold", "requeue")  # "": as lab.yaml says, which `submit` puts in
_MOST_RETRIES, _MOST_IN_ARRAY, _MOST_DEPENDENCIES = 1000, 10_000, 100
_MOST_RANK = 499_999  # as the names of ready hints hold it (host/ready.py)
_KINDS = ("job", "session")
_PRIORITIES = range(-1000, 1001)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_COMMAND = 32 * 1024  # bytes
_SECRET = ("env", "packages", "requirements")


@dataclass(frozen=True)
class JobSpec:
    """What was asked for. Raises Usage where it can't be."""

    command: tuple[str, ...] = ()  # empty: a session
    work: Spec = field(default_factory=Spec)  # image, runtime, user, packages, env, mounts …
    resources: Resources = field(default_factory=Resources)
    queue: str = "default"
    priority: int = 0
    retries: int = 0  # attempts after the first
    retry_on: tuple[str, ...] = REASONS
    backoff: int = 10  # s before the second attempt (or after the second loss); doubles with each, to an hour
    after: tuple[After, ...] = ()
    array: str = ""  # the first job's id, where this is one of an array
    array_index: int = 0
    array_limit: int = 0  # of the array, at once; 0: no limit
    grace: int = 10  # s between SIGTERM and SIGKILL
    output_limit: int = 1024  # MiB of output kept
    on_host_loss: str = ""
    max_losses: int = 3  # attempts that were lost, after which it has failed: it may be what kills its hosts
    code: str = ""  # sha256 of the code's archive (host/code.py); empty: `folder` as it is
    folder: str = ""  # of the host's, to run in; empty: the attempt's own, with the code in it
    provenance: Mapping[str, str] = field(default_factory=dict)  # repository, commit … as the laptop saw them

    def __post_init__(self) -> None:
        if len("\0".join(self.command)) > _MOST_COMMAND or any("\0" in word for word in self.command):
            raise Usage("the command is too long, or holds a zero byte", "put it into a script")
        if not text.is_name(self.queue):
            raise Usage(f"{text.safe(self.queue)!r} can't be a queue's name", "use a-z, 0-9 and '-', at most 40")
        if self.priority not in _PRIORITIES:
            raise Usage(f"a priority is {_PRIORITIES[0]} to {_PRIORITIES[-1]}")
        _between("retries", self.retries, _MOST_RETRIES)
        _between("the back-off", self.backoff, 86400)
        _between("the grace time", self.grace, 3600)
        _between("the array's limit", self.array_limit, _MOST_IN_ARRAY)
        _between("the array's index", self.array_index, _MOST_IN_ARRAY)
        _between("the output's limit", self.output_limit, 1024 * 1024)
        unknown = [reason for reason in self.retry_on if reason not in REASONS]
        if unknown:
            raise Usage(f"nothing ends by {text.safe(unknown[0])!r}", "retry on: " + ", ".join(REASONS))
        if not 1 <= self.max_losses <= _MOST_RETRIES:
            raise Usage(f"a job can't fail after {self.max_losses} losses", f"it is 1 to {_MOST_RETRIES}")
        if self.on_host_loss not in ON_HOST_LOSS:
            raise Usage("on_host_loss is hold or requeue")
        _check_dependencies(self.after)
        if (self.array and not ids.is_ulid(self.array)) or (self.code and not _SHA256.fullmatch(self.code)):
            raise Usage("the array or the code is not what mlbox made")
        if self.code and self.folder:
            raise Usage("a job runs either in the code that was submitted, or in a folder of the host's")

    @property
    def session(self) -> bool:
        return not self.command

    @property
    def name(self) -> str:
        return self.work.name

    def with_runtime(self, runtime: str) -> JobSpec:
        """As the host that claimed it has it (`claimed` says so); nothing is said by an empty one."""
        return replace(self, work=replace(self.work, runtime=runtime)) if runtime else self

    def without_secrets(self) -> JobSpec:
        return replace(self, work=self.work.without_secrets())

    def secrets(self) -> Json:
        """What `without_secrets` leaves out; `with_secrets` puts it back."""
        work = self.work
        return {"env": dict(work.env), "packages": list(work.packages), "requirements": work.requirements}

    def with_secrets(self, kept: Mapping[str, Any]) -> JobSpec:
        """Raises Usage where they are not what `secrets` made."""
        public = self.work.to_wire()
        return replace(self, work=Spec.from_wire({**public, **{k: v for k, v in kept.items() if k in _SECRET}}))

    def to_wire(self) -> Json:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any], strict: bool = True) -> JobSpec:
        """Raises Usage where a field is of another type, or (`strict`) unknown: a newer mlbox may have stored it."""
        if not isinstance(data, Mapping):
            raise Usage("a job must map names to values")
        known = {f.name: f for f in fields(cls)}
        unknown = [key for key in data if key not in known]
        if unknown and strict:
            raise Usage(f"a job has no {text.safe(str(unknown[0]))!r}")
        return cls(**{key: _typed(key, value, strict) for key, value in data.items() if key in known})


def _check_dependencies(after: tuple[After, ...]) -> None:
    if len(after) > _MOST_DEPENDENCIES:
        raise Usage(f"a job waits for at most {_MOST_DEPENDENCIES} others")
    for dependency in after:
        if not ids.is_ulid(dependency.job):
            raise Usage(f"{text.safe(dependency.job[:80])!r} is not a job's id")
        if dependency.end not in ("ok", "any"):
            raise Usage(f"a job's end to wait for is ok or any, not {text.safe(dependency.end[:80])!r}")


def _between(what: str, number: int, most: int) -> None:
    if not 0 <= number <= most:
        raise Usage(f"{what} can't be {number}", f"it is 0 to {most}")


_DEFAULTS = {f.name: f.default for f in fields(JobSpec)}


def _typed(key: str, value: Any, strict: bool) -> Any:
    if key == "work":
        return Spec.from_wire(_mapping(key, value)) if strict else Spec.from_stored(_mapping(key, value))
    if key == "resources":
        return Resources.from_wire(_mapping(key, value))
    if key == "provenance":
        if not all(isinstance(v, str) for v in _mapping(key, value).values()):
            raise Usage("provenance must map names to text")
        return dict(value)
    if key == "after":
        return tuple(_after(item) for item in _list(key, value))
    default = _DEFAULTS[key]
    if isinstance(default, tuple):
        if not all(isinstance(item, str) for item in _list(key, value)):
            raise Usage(f"{key} must be a list of texts")
        return tuple(value)
    if type(value) is not type(default):
        raise Usage(f"{key} must be {'a number' if isinstance(default, int) else 'text'}")
    return value


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Usage(f"{key} must map names to values")
    return value


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise Usage(f"{key} must be a list")
    return list(value)


def _after(value: Any) -> After:
    if not isinstance(value, Mapping) or set(value) - {"job", "end"}:
        raise Usage("a dependency needs a job, and ok or any")
    return After(str(value.get("job", "")), str(value.get("end", "ok")))


# ---- a job as the scheduler sees it, whose own classes a laptop does without ---------------------------


def waiting(job: str, owner: str, spec: JobSpec, state: State) -> Waiting:
    """Where a job stands in line: as it was submitted, and moved since."""
    from mlbox.core.schedule import Waiting

    facts = state.facts
    return Waiting(
        job, owner, str(facts.get("queue", spec.queue)), spec.resources, _number(facts.get("priority", spec.priority)),
        _number(facts.get("rank", 0)), spec.after, spec.array, spec.array_limit, float(facts.get("not_before", 0)),
        "session" if spec.session else "job",
    )  # fmt: skip


def _number(value: Any) -> int:
    return value if type(value) is int else 0


def waiting_to_wire(found: Waiting) -> Json:
    return asdict(found)


def waiting_from_wire(job: str, owner: str, data: Mapping[str, Any]) -> Waiting:
    """A ready hint of anybody's. The file's name and owner say whose job it is, never its content. Raises Usage."""
    from mlbox.core.schedule import Waiting

    kept = {f.name: data[f.name] for f in fields(Waiting) if f.name in data}
    defaults = Waiting(job, owner)
    for name, value in kept.items():
        if name not in ("resources", "after") and type(value) is not type(getattr(defaults, name)):
            raise Usage(f"a waiting job's {name} is of the wrong type")
    kept["resources"] = Resources.from_wire(_mapping("resources", data.get("resources", {})))
    kept["after"] = tuple(_after(item) for item in _list("after", data.get("after", [])))
    made = Waiting(**{**kept, "id": job, "owner": owner})
    _check_dependencies(made.after)
    good = (
        made.priority in _PRIORITIES and -_MOST_RANK <= made.rank <= _MOST_RANK and text.is_name(made.queue)
        and 0 <= made.array_limit <= _MOST_IN_ARRAY and math.isfinite(made.not_before) and made.kind in _KINDS
        and (not made.array or ids.is_ulid(made.array))
    )  # fmt: skip
    if not good:
        raise Usage("a waiting job's place is beyond what can be asked for")
    return made


def running_from_wire(job: str, owner: str, host: str, data: Mapping[str, Any]) -> Running:
    """A live hint of anybody's, with the same caution. Raises Usage."""
    from mlbox.core.schedule import Running

    defaults = Running(job, owner, host)
    kept = {f.name: data[f.name] for f in fields(Running) if f.name in data}
    for name, value in kept.items():
        wanted = (int, float) if name == "started" else type(getattr(defaults, name))
        if name != "gpus" and not isinstance(value, wanted):
            raise Usage(f"a running job's {name} is of the wrong type")
    kept["gpus"] = tuple(str(uuid) for uuid in _list("gpus", data.get("gpus", [])))
    made = Running(**{**kept, "id": job, "owner": owner, "host": host})
    amounts = (made.share, made.cpus, made.memory, made.time_limit)
    # Whoever says to hold less than nothing would make room for two; a time beyond all bounds breaks sums.
    if not all(0 <= amount <= _MOST_AMOUNT for amount in amounts) or not -_MOST_TIME < made.started < _MOST_TIME:
        raise Usage("a running job holds what no job can")
    if made.priority not in _PRIORITIES or made.kind not in _KINDS:
        raise Usage("a running job is where no job can be")
    if made.queue and not text.is_name(made.queue):  # a session that was started on its host is in none
        raise Usage("a running job is where no job can be")
    return made


_MOST_AMOUNT, _MOST_TIME = 2**31, 1e12


# ---- how an attempt ended ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What is known of an attempt's end. `lost`: nobody saw it end, and why."""

    exit: int = 0
    signal: int = 0
    oom: bool = False
    timeout: bool = False
    stopped: bool = False  # by SIGTERM to its runner
    lost: str = ""
    error: str = ""  # it could not be started at all


def verdict(spec: JobSpec, state: State, outcome: Outcome, now: float) -> Json:
    """The event that ends the running attempt. Pure; the caller appends it."""
    event = {"at": now, **_why(outcome)}
    if state.requested == "cancel_requested":
        return {**event, "event": "cancelled", "why": f"cancelled by {state.facts.get('by', 'its owner')}"}
    if state.requested == "preempt_requested":
        return {**event, "event": "preempted", "why": str(state.facts.get("for", "it made room for another job"))}
    if event["reason"] == "":
        return {**event, "event": "finished"}
    if event["reason"] == "lost" and spec.on_host_loss != "hold":
        return {**event, **_lost(spec, state, str(event["why"]), now)}
    again = _again(spec, state.attempt, str(event["reason"]), now)
    return {**event, "event": "failed"} if again is None else {**event, "event": "retry", "not_before": again}


def _why(outcome: Outcome) -> Json:
    if outcome.error:
        return {"reason": "start", "why": outcome.error}
    if outcome.lost:
        return {"reason": "lost", "why": outcome.lost}
    end = {"exit": outcome.exit, "signal": outcome.signal}
    if outcome.stopped and not outcome.timeout:
        return {**end, "reason": "lost", "why": "its runner was told to stop"}
    if outcome.timeout:
        return {**end, "reason": "timeout", "why": "its time limit was reached"}
    if outcome.oom:
        return {**end, "reason": "oom", "why": "killed for want of memory"}
    if outcome.signal:
        return {**end, "reason": "signal", "why": f"ended by signal {outcome.signal}"}
    return {**end, "reason": "exit" if outcome.exit else "", "why": f"exit code {outcome.exit}"}


def _lost(spec: JobSpec, state: State, why: str, now: float) -> Json:
    """The first loss is nobody's fault, and it runs again at once. What is lost again and again may be what kills its
    hosts, or its keepers: it waits longer each time, and in the end has failed."""
    losses = _number(state.facts.get("losses", 0)) + 1
    counted = {"losses": losses, "why": f"{why}; loss {losses} of at most {spec.max_losses}"}
    if losses >= spec.max_losses:
        return {**counted, "event": "failed"}
    return {**counted, "event": "lost", "not_before": now + (_backoff(spec, losses - 1) if losses > 1 else 0.0)}


def _again(spec: JobSpec, attempt: int, reason: str, now: float) -> float | None:
    """When the attempt after this one may start (seconds since 1970); None if there is none."""
    if attempt > spec.retries or reason not in spec.retry_on:
        return None
    return now + _backoff(spec, attempt)


def _backoff(spec: JobSpec, time: int) -> float:
    """Seconds; `time` counts from 1."""
    from mlbox.core.schedule.hindrance import LONGEST_BACKOFF

    return min(LONGEST_BACKOFF, float(spec.backoff * 2 ** min(time - 1, 12)))
