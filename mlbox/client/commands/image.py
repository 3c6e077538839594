"""mlbox image: what is kept on the hosts for another time, and the removal of what nothing uses. All hosts at once."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from mlbox import errors
from mlbox.client import options, output
from mlbox.client.hosts import ask_all, exit_code, facts, known_hosts, why
from mlbox.core import text
from mlbox.core.stored import OLDER_THAN, Others, Stored, parse_age, size

Json = dict[str, Any]
Replies = dict[str, "Json | errors.MlboxError"]
_TITLES = {
    "layer": "layer", "environment": "environment", "code": "code of jobs", "release": "VS Code",
    "program": "mlbox itself",
}  # fmt: skip


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox image list gpu1\n  mlbox image prune --older-than 7d --dry-run",
        description="Layers that mlbox added to images, environments without a container, code of jobs, archives of "
        "VS Code's server, and mlbox's own files, on each HOST (default: those configured or seen before, else this "
        "machine).",
    )
    verbs = made.add_subparsers(dest="do", metavar="WHAT", required=True, parser_class=type(made))
    for name, words in (("list", "what there is, its size and last use"), ("prune", "remove what nothing uses")):
        one = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
        one.add_argument("hosts", nargs="*", metavar="HOST")
        if name == "prune":
            age = one.add_mutually_exclusive_group()
            age.add_argument("--older-than", metavar="30d", help="not used for that long (default: 30d)")
            age.add_argument("--all", action="store_true", help="of any age; never what is in use")
            options.dry_run(one)
            options.yes(one)
        one.add_argument("--root", metavar="DIR", help=options.ROOT)
        one.add_argument("--json", action="store_true", help="print facts as JSON")
        one.add_argument("--ssh-config", metavar="F", help="ssh's configuration file (ssh -F)")
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    hosts = list(dict.fromkeys(arguments.hosts)) or known_hosts(settings)
    if arguments.do == "list":
        replies = ask_all(hosts, "images", {}, settings)
        return _tell(arguments, replies, "things", "")
    older_than = 0.0 if arguments.all else parse_age(arguments.older_than) if arguments.older_than else OLDER_THAN
    args = {"do": "prune", "older_than": older_than}
    foreseen: Replies = {}
    if not arguments.dry_run and not arguments.yes:
        if output.may_ask():
            foreseen = ask_all(hosts, "images", args, replace(settings, dry_run=True))
            there = {name: reply for name, reply in foreseen.items() if not isinstance(reply, errors.MlboxError)}
            hosts = [name for name, reply in there.items() if reply["removed"]]  # nothing is removed that was not shown
            if not hosts:
                return _tell(arguments, foreseen, "removed", "freed")
            output.aside(_show, foreseen, "removed", "would be freed")
        output.confirm("Remove these?", arguments.yes, "what image prune removes has to be built or sent again")
    replies = {**foreseen, **ask_all(hosts, "images", args, settings)}
    return _tell(arguments, replies, "removed", "would be freed" if arguments.dry_run else "freed")


def _tell(arguments: argparse.Namespace, replies: Replies, what: str, freed: str) -> int:
    if arguments.json:
        output.facts([facts(name, reply) for name, reply in replies.items()], getattr(arguments, "dry_run", False))
    else:
        _show(replies, what, freed)
    return exit_code(replies, arguments.hosts if arguments.do == "list" else replies)


def _show(replies: Replies, what: str, freed: str) -> None:
    for number, (name, reply) in enumerate(replies.items()):
        if number:
            print()
        _print(name, reply, what, freed)


def _print(name: str, reply: Json | errors.MlboxError, what: str, freed: str) -> None:
    if isinstance(reply, errors.MlboxError):
        print(f"{output.bold(name)}  {why(name, reply)}")
        return
    things = [Stored.from_wire(thing) for thing in reply[what]]
    total = size(sum(thing.size for thing in things))
    print(f"{output.bold(name)}  {text.count(len(things), 'thing')}, {total} {freed}".rstrip())
    if things:
        output.table(("KIND", "NAME", "SIZE", "LAST USED", "OF", "STAYS"), [_row(thing) for thing in things])
    if "outside" in reply:
        folder = text.safe(str(reply["outside"]))
        print(f"environments of another ROOT, {folder}, are not among these: --root {folder}")
    for other in map(Others.from_wire, reply.get("others", ())):
        there = f"{text.count(other.count, 'image')} that mlbox did not make, {size(other.size)}"
        print(f"{other.engine}: {there} (what they share is counted for each): `{other.engine} images`")
    for disk in reply["disks"]:
        print(f"{text.safe(str(disk['folder']))}: {size(disk['free'])} of {size(disk['total'])} free")


def _row(thing: Stored) -> tuple[str, ...]:
    kind = _TITLES.get(thing.kind, thing.kind)
    name = thing.name if thing.kind in ("layer", "environment") else thing.name[:18]
    used = f"{text.duration(max(0.0, time.time() - thing.used))} ago"
    return kind, text.safe(name), size(thing.size), used, text.safe(thing.about), text.safe(thing.stays)
