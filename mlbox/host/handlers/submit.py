"""Put jobs in line: on return they are on disk for good, and what can start here has been started."""

from __future__ import annotations

import base64
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from mlbox import errors
from mlbox.core import ids, text
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec, check_folder, dependencies
from mlbox.core.log import State
from mlbox.core.resources import HostFacts, fits
from mlbox.core.schedule import After, stuck
from mlbox.core.session import check_env
from mlbox.host import able, awaited, code, cron, engines, keeping, lab, lookup, ready, store, tick, view
from mlbox.host.handlers import cancel
from mlbox.host.job import Job
from mlbox.host.serve import Call
from mlbox.host.sweep import alone

Json = dict[str, Any]
MOST_IN_ARRAY = 10_000
_NOTHING: Json = {"started": [], "waits": {}, "elsewhere": [], "unattended": ""}


def run(call: Call) -> Json:
    found = store.Store(call.root)
    _root(call, found)
    spec = _named(JobSpec.from_wire(call.args.get("spec", {})))
    after = (*spec.after, *dependencies(call.args.get("after", [])))
    spec = replace(spec, after=tuple(_looked_up(found, one) for one in after))
    check_env(spec.work.env)
    check_folder(spec.folder)
    count = call.args.get("array", 0)
    if type(count) is not int or not 0 <= count <= MOST_IN_ARRAY:
        raise errors.Usage(f"an array has 1 to {MOST_IN_ARRAY} jobs")
    rules = lab.rules(found)
    named = replace(spec.resources, hosts=tuple(map(rules.lab.own_name, spec.resources.hosts)))
    spec = replace(spec, resources=named, on_host_loss=spec.on_host_loss or rules.lab.on_host_loss)
    hosts = check(found, rules, spec)
    with _unless_there(found, spec.name, bool(call.args.get("if_absent"))) as there:
        if there:
            return {**_NOTHING, "jobs": [{"id": there.id, "name": spec.name}], "there": there.state().name,
                    "host": found.host, "trouble": rules.trouble}  # fmt: skip
        made = _submit_with(found, spec, count, _archive(spec, call.args.get("code", "")))
    report = tick.behind(found)
    started = [job.id for job in made if job.id in report.started]
    why = stuck(spec.queue, spec.resources, rules.lab, hosts)
    waits = {job.id: why or (report.waits or {}).get(job.id, "") for job in made if job.id not in report.started}
    first = next(filter(None, waits.values()), "")  # those behind it in an array are not looked at one by one
    waits = {job: why or first for job, why in waits.items()}
    elsewhere = able.elsewhere(found, rules.lab, spec.queue, spec.resources, hosts)
    return {
        "jobs": [{"id": job.id, "name": spec.name} for job in made], "started": started, "waits": waits,
        "host": found.host, "elsewhere": elsewhere if waits else [], "trouble": rules.trouble or report.trouble,
        "unattended": cron.missing(found) if waits else "",
    }  # fmt: skip


