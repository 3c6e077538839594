"""GPUs: what one is, what may be asked for, and which to take. Sizes are MiB, shares per cent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlbox.core import text
from mlbox.errors import Usage

Json = dict[str, Any]


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory on a GPU, whoever started it."""

    pid: int
    user: str = ""
    command: str = ""
    memory: int = 0


@dataclass(frozen=True)
class Holder:
    """Who holds a GPU's lease."""

    user: str
    session: str = ""  # its id, or a job's
    name: str = ""  # a session's

    @property
    def words(self) -> str:
        if self.name:
            return f"{self.user}'s session {self.name}"
        return f"{self.user}'s job {self.session}" if self.session else self.user


@dataclass(frozen=True)
class Gpu:
    """As NVML tells of it, and who has its lease."""

    index: int
    uuid: str
    name: str
    memory: int
    memory_used: int = 0
    utilization: int = 0
    temperature: int = 0
    power: int = 0
    error: str = ""
    processes: tuple[GpuProcess, ...] = ()
    holder: Holder | None = None

    @property
    def obstacle(self) -> str:
        """Why this GPU can't be taken now; empty when it is free."""
        if self.error:
            return self.error
        if self.holder is not None:
            return f"leased to {self.holder.words}"
        if self.processes:
            first = self.processes[0]
            more = f" and {len(self.processes) - 1} more" if len(self.processes) > 1 else ""
            return f"used by {first.user or 'someone'}'s {first.command or 'process'} (pid {first.pid}){more}"
        return ""

    @property
    def label(self) -> str:
        return f"GPU {self.index} ({self.name}, {text.mebibytes(self.memory)})"

    @classmethod
    def from_wire(cls, data: Json) -> Gpu:
        holder = Holder(**data["holder"]) if data.get("holder") else None
        processes = tuple(GpuProcess(**p) for p in data.get("processes", ()))
        return cls(**{**data, "holder": holder, "processes": processes})


@dataclass(frozen=True)
class GpuRequest:
    """So many GPUs, of a name perhaps (or of several, by commas, the first is the best), or exactly these; `count` None
    is "one if the host has any"."""

    count: int | None = None
    name: str = ""
    uuids: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.uuids:
            return ",".join(self.uuids)
        if self.count is None:
            return "auto"
        return f"{self.name}:{self.count}" if self.name else str(self.count)

    @property
    def kind(self) -> str:
        """`A100 `, `A100 or H100 `, or nothing, to stand before the word GPU."""
        return f"{text.safe(' or '.join(self.name.split(',')))} " if self.name else ""


_MOST, _MOST_NAMES = 64, 8
_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]{1,80}")


def parse_request(value: str) -> GpuRequest:
    """`2`, `A100`, `A100:2`, `A100,H100:2`, `GPU-uuid,GPU-uuid`, `auto`. Raises Usage."""
    value = value.strip()
    if value in ("", "auto"):
        return GpuRequest()
    if value.isdecimal():
        return GpuRequest(_checked(value, value))
    parts = [part.strip() for part in value.split(",")]
    if all(_UUID.fullmatch(part) for part in parts):
        if len(set(parts)) != len(parts):
            raise Usage(f"--gpus {value}: a GPU is named twice")
        return GpuRequest(len(parts), uuids=tuple(parts))
    name, colon, number = value.partition(":")
    names = [part.strip() for part in name.split(",")]
    broken = next(filter(_BROKEN_NUMBER.fullmatch, names), "")
    if broken:  # read as a name, it would be a GPU that no host has
        raise Usage(
            f"--gpus {text.safe(value)}: {text.safe(broken)!r} is neither a number nor a GPU's name",
            "write how many (2), or a name with how many of it (A100:2)",
        )
    numbers = "," in name and not colon and any(map(str.isdecimal, names))  # 0,1: somebody's indexes
    if (
        numbers
        or not all(map(_can_be_a_name, names))
        or len(names) > _MOST_NAMES
        or not (number if colon else "1").isdecimal()
    ):
        raise Usage(
            f"--gpus {text.safe(value)} can't be read",
            "give a number (2), a name (A100 or A100:2), names, the best first (A100,H100:2), or UUIDs (GPU-…,GPU-…)",
        )
    return GpuRequest(_checked(number or "1", value), name=",".join(names))


# 0x, 2x, 2xA100, x2, +2, 2.0, 2 GPUs. Not 4090:1, 2080Ti, 1g.5gb, A100X.
_BROKEN_NUMBER = re.compile(r"[0-9]+ *x.*|x *[0-9]+|\+[0-9.]+|[0-9]*\.[0-9]*|[0-9]+ *gpus?", re.IGNORECASE)


