"""One pass over the queue, for one user on one host: what cron, submit, cancel and a job's end call.

    take the tick's lock (another is at work: leave) → is ROOT the ROOT? → adopt, end or requeue own jobs without a
    keeper → read (host/view.py) → decide (core/schedule) → per chosen job: lease its GPUs, claim, fork a keeper
    → publish inventory and beat, and why the rest waits

It looks at what is and moves it toward what should be, so a second one right behind changes nothing, and whatever
one of them misses, the next one does. Where nothing waits and nothing runs, it costs a few look-ups.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core.lab import Lab
from mlbox.core.schedule import Plan, View, Waiting, plan, running
from mlbox.host import (
    attempts,
    awaited,
    claim,
    files,
    here,
    inventory,
    keeping,
    lab,
    lease,
    look,
    processes,
    ready,
    slots,
    store,
    unable,
    view,
)
from mlbox.host.idle import guard, idle
from mlbox.host.sweep import sweep

Json = dict[str, Any]
_GENERATIONS = 16  # of keepers, forked by one another's last tick


@dataclass(frozen=True)
class Report:
    """What one tick did, or would do."""

    started: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    waits: Json | None = None  # None: it did not look (nothing to do, or another one at work)
    trouble: str = ""  # lab.yaml's
    busy: bool = False  # another tick was at work, and this one did nothing
    whole: bool = True  # it looked at all that waits


def run(found: store.Store) -> Report:
    """Raises HostUnready where ROOT is not there."""
    lab.identify(found.root)
    lock, wanted = found.of_ticks("lock"), found.of_ticks("wanted")
    report = Report(busy=True)
    # Who finds a tick at work leaves word: that one may have read before what the newcomer changed. Looked for
    # again after the lock is free, because between a last look and that moment word may have been left too.
    wanted.touch(mode=0o600)
    while wanted.exists():
        with _lock(lock) as mine:
            if not mine:
                return report
            wanted.unlink(missing_ok=True)
            report = _merged(report, _pass(found))
    return report


def behind(found: store.Store) -> Report:
    """The tick behind what was acknowledged: that is on record, and an error here takes nothing of it back."""
    try:
        return run(found)
    except (errors.MlboxError, OSError) as error:
        said = error.message if isinstance(error, errors.MlboxError) else str(error)
        return Report(trouble=f"{found.host} starts nothing just now: {said}; the next tick tries again")


def _merged(earlier: Report, later: Report) -> Report:
    return later if earlier.busy else _acts(earlier, later)


def _acts(earlier: Report, later: Report) -> Report:
    """The later one, with what both did."""
    acts = {name: getattr(earlier, name) + getattr(later, name) for name in ("started", "preempted", "failed")}
    return replace(later, **acts)


def _pass(found: store.Store) -> Report:
    if idle(str(found.root), found.user, found.host):
        return Report()
    found.own_place()
    claim.undo_starts(found)
    sweep(found)
    rules = lab.rules(found)
    if not rules.usable:
        waits = _stopped(found, rules.trouble)
        if waits:
            files.write_whole(found.on() / "waits.json", json.dumps(waits).encode(), 0o644)
        return Report(waits=waits, trouble=rules.trouble, whole=False)
    asked = inventory.ask(found)  # before other users wait for the lock: a driver may take its time
    with lease.choosing():
        seen = view.read(found, rules.lab, time.time(), asked)
        done, left_alone = _work_off(found, seen.view, rules.lab)
        _tell(found, seen, {**seen.unable, **left_alone})  # the next one who chooses reads it
    if done.failed:  # ends like any other, for which others may wait
        found.of_ticks("wanted").touch(mode=0o600)
    if not any(job.owner == found.user for job in seen.view.waiting):
        ready.prune(found)
    _publish(found, seen, done.waits or {})
    return replace(done, trouble=rules.trouble, whole=seen.whole)


def _work_off(found: store.Store, seen: View, rules: Lab) -> tuple[Report, unable.Told]:
    """Decide, and do it; again while something could not be started, for its room is the others'. And what that was."""
    mine = {job.id: job for job in seen.waiting if job.owner == found.user}
    report, left_alone = Report(waits={}), unable.Told()
    while True:
        decided, stale = _decide(found, seen)
        for job in stale:
            claim.stale(found, found.job(job.id), job)
        done, broken = _apply(found, decided, mine, rules, left_alone)
        troubles = {**(report.waits or {}), **(done.waits or {})}
        report = replace(_acts(report, done), waits=troubles)
        if not broken:
            return replace(report, waits={**decided.waits, **troubles}), left_alone
        gone = {*broken, *done.started, *done.failed}
        begun = [running(mine[s.job], s, found.host, time.time()) for s in decided.start if s.job in done.started]
        ending = [replace(run, ending=run.ending or run.id in done.preempted) for run in seen.running]
        seen = replace(seen, waiting=[job for job in seen.waiting if job.id not in gone], running=[*ending, *begun])


