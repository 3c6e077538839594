"""Which other hosts of the lab are silent, by this host's own clock.

    /tmp/mlbox-<uid>/tick-<root>.heard    {"boot": …, "hosts": {name: [what it last told, this host's uptime since]}}

A host tells of itself anew at least every `FRESH`, though nothing happens. Its clock may be any, and so may be what the
share says of a file's age: what counts is for how long nothing new was seen here. So whoever has just booted, or asks
for the first time, takes nobody for silent yet. It proves nothing: no room is kept there, and what it runs stays its.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mlbox import errors
from mlbox.host import files, here, processes, store
from mlbox.host.idle import FRESH, name_of_ticks

LONG = 2 * FRESH  # s


def silent(found: store.Store, told: Mapping[str, str]) -> dict[str, float]:
    """Host -> s since it told anything new, where that is too long; `told`: what each last told, in a word."""
    now = processes.uptime()
    path = here.boot_folder() / f"{name_of_ticks(str(found.root))}.heard"
    known = _known(path, now)
    heard = {name: (mark, now) for name, mark in told.items() if name != found.host}
    heard.update((name, noted) for name, noted in known.items() if noted[0] == told.get(name))
    if heard != known and not found.dry:
        with suppress(OSError, errors.HostUnready):  # it is noted the next time
            found.boot_folder()
            content = json.dumps({"boot": processes.boot_id(), "hosts": heard}).encode()
            files.write_whole(path, content, lasting=False)
    return {name: now - since for name, (_, since) in heard.items() if now - since > LONG}


def _known(path: Path, now: float) -> dict[str, tuple[str, float]]:
    document = files.read_json(path)
    if not isinstance(document, dict) or document.get("boot") != processes.boot_id():
        return {}
    return {name: (mark, since) for name, (mark, since) in document["hosts"].items() if since <= now}
