"""Remove ended jobs and sessions of the caller's, with all that they have in ROOT."""

from __future__ import annotations

from typing import Any

from mlbox import errors
from mlbox.core.stored import OLDER_THAN
from mlbox.host import lab, pruning, store
from mlbox.host.handlers.logs import pause
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]
_TOLD_EVERY = 20


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    older_than = call.args.get("older_than", OLDER_THAN)
    if not isinstance(older_than, (int, float)) or older_than < 0:
        raise errors.Usage("an age is a number of seconds")
    if call.root is None and not (found.root / "mlbox.json").exists():
        return {"host": found.host, "removed": [], "stay": []}  # nobody has submitted anything here yet
    lab.identify(found.root)
    sweep(found)  # what a crash left behind here looks as if its end were still being put down

    def say(done: int, of: int) -> None:
        pause(0.0)
        if done % _TOLD_EVERY == 0:
            call.progress(done=done, of=of)

    told = [(one, one.to_wire()) for one in pruning.prune(found, older_than, say)]
    return {
        "host": found.host, "removed": [wire for one, wire in told if not one.stays],
        "stay": [wire for one, wire in told if one.stays],
    }  # fmt: skip
