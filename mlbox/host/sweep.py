"""Finding what was left behind on this host: jobs and sessions of this user's without a keeper."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from mlbox import errors
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.log import State, fold
from mlbox.core.schedule import Waiting
from mlbox.host import archive, batch, files, here, keeping, processes, ready, store
from mlbox.host.job import Job

_SKEW = 60.0  # s; below, it is no twin's: the clock of a disk of this host's own was ahead before the boot
_WORKS = 1200.0  # s within which the ticks of a host that is at work have published, even where nothing happens


def sweep(found: store.Store) -> list[Job]:
    """Adopt, end or requeue what has lost its keeper; the jobs and sessions that live here. For a dry run, those that
    seem to: one that has lost its keeper is left, and is what its log says. Raises HostUnready."""
    if found.dry:
        return [job for job in found.live_jobs() if not found.is_fenced(job) and _seems_alive(job)]
    alone(found)
    found.sweep_torn()
    for job in found.left_in_making():
        _guarded(_make, found, job)
    for job in found.shared_jobs():
        _guarded(_close_door, found, job)
    return [job for job in found.live_jobs() if _guarded(_look_after, found, job)]


def _seems_alive(job: Job) -> bool:
    return keeping.lives(job) or job.state().running


def alone(found: store.Store) -> None:
    """Raises HostUnready where another machine of this name is at work in ROOT: either would take the other's jobs for
    its own before a reboot, and start them once more.

    An inventory of another boot is one from before this one, unless it was written since. Both times are the share's:
    a wall clock may have been set on the way."""
    path, boot = found.on() / "host.json", processes.boot_id()
    told = files.read_json(path)
    if not boot or not isinstance(told, dict) or told.get("boot") in (None, boot):
        return
    with suppress(OSError):  # it is gone, or nothing can be written there: nor is anything started then
        age = files.now(found.parts) - path.stat().st_mtime
        if -_SKEW < age < min(processes.uptime() - 1, _WORKS):
            raise errors.HostUnready(
                f"another machine that is called {found.host} works in {found.root}",
                f"give one of them another name; if that one is gone, wait {_WORKS / 60:.0f} minutes",
            )


def _guarded(act: Callable[[store.Store, Job], bool], found: store.Store, job: Job) -> bool:
    """One job's trouble (an engine that does not answer, a disk that is full) is not the others'. It is then neither
    ended nor kept, and counts as alive; the next call tries again."""
    try:
        return act(found, job)
    except (errors.MlboxError, OSError) as error:
        print(f"{job.id}: {error}", file=sys.stderr)
        return True


def _close_door(found: store.Store, job: Job) -> bool:
    """Of a session elsewhere that ended while no tunnel of it ended here."""
    state = job.state()
    if state.name and not state.live:
        job.clear_shares()
    return True


def _make(found: store.Store, job: Job) -> bool:
    """Whoever made it, or moved it, died on the way: where its log has it in line it goes, and there alone, and away
    with one that no log has. One that was started by then is among the live ones."""
    state = _settled_state(job)
    if not state.name and found.is_moved(job) and not job.is_gone():
        return False
    if not state.name:
        found.forget(job)
    elif "queue" in state.facts:
        spec = job.spec()
        place = waiting(job.id, job.owner, spec, state)
        if state.waiting:
            ready.publish(found, place)
        for left in _left_by_moves(job, spec):
            if ready.folder(found, left) != ready.folder(found, place):
                ready.withdraw(found, left)
    found.unmark_making(job)
    return False


def _left_by_moves(job: Job, spec: JobSpec) -> list[Waiting]:
    events = job.events()
    moved = (number for number, event in enumerate(events) if event.get("event") == "moved")
    return [waiting(job.id, job.owner, spec, fold(events[:number])) for number in moved]


def _settled_state(job: Job) -> State:
    with suppress(FileNotFoundError):
        job.log().sweep_intents(here.is_dead)
    return job.state()


def _look_after(found: store.Store, job: Job) -> bool:
    """Whether it lives. What its keeper was asked for while it could not be told, it is told again."""
    if found.is_fenced(job):
        return _end_fenced(found, job)
    if not keeping.lives(job):
        return _rescue(found, job)
    if job.state().requested:
        keeping.tell(job)
    return True


def _end_fenced(found: store.Store, job: Job) -> bool:
    """This host was declared gone, and is there: what it still runs counts for nothing, and ends."""
    if keeping.lives(job):
        keeping.tell(job)
        return False
    held = keeping.lock(job)
    if held is None and job.boot_folder.exists():
        return False  # somebody else is at it
    try:
        own = [e for e in job.events() if e["event"] == "claimed" and e.get("host") == found.host]
        spec = job.spec().with_runtime(str(own[-1].get("runtime", "")) if own else "")
        return batch.superseded(found, job, spec)
    finally:
        if held is not None:
            os.close(held)


def _rescue(found: store.Store, job: Job) -> bool:
    """True when it lives on under a new keeper."""
    held = keeping.lock(job)
    if held is None and job.boot_folder.exists():
        return True  # somebody else was faster
    try:
        state = _settled_state(job)
        if not state.name:
            if not job.is_gone():  # its log may only be not seen just now
                return True
            found.end(job)
            return False
        spec = job.spec().with_runtime(str(state.facts.get("runtime", "")))
        if not state.live or state.waiting:
            return _settle(found, job, state, spec)
        if state.facts.get("host", found.host) != found.host:
            return batch.superseded(found, job, spec)
        if spec.session:
            from mlbox.host import rescue

            lives = rescue.rescue(found, job, state, spec, -1 if held is None else held)
            return lives or _settle(found, job, job.state(), spec)
        return batch.rescue(found, job, state, spec, -1 if held is None else held)
    finally:
        if held is not None:
            os.close(held)


def _settle(found: store.Store, job: Job, state: State, spec: JobSpec) -> bool:
    """A crash came between an event and its hints: they follow now."""
    if state.waiting and "queue" in state.facts:
        ready.publish(found, waiting(job.id, job.owner, spec, state))
    elif state.waiting:
        job.append("failed", {"reason": "start", "why": "it was never started"})
    elif not spec.session:
        archive.add(found, job, spec, state)
    found.end(job)
    return False
