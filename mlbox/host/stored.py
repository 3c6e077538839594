"""What mlbox keeps on this host for another time: found, measured, and removed where nothing uses it.

What a running session or job needs says so by its lock (host/uses.py), by the engine (an image with a container is not
removed), by its layer's key in its folder of this boot, or by its record in ROOT.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlbox import errors
from mlbox.core.stored import Others, Stored
from mlbox.host import archive, code, engines, files, here, sources, store, uses
from mlbox.host.engines import Engine

_YOUNG = 3600.0  # s; what has only just come may be somebody's on their way to it


def everything(found: store.Store) -> Iterator[Stored]:
    for name in engines.present():
        yield from _layers(engines.by_name(name, found), found)
    yield from _codes(found)
    yield from _releases()
    yield from _programs(found)


def others(found: store.Store) -> Iterator[Others]:
    for name in engines.present():
        with suppress(errors.MlboxError):  # said where its layers were asked for
            if there := engines.by_name(name, found).others():
                yield there


def outside(found: store.Store) -> Path | None:
    """The usual ROOT, where that is another one and holds environments of this user's, from before the lab perhaps."""
    usual = store.Store()
    return usual.root if usual.root != found.root and any(usual.environments.glob("[!.]*")) else None


def remove(found: store.Store, thing: Stored) -> bool:
    """False where it is in use after all."""
    if thing.kind == "code":
        return code.forget(found, thing.name, lambda: _needed(found))
    if thing.kind == "release":
        return sources.forget(thing.name)
    if thing.kind == "program":
        return _forget_program(thing)
    key = thing.name.rpartition(":")[2]
    engine = engines.by_name(thing.about.split()[0], found)
    with uses.nobody(key) as nobody:
        if not nobody or key in _running(found) or not engine.forget(thing.name):
            return False
        uses.forget(key)
        return True


def _layers(engine: Engine, found: store.Store) -> Iterator[Stored]:
    running = _running(found)
    try:
        things = engine.layers()
    except errors.MlboxError as error:  # an engine that is not this user's to use
        print(error, file=sys.stderr)
        return
    for thing in things:
        key = thing.name.rpartition(":")[2]
        with uses.nobody(key) as nobody:
            stays = thing.stays or ("" if nobody and key not in running else "in use")
        yield Stored(thing.kind, thing.name, thing.size, max(thing.used, uses.last(key)), thing.about, stays)


def _running(found: store.Store) -> set[str]:
    """The keys of the layers that this user's live sessions and jobs on this host run in."""
    keys = set()
    for job in found.live_jobs():
        with suppress(OSError):
            if key := files.content(job.conf / "layer"):
                keys.add(key.decode(errors="replace"))
    return keys


def _codes(found: store.Store) -> Iterator[Stored]:
    needed: set[str] | None = None
    for name, status in code.kept(found):
        needed = _needed(found) if needed is None else needed  # it reads every job that has not ended
        stays = "a job needs it" if name in needed else "it has just come" if _is_young(status) else ""
        yield Stored("code", name, status.st_size, status.st_mtime, "", stays)

    for name, status in code.halves(found):  # whoever is at one has the lock of the folder
        yield Stored("code", name, status.st_size, status.st_mtime, "", "it has just come" if _is_young(status) else "")


def _needed(found: store.Store) -> set[str]:
    """The code of jobs that have not ended, wherever they wait or run. Told by their logs: hints may be lost."""
    ended = {str(row.get("id")) for row in archive.latest(found, found.user, sys.maxsize)}
    needed = set()
    for path in (found.own() / "jobs").glob("*/*"):
        if path.name not in ended:
            with suppress(errors.NotFound):
                job = found.job(path.name)
                if job.state().live:
                    needed.add(job.spec().code)
    return needed


def _releases() -> Iterator[Stored]:
    things = list(sources.kept())
    if not things:
        return
    with sources.keeping(wait=False) as nobody:
        used = "" if nobody else "in use"
    for name, status in things:
        stays = used or ("it has just come" if _is_young(status) else "")
        yield Stored("release", name, status.st_size, status.st_mtime, "", stays)


def _programs(found: store.Store) -> Iterator[Stored]:
    """Each is one version. Keepers read what they need from theirs as they go."""
    own = Path(sys.argv[0]).name
    named = _crontab() + _authorized_keys() + "".join(_command_lines()) + " ".join(_recorded(found))
    for path in here.cache_home().glob("mlbox-*.pyz*"):
        with suppress(OSError):
            status = path.stat()
            stays = "in use" if path.name in named else "it has just come" if _is_young(status) else ""
            stays = "this one" if path.name == own else stays
            yield Stored("program", path.name, status.st_size, status.st_mtime, "", stays)


def _forget_program(thing: Stored) -> bool:
    """Unless a call has begun with it since: each notes that (host/serve.py)."""
    path = here.cache_home() / thing.name
    with suppress(OSError):
        if path.stat().st_mtime == thing.used:
            path.unlink()
            return True
    return False


def _is_young(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime < _YOUNG


def _crontab() -> str:
    with suppress(FileNotFoundError):
        done = subprocess.run(("crontab", "-l"), stdin=subprocess.DEVNULL, capture_output=True)
        return done.stdout.decode(errors="replace")
    return ""


def _authorized_keys() -> str:
    """Where this host is a rendezvous, each workstation's line names one (host/handlers/rendezvous.py)."""
    with suppress(OSError):
        return (Path.home() / ".ssh/authorized_keys").read_text(errors="replace")
    return ""


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _recorded(found: store.Store) -> Iterator[str]:
    """Of keepers on all hosts, which may share this home."""
    for path in (found.own() / "on").glob("*/live/*"):
        document = files.read_json(path)
        yield str(document.get("program", "")) if isinstance(document, dict) else ""


def disk(folder: Path) -> dict[str, int | str]:
    usage = shutil.disk_usage(folder)
    return {"folder": str(folder), "free": usage.free, "total": usage.total}
