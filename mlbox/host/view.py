"""What a tick reads: this host, the lab's rules, who waits and who runs. Everything here may be another's, or old.

Of each user's line in each queue a bounded part is read (host/look.py), so the cost does not grow with how many wait;
nothing that has ended is read at all.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import ids, resources
from mlbox.core.gpu import Gpu
from mlbox.core.hints import running_from_wire
from mlbox.core.lab import Lab
from mlbox.core.log import moment
from mlbox.core.resources import HostFacts
from mlbox.core.schedule import Running, Startable, View, Waiting, reserved_on
from mlbox.host import files, heard, inventory, lease, look, store, unable, usage
from mlbox.host.awaited import Awaited

Json = dict[str, Any]
_PAUSES = (0.01, 0.05, 0.2)  # s
BEAT = 180.0  # s after which a user's ticks on this host count as stopped


@dataclass(frozen=True)
class Seen:
    """A view, and what it was made of."""

    view: View
    gpus: tuple[Gpu, ...]
    driver: str
    hosts: tuple[HostFacts, ...]
    looked: Json  # what the next look at this user's lines goes on from
    whole: bool  # these were read to their ends
    awaited: Json | None  # and what it need not read again, if it was asked
    unable: unable.Told  # of this user's jobs, what this host still passes over


def read(found: store.Store, rules: Lab, now: float, asked: inventory.Asked) -> Seen:
    """`asked`: of the driver, a moment ago."""
    users = list(known_users(found))
    gpus, driver = inventory.held(*asked)
    running = [run for user in users for run in running_of(found, user)]
    shares = lease.shares()
    told = {user: files.read_json(found.on(user=user) / "host.json") for user in users}
    served = [user for user in users if user == found.user or _ticks(told[user], now)]
    passed_over = {user: unable.here(told[user], user == found.user) for user in served}
    host = replace(
        facts(found, rules, tuple(_without_the_jobs_own(gpus, running, found.host, shares))),
        unable={key: why for user in served for key, why in unable.words(found.host, user, passed_over[user]).items()},
    )
    served.sort(key=lambda user: user != found.user)  # what others wait for takes nothing of what is read for this one
    others = [
        replace(h, gpus=tuple(_without_the_jobs_own(h.gpus, running, h.name, {})))
        for h in published(found, rules, users)
        if h.name != found.host
    ]
    view = View(
        host, rules, (), running, shares, _memory_free(), usage=_usage(found, users, now, rules.half_life),
        paused=marks(found.root / "paused"), acting=found.user,
    )  # fmt: skip
    awaited = Awaited(found, users, running)
    view, looked, whole = _lines(found, view, awaited, served, now)
    view = replace(view, reserved_here=reserved_on(view, others))
    mine = passed_over.get(found.user, {})
    return Seen(view, tuple(gpus), driver, (host, *others), looked, whole, awaited.memory, mine)


def _lines(found: store.Store, view: View, awaited: Awaited, served: list[str], now: float) -> tuple[View, Json, bool]:
    """With those who wait, and what became of those that they wait for; of this user's lines what the next look goes on
    from, and whether there is nothing behind."""
    view = replace(view, states=awaited.states, arrays=awaited.arrays)
    waiting: dict[tuple[str, str], Waiting] = {}
    looked: Json = {}
    whole = True
    startable = Startable(view, now)

    def could(job: Waiting) -> bool:
        awaited.add(job)
        return startable.could(job)

    for user in served:
        memory = look.remembered(found, user)
        for queue in view.host.queues:
            line = look.Look(found, user, queue, could, now, view.host.unable)
            place = line.read(memory.get(queue), onward=user == found.user)
            for job in line.jobs.values():  # one that is being moved stands in two lines
                if job.moves >= waiting.setdefault((user, job.id), job).moves:
                    waiting[user, job.id] = job
            if user == found.user:
                whole &= line.whole
                looked.update({queue: place} if place else {})
    return replace(view, waiting=[*waiting.values()]), looked, whole


def known_users(found: store.Store) -> Iterable[str]:
    """Whose folder in ROOT is theirs: a folder of another's making counts for nobody."""
    try:
        names = sorted(os.listdir(found.root / "users"))
    except OSError:
        return
    for name in names:
        with suppress(KeyError, ValueError):
            if files.is_own(found.own(name), os.getuid() if name == found.user else pwd.getpwnam(name).pw_uid):
                yield name


def facts(found: store.Store, rules: Lab, gpus: tuple[Gpu, ...]) -> HostFacts:
    entry = rules.host(found.host)
    drained = _is_drained(found, found.host)
    return HostFacts(found.host, gpus, _cpus(), _memory(), entry.labels, entry.queues, drained)


def _is_drained(found: store.Store, name: str) -> bool:
    return files.is_there(found.root / "drained" / name)  # anybody's word, whatever it is


