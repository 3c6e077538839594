"""How far a pull is, from what Docker or podman prints on a terminal: layers, bytes, and the time left. Pure.

    docker   3f2a…: Downloading [==>   ]  12.3MB/45.6MB     3f2a…: Pull complete
    podman   Copying blob 3f2a… [==>---] 12.3MiB / 45.6MiB  Copying blob 3f2a… done

Only what has begun is known by its size, so a time is told when all layers are known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_AMOUNT = r"([\d.]+)\s*([kKMGT]?)i?B"
_DOCKER = re.compile(r"^([0-9a-f]{12}): (.*)")
_PODMAN = re.compile(r"^Copying blob (?:sha256:)?([0-9a-f]{12})[0-9a-f]*\s+(.*)")
_PAIR = re.compile(rf"{_AMOUNT}\s*/\s*{_AMOUNT}")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HERE = ("Pull complete", "Already exists", "Download complete", "Verifying", "Extracting", "done", "skipped")
_UNITS = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_RECENT = 2.0  # s before a rate means something


@dataclass
class _Layer:
    done: float = 0.0
    size: float | None = None  # bytes; None: not known yet
    here: bool = False


@dataclass
class Pull:
    """Fed with the engine's lines and the time (monotonic seconds) at which they came."""

    layers: dict[str, _Layer] = field(default_factory=dict)
    began: float | None = None

    def hear(self, line: str, now: float) -> bool:
        """Whether it changed anything."""
        found = [self._hear(part.strip(), now) for part in _ESCAPE.sub("\n", line).split("\n")]
        return any(found)

    def _hear(self, line: str, now: float) -> bool:
        match = _DOCKER.match(line) or _PODMAN.match(line)
        if not match:
            return False
        layer = self.layers.setdefault(match[1], _Layer())
        amounts = _PAIR.search(match[2])
        if any(word in match[2] for word in _HERE):
            layer.here = True
            layer.done = layer.size or 0.0
        elif amounts:
            layer.done, layer.size = _bytes(amounts[1], amounts[2]), _bytes(amounts[3], amounts[4])
            self.began = now if self.began is None else self.began
        return True

    def said(self, now: float) -> str:
        """Such as `2 of 5 layers, 120 of 900 MB, 1 min left`."""
        here = sum(layer.here for layer in self.layers.values())
        parts = [f"{here} of {len(self.layers)} layers"] if self.layers else []
        sized = [layer for layer in self.layers.values() if layer.size]
        done, size = sum(layer.done for layer in sized), sum(layer.size or 0.0 for layer in sized)
        if size:
            whole = all(layer.here or layer.size is not None for layer in self.layers.values())
            parts.append(f"{done / 1e6:.0f} of {size / 1e6:.0f} MB" if whole else f"{done / 1e6:.0f} MB")
            parts += [_left(done, size, now - self.began)] if whole and self.began is not None else []
        return ", ".join(part for part in parts if part)


def _bytes(number: str, unit: str) -> float:
    try:
        return float(number) * _UNITS[unit]
    except ValueError:  # 1.2.3 is no number, whoever printed it
        return 0.0


def _left(done: float, size: float, taken: float) -> str:
    if taken < _RECENT or not 0 < done < size:
        return ""
    seconds = (size - done) / done * taken
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
