"""A job as it is submitted: what to run, in what, with which resources, and what to do when it does not go well.

Written once to spec.json, and read by everybody in the lab: no secret is in it. A session is a job without a
command. The same checked dataclass is made on the laptop and again on the host, so neither trusts the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mlbox.core import ids, shape, text
from mlbox.core.resources import Resources, written
from mlbox.core.schedule import After
from mlbox.core.session import Spec
from mlbox.errors import Usage

Json = dict[str, Any]

REASONS = ("exit", "signal", "oom", "timeout", "lost")  # why an attempt did not succeed
ON_HOST_LOSS = ("", "hold", "requeue")  # "": as lab.yaml says, which `submit` puts in
_MOST_RETRIES, MOST_IN_ARRAY, _MOST_DEPENDENCIES = 1000, 10_000, 100
PRIORITIES = range(-1000, 1001)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_COMMAND = 32 * 1024  # bytes
_SECRET = ("env", "packages", "requirements", "init_script")


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
    output_limit: int = 0  # MiB of output kept of an attempt; 0: as lab.yaml says
    on_host_loss: str = ""
    max_losses: int = 3  # attempts that were lost, after which it has failed: it may be what kills its hosts
    code: str = ""  # sha256 of the code's archive (host/code.py); empty: `folder` as it is
    folder: str = ""  # of the host's, to run in; empty: the attempt's own, with the code in it
    provenance: Mapping[str, str] = field(default_factory=dict)  # repository, commit … as the laptop saw them

    def __post_init__(self) -> None:
        if len("\0".join(self.command)) > _MOST_COMMAND or any("\0" in word for word in self.command):
            raise Usage("the command is too long, or holds a zero byte", "put it into a script")
        if not text.is_name(self.queue):
            raise Usage(f"{text.safe(self.queue)[:80]!r} can't be a queue's name", text.name_hint(self.queue))
        if self.priority not in PRIORITIES:
            raise Usage(f"a priority is {PRIORITIES[0]} to {PRIORITIES[-1]}")
        _between("retries", self.retries, _MOST_RETRIES)
        _between("the back-off", self.backoff, 86400)
        _between("the grace time", self.grace, 3600)
        _between("the array's limit", self.array_limit, MOST_IN_ARRAY)
        _between("the array's index", self.array_index, MOST_IN_ARRAY)
        _between("the output's limit", self.output_limit, 1024 * 1024, written)
        unknown = [reason for reason in self.retry_on if reason not in REASONS]
        if unknown:
            raise Usage(f"nothing ends by {text.safe(unknown[0])!r}", "retry on: " + ", ".join(REASONS))
        if not 1 <= self.max_losses <= _MOST_RETRIES:
            raise Usage(f"a job can't fail after {self.max_losses} losses", f"it is 1 to {_MOST_RETRIES}")
        if self.on_host_loss not in ON_HOST_LOSS:
            raise Usage("on_host_loss is hold or requeue")
        check_dependencies(self.after)
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

    @property
    def title(self) -> str:
        """As lists show it: of an array with its index."""
        return f"{self.name}[{self.array_index}]" if self.array else self.name

    def with_runtime(self, runtime: str) -> JobSpec:
        """As the host that claimed it has it (`claimed` says so); nothing is said by an empty one."""
        return replace(self, work=replace(self.work, runtime=runtime)) if runtime else self

    def without_secrets(self) -> JobSpec:
        return replace(self, work=self.work.without_secrets())

    def secrets(self) -> Json:
        """What `without_secrets` leaves out; `with_secrets` puts it back."""
        work = self.work
        return {
            "env": dict(work.env), "packages": list(work.packages), "requirements": work.requirements,
            "init_script": work.init_script,
        }  # fmt: skip

    def with_secrets(self, kept: Mapping[str, Any]) -> JobSpec:
        """Raises Usage where they are not what `secrets` made."""
        public = self.work.to_wire()
        return replace(self, work=Spec.from_wire({**public, **{k: v for k, v in kept.items() if k in _SECRET}}))

    def to_wire(self) -> Json:
        return {**asdict(self), "after": tuple(one.to_wire() for one in self.after)}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any], strict: bool = True) -> JobSpec:
        """Raises Usage where a field is of another type, or (`strict`) unknown: a newer mlbox may have stored it."""
        shape.mapping("a job", data)
        known = {f.name: f for f in fields(cls)}
        unknown = [key for key in data if key not in known]
        if unknown and strict:
            raise Usage(f"a job has no {text.safe(str(unknown[0]))!r}")
        return cls(**{key: _typed(key, value, strict) for key, value in data.items() if key in known})


def check_folder(folder: str) -> None:
    """Raises Usage for one that is another in each place. Not a part of `JobSpec`: older versions stored such ones."""
    if folder and folder[0] not in "/~":
        raise Usage(f"{text.safe(folder)} is no folder of every host's", "name it from its root: /…, or ~/…")


def check_dependencies(after: tuple[After, ...]) -> None:
    """Raises Usage where there are too many, or one can't be waited for."""
    if len(after) > _MOST_DEPENDENCIES:
        raise Usage(f"a job waits for at most {_MOST_DEPENDENCIES} others")
    for dependency in after:
        if not ids.is_ulid(dependency.job) or not ids.is_ulid(ids.following(dependency.job, dependency.array)):
            raise Usage(f"{text.safe(dependency.job[:80])!r} is not a job's id")
        if dependency.end not in ("ok", "any"):
            raise Usage(f"a job's end to wait for is ok or any, not {text.safe(dependency.end[:80])!r}")
        _between("the number of jobs that an array has", dependency.array, MOST_IN_ARRAY)


def _between(what: str, number: int, most: int, said: Callable[[int], str] = str) -> None:
    if not 0 <= number <= most:
        raise Usage(f"{what} can't be {said(number)}", f"it is 0 to {said(most)}")


_DEFAULTS = {f.name: f.default for f in fields(JobSpec)}


def _typed(key: str, value: Any, strict: bool) -> Any:
    if key == "work":
        work = shape.mapping(key, value)
        return Spec.from_wire(work) if strict else Spec.from_stored(work)
    if key == "resources":
        return Resources.from_wire(shape.mapping(key, value))
    if key == "provenance":
        return shape.texts_by_name(key, value)
    if key == "after":
        return dependencies(value)
    default = _DEFAULTS[key]
    if isinstance(default, tuple):
        return shape.texts(key, value)
    return shape.like(key, value, default)


def dependencies(value: Any) -> tuple[After, ...]:
    """From a list of the wire. Raises Usage; whether they can be waited for, `check_dependencies` says."""
    return tuple(_after(item) for item in shape.sequence("after", value))


def _after(value: Any) -> After:
    if not isinstance(value, Mapping) or set(value) - {"job", "end", "array"}:
        raise Usage("a dependency needs a job, and ok or any")
    array = shape.like("array", value.get("array", 0), 0)
    return After(str(value.get("job", "")), str(value.get("end", "ok")), array)
