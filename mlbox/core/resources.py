"""What a job asks of a host, and whether a host could ever give it. Memory is MiB, time seconds.

The same checked dataclass is made on the laptop (from flags and YAML) and again on the host (from the
wire). Everything here ignores what is busy: that is core/schedule's question.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

from mlbox.core import gpu, shape, text
from mlbox.core.gpu import Gpu, GpuRequest
from mlbox.errors import Usage

Json = dict[str, Any]

GIB = 1024  # MiB
MAX_TIME = 10 * 365 * 86400  # s
_MAX_CPUS, _MAX_MEMORY, _MAX_NAMES = 4096, 2**30, 64

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MEMORY = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) *(?:([mgt])(?:i?b)?)?", re.IGNORECASE)
_UNITS = re.compile(r"(?:([0-9]{1,6})d)? *(?:([0-9]{1,6})h)? *(?:([0-9]{1,6})m)? *(?:([0-9]{1,9})s)?")
_CLOCK = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])")

# Every waiting job is looked at on every tick, and most ask for the same.
_request = lru_cache(maxsize=1024)(gpu.parse_request)
_is_named = lru_cache(maxsize=4096)(gpu.is_named)


@dataclass(frozen=True)
class Resources:
    """What one job asks for; 0 and () ask for nothing in particular.

    `gpu_share` is memory of one GPU that others may share; without it every GPU is the job's alone.
    One CPU is the default so that a thousand jobs without GPUs do not all start at once.
    """

    gpus: str = "auto"  # gpu.parse_request's grammar
    gpu_memory: int = 0  # MiB that each GPU has at least
    gpu_share: int = 0  # MiB
    cpus: int = 1
    memory: int = 0  # MiB of the host's own
    hosts: tuple[str, ...] = ()  # any of these
    labels: tuple[str, ...] = ()  # all of these
    time_limit: int = 0  # s

    def __post_init__(self) -> None:
        request = _request(self.gpus)
        for name, most in _MOST.items():
            if not 0 <= getattr(self, name) <= most:
                said = written if name in _MEMORY_KEYS else str
                raise Usage(f"{name} can't be {said(getattr(self, name))}", f"it is 0 to {said(most)}")
        for name, names in (("hosts", self.hosts), ("labels", self.labels)):
            wrong = [n for n in names if not is_label(n)]
            if wrong:
                raise Usage(f"{text.safe(wrong[0])[:80]!r} can't be among {name}", "write letters, digits, . _ and -")
            if len(names) > _MAX_NAMES:
                raise Usage(f"{len(names)} {name} are too many", f"name at most {_MAX_NAMES}")
        if self.gpu_share and request.count not in (None, 1):
            raise Usage(f"a share is of one GPU, and --gpus asks for {self.gpus}", "leave out --gpus or the share")
        if self.gpu_share and self.gpu_memory:
            raise Usage("a share of a GPU is asked for by its own memory", "leave out the GPU's least memory")
        if self.gpu_memory and request.count == 0:
            raise Usage("GPU memory is asked for, and no GPU", "leave out --gpus 0 or the GPU memory")

    @property
    def request(self) -> GpuRequest:
        return _request(self.gpus)

    def gpus_on(self, host: HostFacts) -> int:
        """How many GPUs this is on `host`: `auto` is one if it has any, and one where GPU memory is asked for."""
        if self.request.count is not None:
            return self.request.count
        return int(bool(host.gpus or self.gpu_share or self.gpu_memory))

    def matches(self, card: Gpu) -> bool:
        """Whether the GPU is of the kind asked for, busy or not."""
        request = self.request
        if request.uuids and card.uuid not in request.uuids:
            return False
        return size(card) >= max(self.gpu_memory, self.gpu_share) and _is_named(card.name, request.name)

    def may_be_on(self, host: str, labels: Collection[str]) -> bool:
        return (not self.hosts or host in self.hosts) and set(self.labels) <= set(labels)

    def gpu_words(self, count: int) -> str:
        """`4 A100 GPUs`, `1 GPU of 40 GiB`, `10 GiB of a GPU`, or the UUIDs."""
        request = self.request
        if self.gpu_share:
            return f"{text.mebibytes(self.gpu_share)} of {', '.join(request.uuids) or f'one {request.kind}GPU'}"
        if request.uuids:
            return ", ".join(request.uuids)
        return text.count(count, f"{request.kind}GPU") + (
            f" of {text.mebibytes(self.gpu_memory)}" if self.gpu_memory else ""
        )

    def to_wire(self) -> Json:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Resources:
        """Raises Usage where a field is unknown or of another type."""
        shape.mapping("resources", data)
        known = {f.name: f.default for f in fields(cls)}
        for key in data:
            if key not in known:
                raise Usage(f"resources have no {text.safe(str(key))!r}", "there are: " + ", ".join(known))
        return cls(**{key: _typed(key, value, known[key]) for key, value in data.items()})


_MOST = {
    "gpu_memory": _MAX_MEMORY,
    "gpu_share": _MAX_MEMORY,
    "cpus": _MAX_CPUS,
    "memory": _MAX_MEMORY,
    "time_limit": MAX_TIME,
}


_MEMORY_KEYS = ("gpu_memory", "gpu_share", "memory")


def _typed(key: str, value: Any, default: Any) -> Any:
    return shape.texts(key, value) if isinstance(default, tuple) else shape.like(key, value, default)


# ---- flags and YAML ------------------------------------------------------------------------------


def is_label(name: str) -> bool:
    """What a host or a label may be called: it becomes a file's name and a word of messages."""
    return _LABEL.fullmatch(name) is not None