def _decide(found: store.Store, seen: View) -> tuple[Plan, list[Waiting]]:
    """No room is kept, and nobody told to end, for a job whose hint is stale: of these, and no others, the logs are
    looked at. Another user's is passed over; this user's, which are to go, are the second of the pair."""
    own: list[Waiting] = []
    while True:
        decided = plan(seen, time.time())
        stale = {job.id: job for job in seen.waiting if job.id in decided.kept and not _still_waits(found, job)}
        if not stale:
            return decided, own
        own += [job for job in stale.values() if job.owner == found.user]
        seen = replace(seen, waiting=[job for job in seen.waiting if job.id not in stale])


def foresee(found: store.Store) -> Report:
    """What a pass would do, by what is there now: nothing is mended before, done, or kept for the next one. Raises
    HostUnready where ROOT is not there."""
    lab.identify(found.root)
    rules = lab.rules(found)
    if not rules.usable:
        return Report(waits=_stopped(found, rules.trouble), trouble=rules.trouble, whole=False)
    seen = view.read(found, rules.lab, time.time(), inventory.ask(found))
    decided, _ = _decide(found, seen.view)
    report = Report(tuple(chosen.job for chosen in decided.start), tuple(decided.preempt), tuple(decided.fail))
    return replace(report, waits=dict(decided.waits), trouble=rules.trouble, whole=seen.whole)


def _still_waits(found: store.Store, job: Waiting) -> bool:
    """Where its log can't be had just now, or is not for us to read, its hint is believed. One without any log too, if
    it is ours (its start will find out); anybody could write another's."""
    try:
        state = found.job(job.id, job.owner).state()
    except OSError:
        return True
    return state.waiting or (not state.name and job.owner == found.user)


def _stopped(found: store.Store, why: str) -> Json:
    """Nothing is started without rules: those that wait are told so."""
    queues = ready.queues(found, found.user)
    return {job.id: why for queue in queues for job in ready.heads(found, found.user, queue, look.LOOK)}


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Local, of this user and ROOT: overlap is told apart without waiting."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


# ---- act -------------------------------------------------------------------------------------------------


def _apply(
    found: store.Store, decided: Plan, mine: dict[str, Waiting], rules: Lab, left_alone: unable.Told
) -> tuple[Report, set[str]]:
    """What was done; as `waits` what could not be, and why: one job's trouble is not the others'. And which can't be
    started as they are: not those to whom others were only faster. `left_alone` gains what is this host's trouble."""
    troubles: Json = {}
    later: set[str] = set()

    def done(job: str, act: Callable[..., bool], *arguments: Any) -> bool:
        try:
            return act(found, *arguments)
        except claim.Outrun as why:
            troubles[job] = str(why)
            later.add(job)
            return False
        except (errors.MlboxError, OSError) as error:
            troubles[job] = f"{found.host}: {error}"
            if isinstance(error, errors.HostUnready) and job in mine:
                left_alone[job] = (*unable.of(error), mine[job].attempt)
            print(f"{job}: {error}", file=sys.stderr)
            return False

    failed = tuple(job for job, why in decided.fail.items() if done(job, _fail, mine[job], why))
    preempted = tuple(job for job, why in decided.preempt.items() if done(job, _preempt, job, why))
    started = tuple(s.job for s in decided.start if done(s.job, claim.start, mine[s.job], s, rules, again))
    broken = {s.job for s in decided.start} - {*started, *later}
    return Report(started, preempted, failed, troubles), broken


