"""What is kept on this host for another time: told, or, where nothing uses it, removed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core.stored import OLDER_THAN, expendable
from mlbox.host import engines, here, store, stored
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    sweep(found)  # what a crash left behind counts as in use
    things = list(stored.everything(found))
    reply: Json = {"host": found.host, "things": [thing.to_wire() for thing in things], "disks": _disks(found)}
    if outside := stored.outside(found):
        reply["outside"] = str(outside)
    if call.args.get("do") != "prune":
        return {**reply, "others": [one.to_wire() for one in stored.others(found)]}
    older_than = call.args.get("older_than", OLDER_THAN)
    if not isinstance(older_than, (int, float)) or older_than < 0:
        raise errors.Usage("an age is a number of seconds")
    going = expendable(things, time.time(), older_than)
    if not found.dry:
        going = [thing for thing in going if stored.remove(found, thing)]
    return {**reply, "removed": [thing.to_wire() for thing in going], "disks": _disks(found)}


def _disks(found: store.Store) -> list[Json]:
    """The disks that all this is on, each once."""
    storages = [engines.by_name(name, found).storage() for name in engines.present()]
    folders = [folder for folder in (*storages, found.root, here.cache_home()) if folder and _is_there(folder)]
    return list({folder.stat().st_dev: stored.disk(folder) for folder in reversed(folders)}.values())


def _is_there(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # closed to this user: so are its figures
        return False
