"""Start a session: look at everything, decide, lease the GPUs, hand over to a keeper, and relay its progress.

The caller's stdin stays open meanwhile: its end means that nobody waits any more, and the keeper undoes all.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import gpu, ids, text, wire
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.session import Spec, check_engine_args, check_env
from mlbox.host import checks, engines, here, inventory, keeper, keeping, lease, mountable, processes, slots, store
from mlbox.host.handlers import sessions
from mlbox.host.job import Job
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]
SPACE = 512  # MiB that must be free where sessions write
_TRIES = 5  # GPUs chosen free and taken by somebody else in between


def run(call: Call) -> Json:
    found = store.Store(call.root)
    asked = Spec.from_wire(call.args.get("spec", {}))
    check_env(asked.env)
    check_engine_args(asked.engine_args)
    running = [sessions.describe(job) for job in sweep(found) if sessions.is_session(job)]
    # Who names another one than runs means another one.
    if not call.args.get("new") and any(asked.name in ("", session["name"]) for session in running):
        return {"running": running}
    spec = _named(asked)
    if any(session["name"] == spec.name for session in running):
        raise errors.Refused(
            f"you have a session {spec.name} here already", f"mlbox session attach {spec.name}, or another --name"
        )
    runtime, identity, gpus = _check(spec, found)
    spec = replace(spec, runtime=runtime)
    chosen, held = _lease(spec, gpus, found)
    job, keeper_lock = _create(found, spec, held)
    _announce(call, job, spec, gpus, chosen, bool(identity))
    return _keep(call, keeper.Claim(found, job, spec, identity, tuple(g.uuid for g in chosen)), held, keeper_lock)


def _named(spec: Spec) -> Spec:
    """With all that the caller left open; paths are made full here, for the keeper stands elsewhere."""
    folder = os.path.abspath(os.path.expanduser(spec.user_folder)) if spec.user_folder else ""
    name = spec.name or text.pet_name(secrets.randbits(32))
    return replace(spec, name=name, user_folder=folder)


# ---- read --------------------------------------------------------------------------------------------


def _check(spec: Spec, found: store.Store) -> tuple[str, str, list[gpu.Gpu]]:
    """The engine, the image's identity (empty: it is not there) and the GPUs. All checks at once; all that is wrong is
    said at once, what concerns the host as a whole first."""
    (runtime, identity), gpus, _, _ = checks.side_by_side((
        lambda: _engine(spec, found), lambda: _gpus(spec, found), lambda: _space(found), lambda: mountable.check(spec),
    ))  # fmt: skip
    return runtime, identity, gpus


def _gpus(spec: Spec, found: store.Store) -> list[gpu.Gpu]:
    request = gpu.parse_request(spec.gpus)
    gpus, driver = inventory.gpus(found)
    choice = gpu.choose(request, gpus)
    if choice.reason:
        hint = choice.hint if gpus else f"{choice.hint} ({driver})"
        raise errors.Refused(choice.reason, hint)
    return gpus


def _engine(spec: Spec, found: store.Store) -> tuple[str, str]:
    """Its name, and the identity of the image there."""
    chosen = engines.choose(spec, found)
    engine = engines.by_name(chosen.name, found)
    identity = engine.identify(spec) if chosen.identity is None else chosen.identity
    storage = engine.storage()
    if storage is not None and os.path.exists(storage):
        _enough(storage)
    return chosen.name, identity


def _space(found: store.Store) -> None:
    folders = [next(p for p in (folder, *folder.parents) if os.path.exists(p)) for folder in (found.root, Path("/tmp"))]
    checks.one_by_one([partial(_usable, folder) for folder in folders])


def _usable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise errors.HostUnready(f"{folder} can't be written", "choose another folder with --root")
    _enough(folder)


def _enough(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < SPACE << 20:
        raise errors.Refused(f"{folder} has {free >> 20} MiB free; a session needs {SPACE} MiB", "make room there")


# ---- decide and take -----------------------------------------------------------------------------------


def _lease(spec: Spec, gpus: list[gpu.Gpu], found: store.Store) -> tuple[tuple[gpu.Gpu, ...], dict[str, int]]:
    holder = gpu.Holder(here.user_name(), name=spec.name)
    for _ in range(_TRIES):
        choice = gpu.choose(gpu.parse_request(spec.gpus), gpus)
        if choice.reason:
            raise errors.Refused(choice.reason, choice.hint)
        held = lease.take([g.uuid for g in choice.gpus], holder)
        if held is not None:
            return choice.gpus, held
        gpus, _ = inventory.gpus(found)  # somebody was faster; choose among what is left
    raise errors.Refused("the GPUs were taken by others while this session was choosing", "run the same command again")


def _create(found: store.Store, spec: Spec, held: dict[str, int]) -> tuple[Job, int]:
    """The claimed job and its keeper's lock, taken before another call's sweep could find the job without one."""
    job = found.job(ids.ulid(int(time.time() * 1000), secrets.token_bytes(10)))
    keeper_lock = None
    try:
        found.mark_making(job)
        found.reserve(job)
        keeper_lock = keeping.lock(job)
        assert keeper_lock is not None  # nobody else knows of it
        found.create(job, JobSpec(work=spec, resources=Resources(gpus=spec.gpus)), queued=False)
        job.attempt(1).mkdir(mode=0o700)
        found.mark_live(job, _record(held))
        job.append("submitted", {"at": time.time(), "by": here.user_name()})
        claim = {"host": found.host, "boot": processes.boot_id(), "gpus": sorted(held), "attempt": 1}
        job.append("claimed", {"at": time.time(), "claimed_at": time.time(), **claim})
    except (OSError, slots.Unsettled) as error:
        found.forget(job)
        with contextlib.suppress(OSError):  # the next sweep finds nothing to be made
            found.unmark_making(job)
        if keeper_lock is not None:
            os.close(keeper_lock)
        lease.drop(held)
        raise errors.HostUnready(f"the session's folder can't be written: {error}", "is the disk full?") from None
    with contextlib.suppress(OSError):  # it is found among the live ones
        found.unmark_making(job)
    return job, keeper_lock


def _record(held: dict[str, int]) -> Json:
    """As other users' schedulers need to know it."""
    program = Path(sys.argv[0]).name
    return {"gpus": sorted(held), "started": time.time(), "kind": "session", "queue": "", "program": program}


