"""A job is started here: its GPUs leased, the claim made, a keeper forked. Whatever dies on the way, nothing is left.

word      in this boot's folder: a start is under way, which the next tick looks after
leases    kernel locks, which end with their holder
live      the hint by which a sweep finds the job
claimed   the event: from now on it is this host's
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from mlbox import errors
from mlbox.core import job as jobs
from mlbox.core.gpu import Holder
from mlbox.core.hints import waiting
from mlbox.core.lab import Lab
from mlbox.core.log import State
from mlbox.core.schedule import Start, Waiting, limited
from mlbox.core.verdict import elsewhere
from mlbox.host import archive, batch, files, keeping, lease, limits, processes, ready, runner, store, unable
from mlbox.host.attempts import Attempt
from mlbox.host.engines import aside
from mlbox.host.job import Job

Json = dict[str, Any]
After = Callable[[store.Store], None]


class Outrun(Exception):
    """Somebody else was faster: has the GPUs, or what a limit still allowed. The next tick sees that."""


def start(found: store.Store, job: Waiting, chosen: Start, rules: Lab | None, after: After) -> bool:
    """Lease, claim, and hand over to a keeper; False where it does not wait, or can't be read. Of a start that came to
    nothing, nothing is left. Raises Outrun.

    `rules`: whose limits are to hold; `after`: what the job's end makes possible, a tick."""
    held = _lease(found, job, chosen)
    if held is None:
        raise Outrun(f"{found.host}: somebody else has taken its GPUs just now")
    made, keeper_lock, attempt = found.job(job.id), None, None
    word = found.of_ticks(f"starting.{job.id}")
    try:
        word.touch()
        found.reserve(made)
        keeper_lock = keeping.lock(made)
        if keeper_lock is None:
            return False
        runner.make_room(made.boot_folder)
        attempt = _claim(found, made, job, chosen, rules, after)
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


def undo_starts(found: store.Store) -> None:
    """A tick was killed at a start, or lost the share, before the mark by which a sweep finds the job: another host may
    run it since."""
    for word in found.boot_folder().glob(found.of_ticks("starting.*").name):
        made = found.job(word.name.rpartition(".")[2])
        if keeping.lives(made) or _unreserve(found, made):
            word.unlink(missing_ok=True)


def _unreserve(found: store.Store, made: Job) -> bool:
    """It does not start here: its folder of this boot goes, for nothing would find it again. A mark of it can stand
    all the same: its runner is alive and its keeper killed, or the claim may be on record; then the sweep decides.
    False where it can't be known now."""
    try:
        if not found.is_live(made):
            found.clear(made)
    except OSError:
        return False
    return True


def _keep(attempt: Attempt, held: dict[str, int]) -> None:
    if attempt.spec.session:
        from mlbox.host import keeper

        claim = keeper.Claim(
            attempt.found, attempt.job, attempt.spec.work, attempt.identity, attempt.gpus, attempt.number,
            attempt.spec.code, attempt.time_limit,
        )  # fmt: skip
        keeper.Keeper(claim, held).run()
        attempt.after()
    else:
        batch.Batch(attempt, held).run()


def _lease(found: store.Store, job: Waiting, chosen: Start) -> dict[str, int] | None:
    holder = Holder(found.user, job.id)
    if chosen.share:
        return lease.take_share(chosen.gpus[0], job.id, chosen.share, holder)
    return lease.take(chosen.gpus, holder)


def _claim(
    found: store.Store, made: Job, job: Waiting, chosen: Start, rules: Lab | None, after: After
) -> Attempt | None:
    """The hint that finds it comes first, then the claim, then it leaves the line: a crash anywhere is mended by
    the next sweep of this host. So it is where the append raises: the claim may stand."""
    state = made.state()
    if not state.name:
        if not made.is_gone():
            raise errors.MlboxError(f"nothing is to be seen in its log, {made.folder}/ev; it waits until there is")
        ready.withdraw(found, job)
        return None
    spec = _readable(made, state)
    if spec is None or not state.waiting:
        stale(found, made, job)
        return None
    place = waiting(made.id, made.owner, spec, state)
    if ready.folder(found, place) != ready.folder(found, job):
        _mend(found, place, job)
        return None
    left_alone = elsewhere(state, found.host, time.time())
    if left_alone:
        why, left = left_alone
        raise unable.LeftAlone(why, processes.uptime() + left)
    engine = aside.choose(spec.work, found, bool(chosen.gpus))
    output_limit = (rules or Lab()).output_limit(job.queue, spec.output_limit)
    spec = replace(spec.with_runtime(engine.name), output_limit=output_limit)
    number = state.attempt + 1
    record = _record(spec, job, chosen)
    if rules and limited(rules, job):
        found.mark_live(made, {**record, "asking": True})
        why = limits.over(found, rules, job, chosen.gpus)
        if why:
            found.end(made)
            raise Outrun(why)
    found.mark_live(made, record)
    facts = {
        "at": time.time(), "claimed_at": time.time(), "host": found.host, "boot": processes.boot_id(),
        "gpus": list(chosen.gpus), "share": chosen.share, "time_limit": chosen.time_limit, "attempt": number,
        "runtime": engine.name, "moves": place.moves,
    }  # fmt: skip
    if not made.append("claimed", facts, patience=0):
        found.end(made)  # keeper.lock is ours: nothing runs here for it
        stale(found, made, job)
        return None
    ready.withdraw(found, job)
    attempt = Attempt(
        found, made, spec, number, chosen.gpus, chosen.share, chosen.time_limit, lambda: after(found),
        engine.identity or "",
    )  # fmt: skip
    files.make_folder(attempt.folder, 0o700)
    return attempt


def _readable(made: Job, state: State) -> jobs.JobSpec | None:
    """The spec with its secrets; where it is damaged, the job has failed."""
    try:
        return made.whole()
    except errors.NotFound as error:
        if state.waiting:
            made.append("failed", {"at": time.time(), "reason": "start", "why": error.message}, patience=0)
        return None


def stale(found: store.Store, made: Job, job: Waiting) -> None:
    """The hint of a job that does not wait: whoever ended it died, or is about to withdraw it. Only an end is for good:
    of a job that another host had, this one may not see yet that it waits again, and nothing else finds it then."""
    state = made.state()
    if state.name and not state.live:
        archive.add(found, made, made.shown(), state)
        ready.withdraw(found, job)


def _mend(found: store.Store, place: Waiting, job: Waiting) -> None:
    """By its log it stands at `place`, and its hint is elsewhere. A move was cut short; or this host sees only the old
    hint, or only the old log: then nothing is to be mended."""
    if place.moves > job.moves:
        ready.publish(found, place)
        ready.withdraw(found, job)


def _record(spec: jobs.JobSpec, job: Waiting, chosen: Start) -> Json:
    """The live hint: core.schedule.Running as JSON."""
    asked = spec.resources
    return {
        "queue": job.queue, "gpus": list(chosen.gpus), "share": chosen.share, "cpus": asked.cpus,
        "memory": asked.memory, "priority": job.priority, "started": time.time(), "time_limit": chosen.time_limit,
        "array": job.array, "kind": job.kind, "program": Path(sys.argv[0]).name,
    }  # fmt: skip
