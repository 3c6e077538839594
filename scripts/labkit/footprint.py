"""What dockerd does to the machine it runs on, and how it is undone.

It adds iptables chains, turns ip_forward on, and makes a few folders outside of those it is given.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from . import laptop
from .inventory import copies
from .shell import run

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
FOLDERS = ("/run/docker", "/run/containerd", "/opt/containerd", "/etc/docker")


def _rules(table: str) -> list[str]:
    done = run(("iptables", "-w", "-t", table, "-S"), check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def _iptables(table: str, *args: str) -> None:
    run(("iptables", "-w", "-t", table, *args), check=False)


@dataclass(frozen=True)
class Footprint:
    """The machine before dockerd started. `docker`: chains of another dockerd were there already;
    `absent`: those of FOLDERS that were not."""

    ip_forward: str
    forward_policy: str
    docker: bool
    absent: list[str] = field(default_factory=list)

    @classmethod
    def before(cls) -> "Footprint":
        rules = _rules("filter")
        policy = next((r.split()[2] for r in rules if r.startswith("-P FORWARD")), "ACCEPT")
        absent = [folder for folder in FOLDERS if not Path(folder).exists()]
        return cls(FORWARD.read_text().strip(), policy, "-N DOCKER" in rules, absent)

    def undo(self, alone: bool = True) -> None:
        """Take away the lab's rules; and Docker's chains and folders, if none were there before. Not `alone`: another
        lab's dockerd works by these still."""
        whole = alone and not self.docker
        marks = ["DOCKER"] if whole else []
        for copy in copies():
            laptop.remove(copy)
            for bridge in copy.bridges:
                run(("ip", "link", "delete", bridge), check=False)
            marks += [*copy.bridges, f"{copy.subnet}.0/24", f"{copy.private_subnet}.0/24"]
        for table in ("filter", "nat"):
            rules = _rules(table)
            for rule in rules:
                if rule.startswith("-A") and any(mark in rule for mark in marks):
                    _iptables(table, "-D", *rule.split()[1:])
            if whole:
                chains = [r.split()[1] for r in rules if r.startswith("-N DOCKER")]
                for action in ("-F", "-X"):
                    for chain in chains:
                        _iptables(table, action, chain)
        if whole:
            _iptables("filter", "-P", "FORWARD", self.forward_policy)
            FORWARD.write_text(self.ip_forward + "\n")
            for folder in self.absent:
                shutil.rmtree(folder, ignore_errors=True)