def _announce(call: Call, job: Job, spec: Spec, gpus: list[gpu.Gpu], chosen: tuple[gpu.Gpu, ...], cached: bool) -> None:
    """Enough for a person to know what comes."""
    free = sum(not g.obstacle for g in gpus)
    call.progress(
        accepted={"id": job.id, "name": spec.name},
        gpus=len(gpus), free=free, chosen=[g.label for g in chosen], cached=cached,
    )  # fmt: skip


# ---- act -----------------------------------------------------------------------------------------------


def _keep(call: Call, claim: keeper.Claim, held: dict[str, int], keeper_lock: int) -> Json:
    progress_r, progress_w = os.pipe()
    caller_r, caller_w = os.pipe()

    def body() -> None:
        keeper.Keeper(claim, held, progress_w, caller_r).run()

    keeping.detach(body, claim.job.attempt(1) / "keeper.log", (progress_w, caller_r, keeper_lock, *held.values()))
    os.close(progress_w)
    os.close(caller_r)
    lease.drop(held)
    os.close(keeper_lock)
    return _relay(call, progress_r, caller_w)


def _relay(call: Call, progress: int, caller: int) -> Json:
    """The keeper's lines to the caller, until it is ready or has undone everything."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(progress, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if 0 in ready and not os.read(0, 65536):
                selector.unregister(0)
                os.close(caller)
            if progress not in ready:
                continue
            data = os.read(progress, 65536)
            if not data:
                raise errors.StartFailed(
                    "the session's keeper died", "see keeper.log in the session's folder on the host"
                )
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "ready" in message:
                    return {"session": message["ready"]}
                if "error" in message:
                    raise wire.decode_error(message["error"])
                _forward(call, message)


def _forward(call: Call, message: Json) -> None:
    with contextlib.suppress(BrokenPipeError):  # the caller has gone; the end of its stdin tells the keeper
        call.send(message)
