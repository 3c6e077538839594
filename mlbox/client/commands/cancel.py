"""mlbox cancel: end jobs that wait or run."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox import errors
from mlbox.client import lab, options, output
from mlbox.core import text

Json = dict[str, Any]
_TOLD = 20


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox cancel train sweep\n  mlbox cancel 'sweep[3]'",
        description="Cancel jobs; by its name a whole array. A running one gets SIGTERM, its grace, SIGKILL.",
    )
    options.job(made, "jobs", nargs="+")
    options.dry_run(made)
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    host = lab.entry(arguments, settings)
    replies, troubles, elsewhere, failed = [], [], list[str](), None
    for job in arguments.jobs:
        try:
            reply = host.call("cancel", {"job": job})
            troubles.append({"trouble": reply.pop("trouble")})
            elsewhere += reply.pop("elsewhere")
            replies += [reply, *reply.pop("more")]
        except (errors.NotFound, errors.Refused, errors.Usage) as error:  # the others are cancelled all the same
            output.failure(error.message, error.hint)
            failed = failed or error
    nudges = [] if arguments.dry_run else [reply["nudge"] for reply in replies if reply["nudge"]]
    if any(reply["state"] == "cancelled" and not reply["already"] for reply in replies):  # they may have held up others
        heard = lab.look_again(host, [*nudges, *lab.near(elsewhere)], settings)
    else:
        heard = lab.nudge(nudges, settings) if nudges else {}
    for reply in replies:  # one that can't be dialled finds the word by itself
        reply["heard"] = reply["nudge"] in heard if reply["nudge"] in nudges else not reply["silent"]
    if arguments.json:
        output.facts(replies, arguments.dry_run)
    else:
        lab.trouble(*troubles)
        for reply in replies[:_TOLD]:
            print(_told(reply, arguments.dry_run))
        if len(replies) > _TOLD:
            print(f"… and {len(replies) - _TOLD} more")
    return failed.exit_code if failed else 0


def _told(reply: Json, dry: bool) -> str:
    name = f"{lab.title(reply)}  {reply['id']}  "
    if reply["already"]:
        return f"{name}had ended already: {reply['state']}"
    if reply["requested"]:
        host = text.safe(reply["host"])
        if dry:
            return f"{name}would be ended on {host}"
        if reply["heard"]:
            return f"{name}is being ended on {host}"
        return f"{name}{host} can't be told: it ends when {host} is back; gone for good: mlbox host fence {host}"
    return f"{name}{'would be ' if dry else ''}{reply['state']}"