@contextmanager
def _unless_there(found: store.Store, name: str, asked: bool) -> Iterator[Job | None]:
    """This user's job of that name that has not ended, where that is asked. No other call to this host that asks puts
    one in line meanwhile."""
    if not asked:
        yield None
        return
    with (found.boot_folder() / "submit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lookup.living(found, name)


def _looked_up(found: store.Store, said: After) -> After:
    """By the id or the name that it was called by; an array's first job is called by the array's. Raises NotFound where
    it may be none, or several."""
    made = lookup.job(found, said.job, whole=True)
    is_array = made.shown().array == made.id and not lookup.is_element(said.job)
    return replace(said, job=made.id, array=sum(1 for _ in lookup.of_array(found, made)) if is_array else 0)


def _root(call: Call, found: store.Store) -> None:
    """A lab's ROOT is made by `init`; the user's own data home needs no ceremony."""
    if call.root is None:
        lab.make_root(found.root)
    lab.identify(found.root)
    alone(found)  # the tick will ask, too; by then the jobs are in line


def _named(spec: JobSpec) -> JobSpec:
    work = spec.work
    runtime = work.runtime or ("auto" if work.image else "process")  # auto: as the host that claims it will have it
    name = work.name or text.pet_name(int.from_bytes(os.urandom(4), "big"))
    return replace(spec, work=replace(work, runtime=runtime, name=name))


def check(found: store.Store, rules: lab.Rules, spec: JobSpec) -> list[HostFacts]:
    """Refuses what could never run, and says what could; the hosts of the lab as they are known."""
    hosts = able.check(found, rules, spec.queue, spec.resources, spec.output_limit)
    lab.allowed(rules.lab, spec.work)
    if not fits(spec.resources, hosts[0]):
        try:
            chosen = engines.choose(spec.work, found)
            if chosen.identity is None:
                engines.by_name(chosen.name, found).identify(spec.work)
        except errors.HostUnready:  # another may have what it runs in
            if not any(spec.queue in host.queues and not fits(spec.resources, host) for host in hosts[1:]):
                raise
    return hosts


def _check_dependencies(found: store.Store, spec: JobSpec) -> None:
    """When it is in line: whoever prunes one marks it, and then looks who waits (host/pruning.py). Not before: NFS
    would go on answering for a while that there is no mark."""
    users = list(view.known_users(found)) if spec.after else []
    for after in spec.after:
        owner = awaited.owner_of(found, users, after.job)
        jobs = [found.job(ids.following(after.job, number), owner) for number in range(max(1, after.array))]
        gone = not owner or any(not job.is_there() or job.is_going() for job in jobs)
        if gone or not awaited.state_of(found, (owner,), after.job):
            raise errors.NotFound(f"there is no job {after.job} to wait for", "mlbox jobs --all shows what there is")


def _archive(spec: JobSpec, packed: str) -> bytes:
    """What goes along: the code of a job, the .vsix files of a session."""
    try:
        if not spec.session:
            return base64.b64decode(packed)
        files = {name: base64.b64decode(content) for name, content in spec.work.extension_files.items()}
    except ValueError:
        raise errors.Usage(
            "the code, or a .vsix file, did not arrive as it was sent", "run the same command again"
        ) from None
    return code.pack(files) if files else b""


def _submit_with(found: store.Store, spec: JobSpec, count: int, archive: bytes) -> list[Job]:
    found.own_place()
    if not archive:
        return _submit_all(found, spec, count)
    with code.keeping(found):
        return _submit_all(found, replace(spec, code=code.keep(found, archive)), count)


def _submit_all(found: store.Store, spec: JobSpec, count: int) -> list[Job]:
    """`count`: of an array's jobs; 0: it is one alone."""
    first = id_ = _ulid()
    spec = replace(spec, array=first) if count else spec
    made: list[Job] = []
    try:
        for index in range(count or 1):
            made.append(submit(found, replace(spec, array_index=index), id_))
            id_ = ids.following(id_)
        _check_dependencies(found, spec)
    except (errors.MlboxError, OSError) as error:
        left = [job for job in reversed(made) if not _take_back(found, job, spec)]
        if left:
            stay = text.count(len(left) + isinstance(error, _Stays), "job") + (" of the array" if count else "")
            raise _Stays(f"{_why(error)}; {stay} may stay in line", _hint(spec)) from None
        raise
    return made


class _Stays(errors.HostUnready):
    """What was not acknowledged could not be taken back either."""


def _why(error: Exception) -> str:
    return error.message if isinstance(error, errors.MlboxError) else str(error)


def _hint(spec: JobSpec) -> str:
    return f"mlbox cancel {spec.name}, once there is room to write"


def _ulid() -> str:
    return ids.ulid(int(time.time() * 1000), os.urandom(10))


def submit(found: store.Store, spec: JobSpec, id_: str = "") -> Job:
    """One job in line, acknowledged: on return a crash of anything loses nothing of it."""
    job = found.job(id_ or _ulid())
    found.mark_making(job)
    try:
        found.create(job, spec, queued=True)
        facts = {"at": time.time(), "submitted": time.time(), "owner": found.user, "queue": spec.queue}
        job.append("submitted", facts)
        ready.publish(found, waiting(job.id, found.user, spec, job.state()))
    except (errors.MlboxError, OSError) as error:
        if not _take_back(found, job, spec):
            raise _Stays(f"{_why(error)}; it may stay in line", _hint(spec)) from None
        raise
    with suppress(OSError):  # whoever looks finds it in line
        found.unmark_making(job)
    return job


def _take_back(found: store.Store, job: Job, spec: JobSpec) -> bool:
    """It is not acknowledged. False where not even this can be done: it may be in line, or come there by a sweep."""
    with suppress(errors.MlboxError, OSError):
        place = waiting(job.id, found.user, spec, State())
        if not job.events() or job.append("cancelled", {"at": time.time(), "why": "it was not submitted"}, patience=0):
            ready.withdraw(found, place)
            found.forget(job)
            found.unmark_making(job)
        elif cancel.request(found, job).running and found.is_live(job):  # a tick was faster
            keeping.tell(job)
        return True
    return False
