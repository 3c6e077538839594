"""mlbox tunnels: the tunnels that this machine holds, in front of somebody or in the background."""

from __future__ import annotations

import argparse
import time
from typing import Any

from mlbox import errors
from mlbox.client import options, output, owners, sessions
from mlbox.client.owners import Owner
from mlbox.core import text


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox tunnels list\n  mlbox tunnels stop kind-otter",
        description="The tunnels that this machine holds.",
    )
    verbs = made.add_subparsers(dest="do", metavar="WHAT", required=True, parser_class=type(made))
    words = {"list": "which sessions, on which ports, and whether they are up", "stop": "end some; the sessions go on"}
    listing, stop = (verbs.add_parser(do, help=w, description=w, allow_abbrev=False) for do, w in words.items())
    listing.add_argument("--json", action="store_true", help="print facts as JSON")
    stop.add_argument("sessions", nargs="*", metavar="NAME", help="needed where there are more than one")
    stop.add_argument("--all", action="store_true", help="all that this machine holds")
    options.dry_run(stop)
    return made


def main(arguments: argparse.Namespace) -> int:
    return _list(arguments.json) if arguments.do == "list" else _stop(arguments)


def _list(as_json: bool) -> int:
    found = owners.living()
    if as_json:
        output.facts([_facts(owner) for owner in found])
    elif not found:
        output.note("no tunnels on this machine")
    else:
        rows = [
            (o.name, o.session, o.host, _ports(o), _state(o), "yes" if o.background else "no", str(o.pid))
            for o in found
        ]
        output.table(("SESSION", "ID", "HOST", "LOCAL PORTS", "STATE", "BACKGROUND", "PID"), rows)
    return 0


def _facts(owner: Owner) -> dict[str, Any]:
    return {
        "session": owner.name, "id": owner.session, "host": owner.host, "pid": owner.pid,
        "ports": {**owner.ports, **owner.extra}, "state": owner.state, "since": owner.since, "why": owner.why,
        "background": owner.background, "barred": owner.barred,
    }  # fmt: skip


def _ports(owner: Owner) -> str:
    return " ".join(f"{name}:{number}" for name, number in {**owner.ports, **owner.extra}.items())


def _state(owner: Owner) -> str:
    age = text.duration(max(0.0, time.time() - owner.since))
    return f"{owner.state} for {age}" + (f" ({owner.why})" if owner.why else "")


def _stop(arguments: argparse.Namespace) -> int:
    wanted, everything = arguments.sessions, arguments.all
    if everything and wanted:
        raise errors.Usage("either names or --all", "leave one of them out")
    found = owners.living() if everything else [owners.named(name) for name in dict.fromkeys(wanted or [""])]
    if not found:
        output.note("no tunnels on this machine")
    for owner in found:
        if not arguments.dry_run:
            owners.end(owner, "stopped", "its tunnels were stopped")
        ended = "would be ended" if arguments.dry_run else "are ended"
        word = sessions.word_for(owner.session, owner.name)
        print(f"the tunnels to {owner.name} {ended}; the session goes on (mlbox session attach {word})")
    return 0
