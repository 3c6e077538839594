"""What a chaos test leaves to judge: what jobs recorded of themselves, their logs and specs, hints of what goes on."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

import intervals
from faults import Machine
from intervals import Asked, Run
from labkit.gpus import read_gpus
from plans import HOSTS, PEOPLE

from mlbox.core import ids
from mlbox.core.slots import Reading
from mlbox.host.files import read_json
from mlbox.host.slots import Log


def recorded(machine: Machine) -> Iterator[Run]:
    """All people's on this host."""
    script = 'cd ~/chaos && for f in *; do [ ! -e "$f" ] || { echo "file $f"; cat "$f"; }; done'
    text = "".join(machine.call("sh", "-c", script, user=user).stdout for user in PEOPLE)
    for part in text.split("file ")[1:]:
        name, *lines = part.split("\n")
        words = [line.split() for line in lines if line]
        if not words:
            continue  # killed before its first word
        job, attempt = name.split(".")[:2]
        gpus = () if words[0][2] == "void" else tuple(words[0][2].split(","))
        times, host = [float(word[1]) for word in words], machine.host.name
        run = Run(job, int(attempt), host, gpus, int(words[0][3]), times[0], times[-1], words[-1][0] == "end")
        yield intervals.bounded(run, machine.stills)


def memory() -> dict[str, int]:
    """MiB by UUID, as a GPU's label rounds it: 24564 MiB are sold, and shared, as 24 GiB."""
    return {gpu.uuid: round(gpu.memory / 1024) << 10 for host in HOSTS for gpu in read_gpus(host)}


def logs(users: Path) -> dict[str, tuple[Path, Reading]]:
    """Of each job: its folder and its log."""
    return {path.parent.name: (path.parent, Log(path).read()) for path in users.glob("*/jobs/*/*/ev")}


def asked(folder: Path, cancelled: bool) -> Asked:
    """By its spec: also of one that was taken while its acknowledgement was lost."""
    spec = read_json(folder / "spec.json") or {}
    if not spec.get("command"):
        return Asked(1, 0, frozenset(["finished", "failed", "cancelled"]), recorded=False)
    part, resources = int(spec["command"][-2]), spec["resources"]
    ends = {"failed"} if resources["time_limit"] else {"finished"}
    ends |= {"failed"} if spec["on_host_loss"] == "hold" else set()
    ends |= {"cancelled"} if cancelled else set()
    return Asked(1 if part else int(resources["gpus"]), part, frozenset(ends))


def unfinished(users: Path) -> Iterator[Path]:
    """Hints of what waits and runs."""
    for pattern in ("*/ready/**/*", "*/on/*/live/*", "*/on/*/making/*"):
        # Not Path.glob, for which a folder that goes meanwhile is an error.
        found = map(Path, glob.iglob(str(users / pattern), recursive=True))
        yield from (path for path in found if ids.is_ulid(path.name))
