"""mlbox port: more ports of a session on this machine, for as long as its tunnels are up here."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from mlbox.client import options, output, owners
from mlbox.client.tunnels import listener
from mlbox.core import port

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="example:\n  mlbox port add kind-otter 6006 8000:80",
        description="Bring more ports of a running session to this machine's loopback.",
    )
    verbs = made.add_subparsers(dest="do", metavar="WHAT", required=True, parser_class=type(made))
    for name, words in (("add", "bring ports here"), ("list", "those that are here"), ("remove", "take them away")):
        one = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
        one.add_argument("session", metavar="NAME", nargs="?" if name == "list" else None, default="")
        one.add_argument("--json", action="store_true", help="print facts as JSON")
        if name != "list":
            metavar, here = ("P|LOCAL:P", " (and the one here)") if name == "add" else ("P", "")
            one.add_argument("ports", nargs="+", metavar=metavar, help=f"the port inside the session{here}")
            options.dry_run(one)
    return made


def main(arguments: argparse.Namespace) -> int:
    wanted = [port.parse(word) for word in getattr(arguments, "ports", [])]
    owner = owners.named(arguments.session)
    if arguments.do == "add":
        return _add(owner, wanted, arguments.json, arguments.dry_run)
    if arguments.do == "remove":
        return _remove(owner, wanted, arguments.json, arguments.dry_run)
    if arguments.json:
        output.facts(owner.extra)
    elif owner.extra:
        output.table(("INSIDE", "HERE"), [(inside, f"localhost:{here}") for inside, here in owner.extra.items()])
    else:
        output.note(f"no more ports of {owner.name} are here (mlbox port add {owner.name} 6006)")
    return 0


def _add(owner: owners.Owner, wanted: list[port.Port], as_json: bool, dry: bool) -> int:
    found = {}
    with contextlib.ExitStack() as held:
        for one in wanted:
            asked = {"local": one.local, "inside": one.inside}
            reply = _foreseen(owner, held, **asked) if dry else owners.ask(owner, "add", **asked)
            here = found[str(one.inside)] = int(reply["local"])
            if as_json:
                continue
            if reply["new"] and here != one.local:
                output.note(f"  port {one.local} is taken here")
            state = "is" if not dry or not reply["new"] else "would be"
            already = "" if reply["new"] else ", as before"
            print(f"port {one.inside} of {owner.name} {state} on localhost:{here}{already}")
    if as_json:
        output.facts(found, dry)
    return 0


def _foreseen(owner: owners.Owner, held: contextlib.ExitStack, local: int, inside: int) -> Json:
    """What the tunnels' process would reply: a port is chosen by taking it, here until the others are chosen too."""
    if str(inside) in owner.extra:
        return {"local": owner.extra[str(inside)], "new": False}
    taken = listener.Port(listener.Service(f"port {inside}", local, inside=inside))
    held.callback(taken.close)
    return {"local": taken.number, "new": True}


def _remove(owner: owners.Owner, wanted: list[port.Port], as_json: bool, dry: bool) -> int:
    for one in wanted:
        if dry:
            owners.check_port(owner, one.inside)
        else:
            owners.ask(owner, "remove", inside=one.inside)
        if not as_json:
            print(f"port {one.inside} of {owner.name} {'would not be here' if dry else 'is not here any more'}")
    if as_json:
        inside = [one.inside for one in wanted]
        output.facts({"ports": inside} if dry else inside, dry)
    return 0
