"""Engines that this user's ticks leave alone for a while, as they could start nothing, or did not answer: what would
start here may start on another host meanwhile.

    /tmp/mlbox-<uid>/tick-<root>.<engine>.aside        {"boot": …, "until": this host's uptime (s), …}
    /tmp/mlbox-<uid>/tick-<root>.<engine>-gpus.aside   the same, for what has GPUs only

A file, because each of cron's ticks is a process of its own. One that did not answer would hold every tick up anew, and
with it other users' (host/lease.py, `choosing`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core.session import ENGINES, Spec
from mlbox.host import engines, files, processes, store, unable

Json = dict[str, Any]
REST, LONGEST = 60.0, 960.0  # s for which it is left alone at first, and when it fails again and again
_PATIENCE = 10.0  # s that an answer may take


def put(found: store.Store, engine: str, gpus: bool, why: str) -> None:
    """`gpus`: what has none may start all the same."""
    path, now = _path(found, engine, gpus), processes.uptime()
    last = _note(path)
    if last and now < last["until"]:  # it failed several at once
        return
    again = last and now < last["until"] + LONGEST
    rest = min(2 * last["rest"], LONGEST) if again else REST
    note = {"boot": processes.boot_id(), "until": now + rest, "rest": rest, "why": why}
    with suppress(OSError):  # it is found out anew
        files.write_whole(path, json.dumps(note).encode(), lasting=False)


def choose(spec: Spec, found: store.Store, gpus: bool) -> engines.Choice:
    """As engines.choose, for a tick. What has no engine here will hardly have one soon: what is behind it is looked at
    meanwhile. Raises LeftAlone then, too."""
    try:
        return engines.choose(spec, found, partial(identify, gpus))
    except errors.HostUnready as error:
        wanted = (spec.runtime,) if spec.runtime in ENGINES else ENGINES
        if {*wanted}.intersection(engines.present()):
            raise
        raise unable.LeftAlone(error.message, processes.uptime() + LONGEST) from None


def identify(gpus: bool, engine: str, spec: Spec, found: store.Store) -> str:
    """As engines.identify, for a tick, which other users wait for. Raises LeftAlone while the engine is, too."""
    for path in {_path(found, engine, False), _path(found, engine, gpus)}:
        left_alone = _left_alone(path)
        if left_alone:
            raise left_alone
    try:
        return engines.by_name(engine, found).identify(spec, _PATIENCE)
    except engines.Silent as silent:  # no other trouble: by a bad name of its own, one job would put it aside for all
        put(found, engine, False, silent.message)
        raise


def words(found: store.Store) -> list[str]:
    """Why engines are left alone now, and for how long still."""
    notes = sorted(found.boot_folder().glob(found.of_ticks("*.aside").name))
    return [left_alone.message for left_alone in map(_left_alone, notes) if left_alone]


def _path(found: store.Store, engine: str, gpus: bool) -> Path:
    return found.of_ticks(f"{engine}-gpus.aside" if gpus else f"{engine}.aside")


def _note(path: Path) -> Json:
    """Of this boot; empty where there is none."""
    note = files.read_json(path)
    return note if isinstance(note, dict) and note.get("boot") == processes.boot_id() else {}


def _left_alone(path: Path) -> unable.LeftAlone | None:
    note = _note(path)
    return unable.LeftAlone(note["why"], note["until"]) if note and processes.uptime() < note["until"] else None
