"""What mlbox keeps on a host for another time, and what of it may go. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlbox.errors import Usage

Json = dict[str, Any]
DAY = 86400.0
OLDER_THAN = 30 * DAY  # s without use, where a person says nothing else


@dataclass(frozen=True)
class Stored:
    """`used`: when last, in seconds since 1970. `stays`: why it may not go, whatever its age."""

    # layer: an image that mlbox committed; environment: a folder of the process runtime; code: as jobs were submitted
    # with it; release: VS Code's server, as its makers pack it; program: mlbox itself, as earlier calls planted it.
    kind: str
    name: str
    size: int  # bytes that its removal frees
    used: float
    about: str = ""
    stays: str = ""

    def to_wire(self) -> Json:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Stored:
        return cls(
            str(data["kind"]), str(data["name"]), int(data["size"]), float(data["used"]), str(data.get("about", "")),
            str(data.get("stays", "")),
        )  # fmt: skip


@dataclass(frozen=True)
class Others:
    """An engine's images that mlbox did not make: not its to remove, but of the same disk."""

    engine: str
    count: int
    size: int  # bytes; what several stand on is counted for each

    def to_wire(self) -> Json:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Others:
        return cls(str(data["engine"]), int(data["count"]), int(data["size"]))


def expendable(things: Iterable[Stored], now: float, older_than: float) -> list[Stored]:
    """What nothing uses, and nothing has used for `older_than` seconds."""
    return [thing for thing in things if not thing.stays and now - thing.used >= older_than]


def parse_age(words: str) -> float:
    """`30d`, `12h`: seconds. Raises Usage."""
    number, unit = words[:-1], words[-1:]
    if not (number.isascii() and number.isdigit()) or unit not in ("d", "h") or len(number) > 6:
        raise Usage(f"--older-than {words!r} is no age", "write it as 30d or 12h")
    return int(number) * (DAY if unit == "d" else 3600.0)


def size(amount: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit in ("B", "kB") or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