def _fail(found: store.Store, job: Waiting, why: str) -> bool:
    """It can never run any more."""
    ended = found.job(job.id)
    if not ended.append("failed", {"at": time.time(), "reason": "dependency", "why": why}, patience=0):
        return False
    attempts.settle(found, ended, ended.spec())
    ready.withdraw(found, job)
    return True


def _preempt(found: store.Store, job: str, for_job: str) -> bool:
    """The attempt that runs here, as was decided: by now another host may be at a later one, and makes no room here."""
    told, facts = found.job(job), {"at": time.time(), "for": f"it made room for job {for_job}"}
    state = told.state()
    if not state.running or state.facts.get("host") != found.host:
        return False
    if not told.append("preempt_requested", facts, state.attempt, patience=0):
        return False
    found.mark_ending(told, found.host)
    keeping.tell(told)
    return True


def again(found: store.Store) -> None:
    """After a job's end, a keeper's last act: what it made room for starts now, not at cron's next minute.

    Mostly by a fork, as a Python's start costs more than a short job. But what is started so ends here too, deeper in
    the same stack: after a while a new Python goes on."""
    guard(str(found.root))
    try:
        if keeping.generation >= _GENERATIONS:
            _anew(found)
        run(found)
    except (errors.MlboxError, OSError, slots.Unsettled) as error:
        print(f"tick: {error}", file=sys.stderr)


def _anew(found: store.Store) -> None:
    """The same, by a new Python. Returns where that can't be."""
    if not os.path.exists(sys.argv[0]):  # pruned meanwhile
        return
    if here.umask >= 0:  # it finds the user's own again (here.be_readable)
        os.umask(here.umask)
    try:
        os.execv(sys.executable, (sys.executable, "-I", "-S", sys.argv[0], "again", str(found.root)))
    except OSError:
        here.be_readable()


def _tell(found: store.Store, seen: view.Seen, left_alone: unable.Told) -> None:
    host = seen.view.host
    for folder in (found.live, found.making, found.own() / "ready"):  # an idle tick looks into each
        files.make_folder(folder)
    facts = {
        "at": time.time(), "boot": processes.boot_id(), "driver": seen.driver, "cpus": host.cpus,
        "memory": host.memory, "gpus": [asdict(gpu) for gpu in seen.gpus], "unable": unable.to_wire(left_alone),
    }  # fmt: skip
    files.write_whole(found.on() / "host.json", json.dumps(facts).encode(), 0o644, lasting=False)


def _publish(found: store.Store, seen: view.Seen, waits: Json) -> None:
    if seen.view.lab.host(found.host).via or (found.on() / "reverse.json").exists():
        from mlbox.host import reverse  # few hosts dial out

        reverse.publish(found, seen.view.lab)
    files.write_whole(found.on() / "waits.json", json.dumps(waits).encode(), 0o644, lasting=False)
    if seen.looked != look.remembered(found, found.user):
        files.write_whole(look.path(found), json.dumps(seen.looked).encode(), 0o644, lasting=False)
    if seen.awaited is not None and seen.awaited != awaited.remembered(found):
        files.write_whole(awaited.path(found), json.dumps(seen.awaited).encode(), 0o644, lasting=False)
