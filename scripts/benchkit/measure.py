"""Samples taken in turn, A B A B, so that a busy machine is busy for all; what is printed of them, and kept."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from mlbox import __version__

Samples = Sequence[float]
Subject = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One comparison. `unit` is s, MB/s or count; `met` is None where there is no aim."""

    part: str
    what: str
    unit: str
    ours: Samples
    base: Samples = ()
    base_name: str = ""
    aim: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float:
        """Ours to the baseline, as the median of the ratios within each turn."""
        return statistics.median(a / b for a, b in zip(self.ours, self.base)) if self.base else 0.0

    @property
    def difference(self) -> float:
        """Likewise, in the row's unit."""
        return statistics.median(a - b for a, b in zip(self.ours, self.base)) if self.base else 0.0

    def to_json(self) -> dict[str, Any]:
        side = {"ours": _summary(self.ours), "base": _summary(self.base)}
        facts = {"part": self.part, "what": self.what, "unit": self.unit, "against": self.base_name, "aim": self.aim}
        return {**facts, "met": self.met, "ratio": round(self.ratio, 4), "difference": self.difference, **side}


def _summary(samples: Samples) -> dict[str, Any]:
    if not samples:
        return {}
    return {"median": statistics.median(samples), "samples": list(samples)}


def at_most(row: Row, ratio: float, or_more: float = 0.0) -> Row:
    """The aim of a time: within `ratio` of the baseline, or (if given) at most `or_more` seconds above it."""
    aim = f"<= {ratio:.2f}x" + (f" or +{or_more:g} s" if or_more else "")
    met = row.ratio <= ratio or (or_more > 0 and row.difference <= or_more)
    return Row(row.part, row.what, row.unit, row.ours, row.base, row.base_name, aim, met)


def at_least(row: Row, ratio: float) -> Row:
    """The aim of a rate."""
    aim = f">= {ratio:.2f}x"
    return Row(row.part, row.what, row.unit, row.ours, row.base, row.base_name, aim, row.ratio >= ratio)


def in_turn(runs: int, subjects: Mapping[str, Subject], title: str = "") -> dict[str, list[float]]:
    """`runs` samples of each subject, one of each per turn."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(runs):
        for name, subject in subjects.items():
            tell(f"{title}: {number + 1} of {runs}, {name}" if title else "")
            found[name].append(subject())
    tell("")
    return found


def seconds(argv: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """Wall time of a command. Raises CalledProcessError with what it said."""
    before = time.perf_counter()
    subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=300)
    return time.perf_counter() - before


def cpu_seconds(argv: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """CPU time, user and system, of a command and of its children that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds(argv, env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def percentile(samples: Samples, part: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * part))]


# ---- words -------------------------------------------------------------------------------------------


def tell(words: str) -> None:
    """What goes on just now; one line that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def note(words: str) -> None:
    tell("")
    print(words, flush=True)


def table(rows: Sequence[Row]) -> str:
    head = ("", "mlbox", "against", "", "ratio", "aim", "")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    base = _value(row.base, row.unit) if row.base else ""
    ratio = f"{row.ratio:.2f}x" if row.base else ""
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    return f"{row.part} {row.what}", _value(row.ours, row.unit), base, row.base_name, ratio, row.aim, verdict


def _value(samples: Samples, unit: str) -> str:
    middle = statistics.median(samples)
    if unit == "count":
        return f"{middle:.0f}"
    if unit == "MB/s":
        return f"{middle:.0f} MB/s"
    if middle < 0.01:
        return f"{middle * 1000:.2f} ms"
    return f"{middle * 1000:.0f} ms" if middle < 1 else f"{middle:.2f} s"


def keep(path: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Whole or not at all."""
    machine = {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()}
    ssh = subprocess.run(("ssh", "-V"), capture_output=True, text=True).stderr.strip()
    document = {
        "mlbox": __version__, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "load": os.getloadavg(),
        "python": platform.python_version(), "ssh": ssh, **machine,
        "rows": [row.to_json() for row in rows], "notes": list(notes),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)
