"""mlbox host: drain one, let it go on, or declare it gone; add one that can't be dialled, or remove it."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import Any

from mlbox import errors
from mlbox.client import lab, options, output, state
from mlbox.client.remote import Host, connect
from mlbox.client.transports.openssh import OpenSsh
from mlbox.core import text

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox host drain gpu2 --why 'a loud fan'\n  mlbox host add ws --tunnel reverse --via gpu1",
        description="Take a host of the lab out of use and back. NAME is the host's own name.",
    )
    verbs = made.add_subparsers(dest="do", metavar="WHAT", required=True, parser_class=type(made))
    for name, words in (
        ("drain", "start nothing new there; what runs goes on"), ("resume", "let it start jobs and sessions again"),
        ("fence", "it is gone for good: requeue what it ran, and start nothing there until resume"),
        ("add", "let one that can't be dialled bring its sessions to one that can"),
        ("remove", "take out what add wrote"),
    ):  # fmt: skip
        one = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
        one.add_argument("name", metavar="NAME", help="the host's own name, as mlbox status shows it")
        if name == "add":
            one.add_argument(
                "--tunnel", choices=("forward", "reverse"), default="forward",
                help="reverse: it can't be dialled, it dials out (default: only sessions with --tunnel reverse do)",
            )  # fmt: skip
            one.add_argument("--via", metavar="HOST", required=True, help="the host where its reverse tunnels end")
            one.add_argument(
                "--address",
                metavar="HOST[:PORT]",
                default="",
                help="the address at which NAME reaches the --via host (default: as ssh here)",
            )
        if name in ("add", "remove"):
            options.yes(one)
        if name == "drain":
            one.add_argument("--why", default="", help="the reason, which others see")
        if name == "fence":
            options.yes(one)
        options.dry_run(one)
        options.queue(one)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    if arguments.do in ("add", "remove"):
        return (_add if arguments.do == "add" else _remove)(arguments, settings)
    args = {"do": arguments.do, "name": arguments.name, "why": getattr(arguments, "why", "")}
    if arguments.do == "fence" and not arguments.yes:  # nobody is asked about one that is not there
        lab.entry(arguments, replace(settings, dry_run=True)).call("host", args)
        _sure(arguments.name, arguments.dry_run)
    entry = lab.entry(arguments, settings)
    reply = entry.call("host", args)
    waiting = reply.pop("nudge")
    if arguments.do == "resume":
        lab.look_again(entry, waiting, settings)
    elif arguments.do == "fence":
        lab.look_again(entry, lab.near(waiting), settings, next(iter(reply["requeued"]), ""))
    if arguments.json:
        output.facts(reply, settings.dry_run)
    elif arguments.do == "fence":
        name, would = text.safe(reply["host"]), settings.dry_run
        again = f"{text.count(len(reply['requeued']), 'job')} of yours in line again"
        until = f"it {'would start' if would else 'starts'} nothing until mlbox host resume {name}"
        print(f"{name} {'would be' if would else 'is'} fenced; {again}; {until}")
    else:
        starts = "would start" if settings.dry_run else "starts"
        state = f"{starts} {'nothing new' if reply['drained'] else 'jobs'}"
        print(f"{text.safe(reply['host'])} {state}; {text.count(len(reply['running']), 'job')} running there")
    return 0


def _add(arguments: argparse.Namespace, settings: state.Config) -> int:
    """The key is the host's own; the line that lets it in is shown first; then each learns where the other is."""
    name, entry, via = arguments.name, lab.entry(arguments, settings), connect(arguments.via, settings)
    place = _address(via, arguments.address)
    with output.Progress() as progress:
        args = {"do": "add", "name": name, "via": via.name, "tunnel": arguments.tunnel}
        added = entry.call("host", args, lambda facts: progress.say(str(facts.get("text", ""))))
    key, dry = added["key"], settings.dry_run
    if dry and added["line"]:
        output.note(f"lab.yaml would get:\n{added['line']}")
    shown = via.call("rendezvous", {"do": "show", "name": name, "key": key})
    if not shown["known"]:
        line = shown["line"] or f"a line for {name}'s key, which its next pass over the queue shows"
        _ask(f"{via.name}, {shown['file']} {'would get' if dry else 'gets'}:\n{line}", arguments.yes or dry)
        via.call("rendezvous", {"do": "add", "name": name, "key": key})
    meeting = {**place, "via": via.name, "folder": shown["folder"]}
    entry.call("host", {"do": "meet", "name": name, "meeting": meeting})
    if arguments.json:
        output.facts({"host": name, "via": via.name, "line": shown["line"], "file": shown["file"]}, dry)
    else:
        how = "all its sessions" if arguments.tunnel == "reverse" else "sessions with --tunnel reverse"
        print(f"{text.safe(name)} {'would bring' if dry else 'brings'} {how} to {via.name}")
    return 0


def _address(via: Host, wanted: str) -> Json:
    if not isinstance(via.transport, OpenSsh):
        raise errors.Usage(f"{via.name} can't be a rendezvous: it must be dialled by OpenSSH", "another --via")
    address, port, user = via.transport.address()
    name, keys = via.transport.host_keys()
    if wanted:
        address, port = _split(wanted)
    return {"address": address, "port": port, "user": user, "name": name, "host_keys": list(keys)}


def _split(wanted: str) -> tuple[str, int]:
    """HOST, HOST:PORT, an IPv6 address, or [ADDRESS]:PORT. Raises Usage."""
    found = re.fullmatch(r"\[([^][]+)\](?::([0-9]+))?", wanted) or re.fullmatch(r"([^][:]+)(?::([0-9]+))?", wanted)
    if found is None and wanted.count(":") > 1 and not set("[]") & set(wanted):
        return wanted, 22
    port = int(found[2] or 22) if found is not None else 0
    if found is None or not 0 < port < 65536:
        raise errors.Usage(f"{text.safe(wanted)!r} is no address", "HOST, HOST:PORT or, with IPv6, [ADDRESS]:PORT")
    return found[1], port


def _ask(what: str, yes: bool) -> None:
    output.note(what)
    output.confirm("Do it?", yes, "it is for you to agree to this change")


def _remove(arguments: argparse.Namespace, settings: state.Config) -> int:
    """The line goes first: whatever fails after it, the key opens nothing any more."""
    name, entry = arguments.name, lab.entry(arguments, settings)
    place, dry = entry.call("host", {"do": "place", "name": name}), settings.dry_run
    if place["via"]:
        goes = "would go" if dry else "goes"
        _ask(f"{place['via']}, {name}'s line of authorized_keys {goes}", arguments.yes or dry)
        connect(place["via"], settings).call("rendezvous", {"do": "remove", "name": name})
    reply = entry.call("host", {"do": "remove", "name": name})
    if arguments.json:
        output.facts(reply, dry)
    else:
        kept = f"; in lab.yaml it stays for {', '.join(map(text.safe, reply['others']))}" if reply["others"] else ""
        print(f"{text.safe(name)} {'would be' if dry else 'is'} removed{kept}")
    return 0


def _sure(name: str, dry: bool) -> None:
    """A host that only seems gone would run a job beside its successor."""
    question = f"Is {name} switched off, or rebooted? What it ran will run elsewhere."
    if dry:
        output.note(f"it would be asked: {question}")
        return
    output.confirm(question, False, f"fencing {name} requeues what it runs, even if it still runs")
