"""What a check found, as `mlbox doctor` tells it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Grade = Literal["good", "note", "bad"]  # note: something is less than it could be, or not there


@dataclass(frozen=True)
class Finding:
    grade: Grade
    about: str
    words: str
    hint: str = ""  # how to mend it

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, said: Any) -> Finding:
        """What a host said; Raises ValueError."""
        known = {name: str(said.get(name, "")) for name in ("grade", "about", "words", "hint")}
        if known["grade"] not in ("good", "note", "bad"):
            raise ValueError(f"{known['grade']!r} is no grade")
        return cls(**known)  # type: ignore[arg-type]
