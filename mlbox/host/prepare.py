"""From an image to something that can start: fetch it, look inside, add what is missing (once)."""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mlbox import errors
from mlbox.core import layer as layers
from mlbox.core import services
from mlbox.core.facts import Facts
from mlbox.core.layer import Layer
from mlbox.core.session import Spec
from mlbox.host import files, here, sources, store, uses
from mlbox.host.engines import Build, Engine, Say
from mlbox.host.job import Job
from mlbox.host.run import Cancel


@dataclass(frozen=True)
class Ready:
    """What the session runs in: an image or a folder, what is in it, and what could not be had."""

    image: str
    facts: Facts
    prefix: str
    absent: dict[str, str]


def prepare(engine: Engine, job: Job, spec: Spec, identity: str, say: Say, cancel: Cancel, guest: bool = True) -> Ready:
    """`identity`: of the image, empty where it is not known to be there; `guest`: for a session, whose services run
    inside. Raises Refused, StartFailed, Cancelled."""
    identity = identity or engine.identify(spec) or engine.fetch(spec, say, cancel)
    facts = engine.facts(spec, identity, cancel, guest)
    layer, ready_name = _plan(engine, job, spec, facts, guest)
    absent = dict(layer.absent)
    if layer.problems:
        what = spec.image or "this host"
        wanted = "a session" if guest else "this job"
        raise errors.Refused(f"{what} can't run {wanted}: " + "; ".join(layer.problems), "use another image")
    if not layer.steps:
        return Ready(identity, layer.after, engine.prefix(layer), absent)
    if not ready_name:
        try:
            ready_name = _build(engine, job, spec, layer, say, cancel)
        except VsCodeMissing as error:
            if spec.vscode == "yes":
                raise errors.StartFailed(error.message, error.hint) from None
            without = prepare(engine, job, _without_vscode(spec), identity, say, cancel, guest)
            facts = replace(without.facts, code_server="")  # not the image's own instead of what was asked for
            why = "; ".join(filter(None, (error.message, error.hint)))
            return Ready(without.image, facts, without.prefix, {**without.absent, "vscode": why})
    return Ready(ready_name, layer.after, engine.prefix(layer), absent)


class VsCodeMissing(errors.StartFailed):
    """Its release could not be fetched; a session that did not insist on it goes on without."""


def _without_vscode(spec: Spec) -> Spec:
    return replace(spec, vscode="no", vscode_extensions=(), extension_files={})


def _plan(engine: Engine, job: Job, spec: Spec, facts: Facts, guest: bool) -> tuple[Layer, str]:
    """The layer, and its name where it is there already; from then on it stays there.

    Twice for a layer that lives in a folder: its own paths contain its key."""
    layer = layers.plan(spec, facts, root=engine.as_root(), guest=guest)
    prefix = engine.prefix(layer)
    if prefix != layers.CONTAINER_PREFIX:
        final = layers.plan(spec, facts, prefix, root=engine.as_root(), guest=guest)
        layer = Layer(layer.key, final.steps, final.after, final.files, final.code_server, final.problems, final.absent)
    if not layer.steps:
        return layer, ""
    uses.begin(layer.key)
    files.write_whole(job.conf / "layer", layer.key.encode())  # for when this keeper is gone, and its lock with it
    return layer, engine.has_layer(layer)


@contextmanager
def _only_one(key: str, say: Say, cancel: Cancel) -> Iterator[None]:
    """Two sessions with the same answers build one layer: the second waits for the first."""
    path = store.Store().boot_folder() / f"layer-{key}.lock"
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                say("another session of yours is building the same layer; waiting for it")
                if cancel.wait(0.5):
                    cancel.check()
        yield


def _build(engine: Engine, job: Job, spec: Spec, layer: Layer, say: Say, cancel: Cancel) -> str:
    import shutil

    kept = sources.keeping() if layer.code_server and not spec.sources else nullcontext()
    with _only_one(layer.key, say, cancel), kept:
        there = engine.has_layer(layer)
        if there:
            return there
        folder = _release(spec, layer, say, cancel)
        context = job.boot_folder / "layer"
        context.mkdir(mode=0o700)
        try:
            _write_context(context, spec, layer)
            wheels = sources.wheels(spec.sources, say, cancel) if layers.PACKAGES in layer.files else None
            work = Build(job.id, spec.image, layer, context, folder or wheels or context, wheels is not None)
            return engine.build(work, say, cancel)
        finally:
            shutil.rmtree(context, ignore_errors=True)


def _release(spec: Spec, layer: Layer, say: Say, cancel: Cancel) -> Path | None:
    if not layer.code_server:
        return None
    try:
        return sources.release(layer.code_server, spec, say, cancel)
    except errors.StartFailed as error:
        raise VsCodeMissing(error.message, error.hint) from None


def _write_context(context: Path, spec: Spec, layer: Layer) -> None:
    files = {**layer.files, **layers.titles(layer), "layer.sh": layers.script(layer)}
    for name, content in files.items():
        (context / name).write_text(content)
    for name, encoded in spec.extension_files.items():
        (context / name).write_bytes(base64.b64decode(encoded))


def write_accounts(job: Job, facts: Facts, home: str) -> None:
    """The image's accounts with the user's own among them, which a container sees as its /etc/passwd and /etc/group."""
    login, uid, gid = here.user_name(), os.getuid(), os.getgid()
    accounts = services.passwd(facts.passwd, login, uid, gid, home, facts.shell)
    files.write_whole(job.conf / "passwd", accounts.encode(), 0o644, lasting=False)
    files.write_whole(job.conf / "group", services.group(facts.group, login, gid).encode(), 0o644, lasting=False)