def parse_memory(value: str | int) -> int:
    """`24G`, `24GiB`, `512M`, `24576` (MiB) to MiB. GB means GiB here, as it does on a GPU's label. Raises Usage."""
    found = _MEMORY.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if not found:
        raise Usage(f"{text.safe(str(value))[:80]!r} is no amount of memory", "write 24G, 512M, or 24576 (MiB)")
    return round(float(found[1]) * {"m": 1, "g": GIB, "t": GIB * GIB}[(found[2] or "m").lower()])


def written(memory: int) -> str:
    """MiB as `parse_memory` reads them, in the largest unit of which they are a whole number."""
    unit, size = next((u for u in (("T", GIB * GIB), ("G", GIB)) if memory and memory % u[1] == 0), ("M", 1))
    return f"{memory // size}{unit}"


def parse_duration(value: str | int) -> int:
    """`90s`, `30m`, `4h`, `2d`, `1h30m`, `1-12:00:00`, `HH:MM:SS` to seconds; a bare number is seconds
    (YAML itself reads an unquoted 1:30:00 as 5400). Raises Usage."""
    said = "" if isinstance(value, bool) else str(value).strip().lower()
    if re.fullmatch("[0-9]{1,9}", said):
        said += "s"
    found = _UNITS.fullmatch(said) or _CLOCK.fullmatch(said)
    if not said or not found:
        raise Usage(f"{text.safe(str(value))[:80]!r} is no duration", "write 90s, 30m, 4h, 2d, or 1-12:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total > MAX_TIME:
        raise Usage(f"{text.safe(str(value))[:80]} is too long", "0 is no limit; the longest is ten years")
    return total


# ---- hosts ---------------------------------------------------------------------------------------


Turn = tuple[str, str, int]  # owner, job, and how often it was tried


@dataclass(frozen=True)
class HostFacts:
    """A host's inventory as it publishes it, with what lab.yaml says of it."""

    name: str
    gpus: tuple[Gpu, ...] = ()
    cpus: int = 1
    memory: int = 0  # MiB for jobs
    labels: tuple[str, ...] = ()
    queues: tuple[str, ...] = ("default",)  # that it serves, in their order
    drained: bool = False
    silent: float = 0.0  # s for which nothing has been heard of it, where that is too long (host/heard.py)
    unable: Mapping[Turn, str] = field(
        default_factory=dict, hash=False
    )  # why it can't be started for a while (host/unable.py)

    @property
    def away(self) -> str:
        """Why nothing starts there now, whatever is free; empty where something may."""
        silent = [f"has been silent for {text.duration(self.silent)}"] if self.silent else []
        return " and ".join((["is drained"] if self.drained else []) + silent)


def for_jobs(memory: int) -> int:
    """MiB of a host's that may be asked for: 5 % are the system's, and 1 GiB at least. Who was let ask for those waited
    for ever, and whoever wanted memory behind."""
    return max(0, memory - max(GIB, memory // 20))


def size(card: Gpu) -> int:
    """MiB of a GPU as its label rounds them. Drivers keep a little: the 24 GiB of an RTX 4090 report
    24564 MiB, and `--gpu-memory 24G` and two shares of 12G mean to fit there."""
    return max(card.memory, round(card.memory / GIB) * GIB)


def fits(asked: Resources, host: HostFacts) -> str:
    """Why `host` could never run this, whatever is busy or broken there now; empty if it could."""
    if asked.hosts and host.name not in asked.hosts:
        return f"it is only for {', '.join(asked.hosts)}"
    missing = [label for label in asked.labels if label not in host.labels]
    if missing:
        return f"{host.name} has no label {', '.join(missing)}"
    count, matching = asked.gpus_on(host), sum(map(asked.matches, host.gpus))
    if matching < count:
        has = "none such" if asked.gpu_share or asked.request.uuids else f"{matching} such"
        if not host.gpus:
            has = "no GPU"
        return f"it asks for {asked.gpu_words(count)}, and {host.name} has {has}"
    if asked.cpus > host.cpus:
        return f"it asks for {text.count(asked.cpus, 'CPU')}, and {host.name} has {host.cpus}"
    if asked.memory > host.memory:
        has = f"{host.name} has {_floor(host.memory)} for jobs"
        return f"it asks for {text.mebibytes(asked.memory)} of memory, and {has}"
    return ""


def _floor(memory: int) -> str:
    """Never rounded up: "asks for 16 GiB, and has 16 GiB" helps nobody."""
    return text.mebibytes(memory if memory < GIB else memory // GIB * GIB)


def would_fit(asked: Resources, hosts: Iterable[HostFacts]) -> str:
    """Empty if any of `hosts` could run this; else what could be asked for instead, host by host: those that
    its host names and labels allow, or all when they allow none."""
    hosts = sorted(hosts, key=lambda h: h.name)
    if any(not fits(asked, host) for host in hosts):
        return ""
    if not hosts:
        return "the lab has no host yet: mlbox host add"
    allowed = [h for h in hosts if not asked.hosts or h.name in asked.hosts]
    allowed = [h for h in allowed if set(asked.labels) <= set(h.labels)] or hosts
    return "what would fit: " + "; ".join(map(_offer, allowed))


def _offer(host: HostFacts) -> str:
    kinds: dict[str, int] = {}
    for card in host.gpus:
        kind = f"{text.safe(card.name)} ({text.mebibytes(card.memory)})"
        kinds[kind] = kinds.get(kind, 0) + 1
    gpus = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    labels = f" [{', '.join(host.labels)}]" if host.labels else ""
    most = f"up to {gpus}, " if gpus else "no GPU, up to "
    return f"{host.name}{labels}: {most}{text.count(host.cpus, 'CPU')}, {_floor(host.memory)}"
