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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import job as jobs
from mlbox.core.gpu import Holder
from mlbox.core.lab import Lab
from mlbox.core.log import State
from mlbox.core.schedule import Plan, Start, View, Waiting, limited, plan
from mlbox.host import (
    archive,
    batch,
    engines,
    keeper,
    keeping,
    lab,
    lease,
    limits,
    look,
    processes,
    ready,
    reverse,
    slots,
    store,
    view,
)  # fmt: skip
from mlbox.host.idle import guard, idle, name_of_ticks
from mlbox.host.sweep import sweep

Json = dict[str, Any]
_LONG = 1 << 20  # bytes of the tick's log


@dataclass(frozen=True)
class Report:
    """What one tick did."""

    started: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    waits: Json | None = None  # None: it did not look (nothing to do, or another one at work)
    trouble: str = ""  # lab.yaml's
    busy: bool = False  # another tick was at work, and this one did nothing


def main(arguments: list[str]) -> int:
    """What cron runs: quiet when all is well; what is wrong goes to stderr, once per tick, and once in all what
    stays wrong until somebody mends lab.yaml."""
    root = Path(arguments[1]) if arguments[:1] == ["--root"] and len(arguments) == 2 else None
    _cut(store.cache_home() / "tick.log")
    found = store.Store(root)
    try:
        report = run(found)
        new = report.waits is not None and _is_news(found, report.trouble)
    except (errors.MlboxError, OSError, slots.Unsettled) as error:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} mlbox: {error}", file=sys.stderr)
        return 1
    if new:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} mlbox: {report.trouble}", file=sys.stderr)
    return 0


def _is_news(found: store.Store, trouble: str) -> bool:
    """Whether cron's log does not end with it already."""
    said = _local(found, "said")
    if not trouble:
        said.unlink(missing_ok=True)
        return False
    if said.exists() and said.read_text(errors="replace") == trouble:
        return False
    store.write_whole(said, trouble.encode(errors="replace"))
    return True


