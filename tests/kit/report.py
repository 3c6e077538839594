"""What a chaos test did, and what it found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from intervals import Violation
from plans import HOSTS, Plan


@dataclass
class Report:
    plan: Plan
    jobs: int = 0
    attempts: int = 0
    sessions: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def __str__(self) -> str:
        def counted(counter: Counter[str]) -> str:
            return ", ".join(f"{number} {name}" for name, number in sorted(counter.items())) or "none"

        found = "\n".join(f"  {violation}" for violation in self.violations)
        return (
            f"seed {self.plan.seed}: {self.jobs} jobs and {self.sessions} sessions in {self.attempts} attempts on "
            f"{len(HOSTS)} hosts, {self.seconds:.0f} s\n"
            f"  ended: {counted(self.ends)}\n  by people: {counted(self.acts)}\n"
            f"  faults: {sum(self.faults.values())} ({counted(self.faults)})\n"
            f"violations: {len(self.violations)}\n{found}".rstrip()
        )
