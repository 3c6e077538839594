"""mlbox session share: who else may join a session. Its keeper lets them in; nothing of it is kept here."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox.client import options, output, sessions
from mlbox.core import text

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        description="Let another user of the session's host join it, with an own login and an own SSH key. What your "
        "colleague does in it is done as you."
    )
    person(made)
    return made


def person(made: argparse.ArgumentParser) -> None:
    made.add_argument("session", metavar="NAME|ID")
    made.add_argument(
        "user", metavar="USER", help="as your colleague logs in to the session's host, or to its rendezvous"
    )
    options.dry_run(made)
    made.add_argument("--host", default="", help="where it runs (default: remembered, or all known hosts are asked)")
    options.common(made)


def main(arguments: argparse.Namespace) -> int:
    reply = tell(arguments, lets=True)
    if arguments.json:
        return 0
    session, user = reply["session"], text.safe(reply["user"])
    if reply["changed"]:
        print(f"{session['name']} {'would be' if arguments.dry_run else 'is'} shared with {user}")
    else:
        print(f"{session['name']} is shared with {user} already")
    if session["host"] != reply["host"]:
        print(f"  {user} comes by {text.safe(reply['host'])}, where the tunnel from {text.safe(session['host'])} ends")
    joins, back = f"{user} joins:", "take it back:"
    width = max(len(joins), len(back))
    print(f"  {joins:{width}}  mlbox attach {session['id']}")
    print(f"  {back:{width}}  mlbox session unshare {session['name']} {user}")
    reaches = f"whatever you can on {text.safe(session['host'])}" if session["runtime"] == "process" else "what you can"
    output.note(f"  {user} works in it as you, and can do there {reaches}")
    return 0


def tell(arguments: argparse.Namespace, lets: bool) -> Json:
    """What its keeper replied; with --json the facts are printed."""
    word = {"session": arguments.session, "user": arguments.user, "lets": lets}
    config = options.config(arguments)
    reply = sessions.at_session(arguments.session, arguments.host, config, lambda there: there.call("share", word))
    if reply["trouble"]:
        output.warn(text.safe(reply["trouble"]))
    if arguments.json:
        facts = {key: reply["session"][key] for key in ("id", "name", "shared")}
        output.facts({**facts, **{key: reply[key] for key in ("host", "user", "changed", "ended")}}, arguments.dry_run)
    return reply