def _cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _meminfo() -> Mapping[str, int]:
    """In MiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) >> 10 for line in lines if line.endswith("kB")}
    except (OSError, ValueError, IndexError):
        return {}


def _memory() -> int:
    total = _meminfo().get("MemTotal", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20)
    return resources.for_jobs(total)


def _memory_free() -> int | None:
    return _meminfo().get("MemAvailable")


def _without_the_jobs_own(
    gpus: Iterable[Gpu], running: Iterable[Running], host: str, shares: Mapping[str, Mapping[str, int]]
) -> Iterable[Gpu]:
    """On a GPU with shares, its sharers' processes are no obstacle. NVML names a process and not its job, so it
    goes by the user: an outsider is one who has no share there."""
    sharers: dict[str, set[str]] = {}
    for run in running:
        if run.host == host and run.share:
            for uuid in run.gpus:
                sharers.setdefault(uuid, set()).add(run.owner)
    for gpu in gpus:
        known = sharers.get(gpu.uuid, set())
        holder = None if gpu.uuid in shares else gpu.holder  # of a share; the scheduler adds them up itself
        yield replace(gpu, holder=holder, processes=tuple(p for p in gpu.processes if p.user not in known))


def _ticks(beat: Any, now: float) -> bool:
    """Whether a user's ticks run here, by what they last told. This host's clock wrote it, so it may be compared."""
    return isinstance(beat, dict) and abs(now - moment(beat.get("at"))) < BEAT


def running_of(found: store.Store, user: str) -> Iterable[Running]:
    for host in names(found.own(user) / "on"):
        live = names(found.on(host, user) / "live")
        told = {name for name in live if name.endswith(store.ENDING)}
        for name in filter(ids.is_ulid, live):
            document = files.read_json(found.on(host, user) / "live" / name)
            if not isinstance(document, dict) or document.get("fenced"):
                continue
            with suppress(errors.Usage):
                run = running_from_wire(name, user, host, document)
                yield replace(run, ending=True) if name + store.ENDING in told else run


def names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError:
        return []


def _usage(found: store.Store, users: Iterable[str], now: float, half_life: int) -> dict[str, float]:
    """GPU-seconds, decayed."""
    used: dict[str, float] = {}
    for user in users:
        for host in names(found.own(user) / "on"):
            document = files.read_json(found.on(host, user) / "usage.json")
            used[user] = used.get(user, 0.0) + usage.decayed(document, now, half_life)
    return used


def published(found: store.Store, rules: Lab, users: Iterable[str]) -> list[HostFacts]:
    """All hosts as they last told of themselves, whoever's tick it was; `users` are all that are known."""
    newest: dict[str, Json] = {}
    told: dict[str, str] = {}
    passed_over: dict[str, dict[resources.Turn, str]] = {}
    pauses = iter(_PAUSES)
    for user in users:
        for name in names(found.own(user) / "on"):
            document = _told(found.on(name, user), pauses)
            if isinstance(document, dict):
                at = moment(document.get("at"))
                told[name] = f"{told.get(name, '')}{user} {at} "
                passed_over.setdefault(name, {}).update(unable.words(name, user, unable.read(document)))
                if at >= moment(newest.get(name, {}).get("at")):
                    newest[name] = document
    silent = heard.silent(found, told)
    known = (_host(found, rules, name, document) for name, document in sorted(newest.items()))
    return [replace(h, silent=silent.get(h.name, 0.0), unable=passed_over.get(h.name, {})) for h in known if h]


def _told(folder: Path, pauses: Iterator[float]) -> Any:
    """host.json. GlusterFS may have none for a moment while its host replaces it, and lists it all the same: a host is
    not to be taken for one that was never heard of. `pauses` are for all that are read: many may be no JSON at all."""
    while True:
        document = files.read_json(folder / "host.json")
        if document is not None or "host.json" not in names(folder):
            return document
        pause = next(pauses, None)
        if pause is None:
            return None
        time.sleep(pause)


def silent(found: store.Store, rules: Lab) -> dict[str, float]:
    """Host -> s for which nothing has been heard of it, where that is too long."""
    return {host.name: host.silent for host in published(found, rules, known_users(found)) if host.silent}


def report(found: store.Store, name: str, user: str) -> tuple[Json, float] | None:
    """What this user's ticks on another host last told of it, checked; and when they were last at work (our clock's
    time, as far as the share has it). None where they have told nothing."""
    folder = found.on(name, user)
    document = files.read_json(folder / "host.json")
    if not isinstance(document, dict) or _host(found, Lab(), name, document) is None:
        return None
    times = []
    for file in ("host.json", "reverse.json"):
        with suppress(OSError):
            times.append(os.stat(folder / file, follow_symlinks=False).st_mtime)
    return document, max(times, default=0.0)


def _host(found: store.Store, rules: Lab, name: str, document: Json) -> HostFacts | None:
    entry = rules.host(name)
    if not resources.is_label(name):
        return None
    gpus = inventory.from_wire(document)
    if gpus is None or "cpus" not in document or "memory" not in document:
        return None
    cpus, memory = int(moment(document["cpus"])), int(moment(document["memory"]))
    return HostFacts(name, gpus, cpus, memory, entry.labels, entry.queues, _is_drained(found, name))


def marks(folder: Path, reasons: bool = True) -> dict[str, str]:
    """Words that people left: name -> by whom, and with `reasons` behind it why, where that was said."""
    found = {}
    for name in names(folder):
        document = files.read_json(folder / name)
        said = document if isinstance(document, dict) else {}
        found[name] = said_by(str(said.get("by", "someone")), str(said.get("why", "")) if reasons else "")
    return found


def said_by(user: str, why: str) -> str:
    """`ada`, or `ada (new PSU)`."""
    words = " ".join(why.split())[:80]
    return user[:40] + (f" ({words})" if words else "")