def _cut(path: Path) -> None:
    """cron appends what ticks print; a log that has grown long starts anew, its last part kept."""
    with suppress(OSError):
        if path.stat().st_size > _LONG:
            with path.open("rb") as file:
                file.seek(-_LONG // 4, os.SEEK_END)
                kept = file.read()
            store.write_whole(path, kept.partition(b"\n")[2])


def run(found: store.Store) -> Report:
    """Raises HostUnready where ROOT is not there."""
    lab.identify(found.root)
    lock, wanted = _local(found, "lock"), _local(found, "wanted")
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


def _name(found: store.Store) -> str:
    return name_of_ticks(str(found.root))


def _local(found: store.Store, kind: str) -> Path:
    return found.boot_folder() / f"{_name(found)}.{kind}"


def _merged(earlier: Report, later: Report) -> Report:
    if earlier.busy:
        return later
    acts = {name: getattr(earlier, name) + getattr(later, name) for name in ("started", "preempted", "failed")}
    return replace(later, **acts)


def _pass(found: store.Store) -> Report:
    if idle(str(found.root), found.user, found.host):
        return Report()
    _undo_starts(found)
    sweep(found)
    rules = lab.rules(found)
    if not rules.usable:
        return Report(waits=_stopped(found, rules.trouble), trouble=rules.trouble)
    with lease.choosing():
        seen = view.read(found, rules.lab, time.time())
        decided = _decide(found, seen.view)
        mine = {job.id: job for job in seen.view.waiting if job.owner == found.user}
        done = _apply(found, decided, mine, rules.lab)
    waits = {**decided.waits, **(done.waits or {})}
    if not mine:
        ready.prune(found)
    _publish(found, seen, waits)
    return replace(done, waits=waits, trouble=rules.trouble)


def _decide(found: store.Store, seen: View) -> Plan:
    """No room is kept, and nobody told to end, for a job whose hint is stale: of these, and no others, the logs are
    looked at. A hint of this user's goes, another's is passed over."""
    while True:
        decided = plan(seen, time.time())
        stale = {job.id: job for job in seen.waiting if job.id in decided.kept and not _still_waits(found, job)}
        if not stale:
            return decided
        for job in stale.values():
            if job.owner == found.user:
                _stale(found, found.job(job.id), job)
        seen = replace(seen, waiting=[job for job in seen.waiting if job.id not in stale])


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
    waits = {job.id: why for queue in queues for job in ready.heads(found, found.user, queue, look.LOOK)}
    if waits:
        store.write_whole(found.on() / "waits.json", json.dumps(waits).encode(), 0o644)
    return waits


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


def _apply(found: store.Store, decided: Plan, mine: dict[str, Waiting], rules: Lab) -> Report:
    """What was done; as `waits` what could not be, and why: one job's trouble is not the others'."""
    troubles: Json = {}

    def done(job: str, act: Callable[..., bool], *arguments: Any) -> bool:
        try:
            return act(found, *arguments)
        except _Over as why:
            troubles[job] = str(why)
            return False
        except (errors.MlboxError, OSError) as error:
            troubles[job] = f"{found.host}: {error}"
            print(f"{job}: {error}", file=sys.stderr)
            return False

    failed = tuple(job for job, why in decided.fail.items() if done(job, _fail, mine[job], why))
    preempted = tuple(job for job, why in decided.preempt.items() if done(job, _preempt, job, why))
    started = tuple(s.job for s in decided.start if done(s.job, start, mine[s.job], s, rules))
    return Report(started, preempted, failed, troubles)


def _fail(found: store.Store, job: Waiting, why: str) -> bool:
    """It can never run any more."""
    ended = found.job(job.id)
    if not ended.append("failed", {"at": time.time(), "reason": "dependency", "why": why}, patience=0):
        return False
    batch.settle(found, ended, ended.spec())
    ready.withdraw(found, job)
    return True


def _preempt(found: store.Store, job: str, for_job: str) -> bool:
    running = found.job(job)
    facts = {"at": time.time(), "for": f"it made room for job {for_job}"}
    if not running.append("preempt_requested", facts, patience=0):
        return False
    found.mark_ending(running, found.host)
    keeping.tell(running)
    return True


class _Over(Exception):
    """Other hosts have started jobs meanwhile, and one more would be beyond a limit."""


def start(found: store.Store, job: Waiting, chosen: Start, rules: Lab | None = None) -> bool:
    """Lease, claim, and hand over to a keeper; False where somebody else was faster, and nothing is left of it.

    `rules`: whose limits are to hold."""
    held = _lease(found, job, chosen)
    if held is None:
        return False
    made, keeper_lock, attempt = found.job(job.id), None, None
    word = _local(found, f"starting.{job.id}")
    try:
        word.touch()
        found.reserve(made)
        keeper_lock = keeping.lock(made)
        if keeper_lock is None:
            return False
        attempt = _claim(found, made, job, chosen, rules)
        if attempt is not None:
            log, kept = attempt.folder / "keeper.log", (keeper_lock, *held.values())
            keeping.detach(lambda: _keep(attempt, held), log, kept)
        return attempt is not None
    finally:
        settled = attempt is not None
        if keeper_lock is not None:
            settled = settled or _unreserve(found, made)
            os.close(keeper_lock)
        lease.drop(held)
        if settled:
            with suppress(OSError):
                word.unlink()


def _undo_starts(found: store.Store) -> None:
    """A tick was killed at a start, or lost the share, before the mark by which a sweep finds the job: another host may
    run it since."""
    for word in found.boot_folder().glob(f"{_name(found)}.starting.*"):
        made = found.job(word.name.rpartition(".")[2])
        if keeping.lives(made) or _unreserve(found, made):
            word.unlink(missing_ok=True)


def _unreserve(found: store.Store, made: store.Job) -> bool:
    """It does not start here: its folder of this boot goes, for nothing would find it again. A mark of it can stand
    all the same: its runner is alive and its keeper killed, or the claim may be on record; then the sweep decides.
    False where it can't be known now."""
    try:
        if not found.is_live(made):
            found.clear(made)
    except OSError:
        return False
    return True


def _keep(attempt: batch.Attempt, held: dict[str, int]) -> None:
    if attempt.spec.session:
        claim = keeper.Claim(attempt.found, attempt.job, attempt.spec.work, "", attempt.gpus)
        keeper.Keeper(claim, held).run()
        again(attempt.found)
    else:
        batch.Batch(attempt, held).run()


def _lease(found: store.Store, job: Waiting, chosen: Start) -> dict[str, int] | None:
    holder = Holder(found.user, job.id)
    if chosen.share:
        return lease.take_share(chosen.gpus[0], job.id, chosen.share, holder)
    return lease.take(chosen.gpus, holder)


def _claim(found: store.Store, made: store.Job, job: Waiting, chosen: Start, rules: Lab | None) -> batch.Attempt | None:
    """The hint that finds it comes first, then the claim, then it leaves the line: a crash anywhere is mended by
    the next sweep of this host. So it is where the append raises: the claim may stand."""
    state = made.state()
    spec = _readable(made, state)
    if spec is None or not state.waiting:
        _stale(found, made, job)
        return None
    runtime = engines.choose(spec.work, found)
    spec = spec.with_runtime(runtime)
    number = state.attempt + 1
    record = _record(spec, job, chosen)
    if rules and limited(rules, job):
        found.mark_live(made, {**record, "asking": True})
        why = limits.over(found, rules, job, chosen.gpus)
        if why:
            found.end(made)
            raise _Over(why)
    found.mark_live(made, record)
    facts = {
        "at": time.time(), "claimed_at": time.time(), "host": found.host, "boot": processes.boot_id(),
        "gpus": list(chosen.gpus), "share": chosen.share, "time_limit": chosen.time_limit, "attempt": number,
        "runtime": runtime,
    }  # fmt: skip
    if not made.append("claimed", facts, patience=0):
        found.end(made)  # keeper.lock is ours: nothing runs here for it
        _stale(found, made, job)
        return None
    ready.withdraw(found, job)
    attempt = batch.Attempt(
        found, made, spec, number, chosen.gpus, chosen.share, chosen.time_limit, lambda: again(found)
    )
    attempt.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return attempt


def _readable(made: store.Job, state: State) -> jobs.JobSpec | None:
    """The spec with its secrets; where it is damaged, the job has failed."""
    try:
        return made.whole()
    except errors.NotFound as error:
        if state.waiting:
            made.append("failed", {"at": time.time(), "reason": "start", "why": error.message}, patience=0)
        return None


def _stale(found: store.Store, made: store.Job, job: Waiting) -> None:
    """The hint of a job that does not wait: whoever ended or claimed it died, or is about to withdraw it."""
    state = made.state()
    if state.waiting:
        return
    if state.name and not state.live:
        archive.add(found, made, made.shown(), state)
    ready.withdraw(found, job)


def _record(spec: jobs.JobSpec, job: Waiting, chosen: Start) -> Json:
    """The live hint: core.schedule.Running as JSON."""
    asked = spec.resources
    return {
        "queue": job.queue, "gpus": list(chosen.gpus), "share": chosen.share, "cpus": asked.cpus,
        "memory": asked.memory, "priority": job.priority, "started": time.time(), "time_limit": chosen.time_limit,
        "array": job.array, "kind": job.kind, "program": Path(sys.argv[0]).name,
    }  # fmt: skip


def again(found: store.Store) -> None:
    """After a job's end, a keeper's last act: what it made room for starts now, not at cron's next minute."""
    guard(str(found.root))
    try:
        run(found)
    except (errors.MlboxError, OSError, slots.Unsettled) as error:
        print(f"tick: {error}", file=sys.stderr)


def _publish(found: store.Store, seen: view.Seen, waits: Json) -> None:
    host = seen.view.host
    found.open_users()
    # There from the first tick on: an idle one looks into each.
    for folder in (found.live, found.making, found.own() / "ready"):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    facts = {
        "at": time.time(), "boot": processes.boot_id(), "driver": seen.driver, "cpus": host.cpus,
        "memory": host.memory, "gpus": [asdict(gpu) for gpu in seen.gpus],
    }  # fmt: skip
    store.write_whole(found.on() / "host.json", json.dumps(facts).encode(), 0o644)
    reverse.publish(found, seen.view.lab)
    store.write_whole(found.on() / "waits.json", json.dumps(waits).encode(), 0o644)
    if seen.looked != look.remembered(found, found.user):
        store.write_whole(look.path(found), json.dumps(seen.looked).encode(), 0o644)
