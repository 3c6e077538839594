"""mlbox jobs prune: remove jobs and sessions that have ended, with all that they have in ROOT."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from mlbox.client import lab, options, output
from mlbox.client.remote import Host
from mlbox.core import text
from mlbox.core.log import said
from mlbox.core.stored import OLDER_THAN, parse_age, size

Json = dict[str, Any]
_TOLD = 20


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        description="Remove your jobs and sessions that have ended: log, output, and the files in their folders. Those "
        "that waiting jobs depend on stay. The code that they were submitted with is removed by mlbox image prune."
    )
    made.add_argument("--older-than", metavar="30d", help="that ended so long ago (default: 30d)")
    options.dry_run(made)
    options.yes(made)
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    args = {"older_than": parse_age(arguments.older_than) if arguments.older_than else OLDER_THAN}
    if not arguments.dry_run and not arguments.yes:
        if output.may_ask():
            foreseen = lab.entry(arguments, replace(settings, dry_run=True)).call("prune", args)
            if not foreseen["removed"]:
                return _say(arguments, foreseen)
            output.aside(_tell, foreseen, "would be freed")
        output.confirm("Remove these?", arguments.yes, "what jobs prune removes is gone for good")
    return _say(arguments, _prune(lab.entry(arguments, settings), args))


def _say(arguments: argparse.Namespace, reply: Json) -> int:
    if arguments.json:
        output.facts(reply, arguments.dry_run)
    else:
        _tell(reply, "would be freed" if arguments.dry_run else "freed")
    return 0


def _prune(host: Host, args: Json) -> Json:
    with output.Progress("looking for what has ended") as progress:

        def on_progress(facts: Json) -> None:
            if facts.get("of"):
                progress.say("removing what has ended", f"{facts['done']} of {facts['of']}")

        return host.call("prune", args, on_progress)


def _tell(reply: Json, freed: str) -> None:
    removed, stay = reply["removed"], reply["stay"]
    sessions = sum(one["kind"] == "session" for one in removed)
    what = text.count(len(removed) - sessions, "job") + (f" and {text.count(sessions, 'session')}" if sessions else "")
    print(f"{what}, {size(sum(one['size'] for one in removed))} {freed}")
    if removed:
        output.table(("ID", "NAME", "STATE", "ENDED", "SIZE"), map(_row, removed[:_TOLD]))
    if len(removed) > _TOLD:
        print(f"… and {len(removed) - _TOLD} more")
    if stay:
        print(f"{text.count(len(stay), 'other')} as old:")
        output.table(("ID", "NAME", "STAYS"), ((one["id"], lab.title(one), one["stays"]) for one in stay[:_TOLD]))
    if len(stay) > _TOLD:
        print(f"… and {len(stay) - _TOLD} more")


def _row(one: Json) -> tuple[str, ...]:
    ago = f"{text.duration(max(0.0, time.time() - one['at']))} ago"
    return one["id"], lab.title(one), said(one["state"]) or "-", ago, size(one["size"])