def _can_be_a_name(name: str) -> bool:
    return bool(_words(name)) and name[0] != "-" and not _UUID.fullmatch(name)


def _checked(digits: str, value: str) -> int:
    if len(digits) > 9 or int(digits) > _MOST:
        hint = f"at most {_MOST}"
        if 3 <= len(value) <= 4 and value.isdecimal():  # 980, 4090
            hint += f"; a model that is a number goes with its count: {value}:1"
        raise Usage(f"--gpus {text.safe(value[:80])}: no host has so many GPUs", hint)
    return int(digits)


@dataclass(frozen=True)
class Choice:
    """The GPUs to take, or, when `reason` is set, why the request can't be met and what would fit."""

    gpus: tuple[Gpu, ...] = ()
    reason: str = ""
    hint: str = ""


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def is_named(name: str, asked: str) -> bool:
    """Whether a GPU's `name` has the words of `asked`, or of one of those, in their order: RTX 4090, rtx4090 and 4090
    are all the "NVIDIA GeForce RTX 4090"; A10 is no A100, and L4 no L40S. Nor is a part of one (…A100-SXM4-40GB MIG
    1g.5gb) an A100: that is meant by what follows its card's name."""
    return preference(name, asked) < len(asked.split(","))


def preference(name: str, asked: str) -> int:
    """Which of the names `asked` for a GPU's is: 0 is the best; their number where it is none."""
    names = asked.split(",")
    return next((n for n, one in enumerate(names) if _is_one(_words(name), one)), len(names))


def _is_one(words: Sequence[str], asked: str) -> bool:
    at = 0
    for wanted in _words(asked):
        end = next((e for s in range(at, len(words)) for e in range(s + 1, len(words) + 1)
                    if "".join(words[s:e]) == wanted), 0)  # fmt: skip
        if not end:
            return False
        at = end
    return not at or "mig" not in words or at > words.index("mig")


def choose(request: GpuRequest, gpus: Sequence[Gpu]) -> Choice:
    """Pick free GPUs for a request.

    GPUs of one kind are kept together where they can be; of kinds that fit, the one that was named first is taken,
    then the one with the least memory (the large ones stay for those who ask for them by name), then the lowest index.
    """
    if request.uuids:
        return _choose_exact(request, gpus)
    if request.count is None:
        request = GpuRequest(1 if gpus else 0)
    count = request.count or 0
    fitting = [g for g in gpus if is_named(g.name, request.name)]
    free = [g for g in fitting if not g.obstacle]
    if len(free) < count:
        return _no_fit(request, gpus, fitting, free)
    free.sort(key=lambda g: (preference(g.name, request.name), g.memory, g.name, g.index))
    for kind in dict.fromkeys(g.name for g in free):
        same = [g for g in free if g.name == kind]
        if len(same) >= count:
            return Choice(tuple(same[:count]))
    return Choice(tuple(free[:count]))


def _choose_exact(request: GpuRequest, gpus: Sequence[Gpu]) -> Choice:
    known = {g.uuid: g for g in gpus}
    missing = [u for u in request.uuids if u not in known]
    if missing:
        return Choice((), f"no GPU {', '.join(missing)} here", _inventory(gpus))
    busy = [known[u] for u in request.uuids if known[u].obstacle]
    if busy:
        return Choice((), "; ".join(f"{g.label} is {_state(g)}" for g in busy), _inventory(gpus))
    return Choice(tuple(known[u] for u in request.uuids))


def _state(gpu: Gpu) -> str:
    return f"out of order: {gpu.error}" if gpu.error else gpu.obstacle


def _no_fit(request: GpuRequest, gpus: Sequence[Gpu], fitting: Sequence[Gpu], free: Sequence[Gpu]) -> Choice:
    count = request.count or 0
    wanted = text.count(count, f"{request.kind}GPU")
    if not gpus:
        return Choice((), f"you asked for {wanted}, and no GPU was found", "--gpus 0 starts without one")
    if len(fitting) < count:
        return Choice((), f"you asked for {wanted}, and there are {len(fitting)}", _inventory(gpus))
    busy = "; ".join(f"GPU {g.index} {_state(g)}" for g in fitting if g.obstacle)
    return Choice((), f"you asked for {wanted}, and {len(free)} of {len(fitting)} are free ({busy})", _inventory(gpus))


def _inventory(gpus: Sequence[Gpu]) -> str:
    kinds: dict[str, list[Gpu]] = {}
    for gpu in gpus:
        kinds.setdefault(gpu.name, []).append(gpu)
    parts = [f"{sum(not g.obstacle for g in same)} of {len(same)} {name} free" for name, same in kinds.items()]
    return "what would fit: " + (", ".join(parts) if parts else "--gpus 0")
