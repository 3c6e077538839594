"""mlbox host: drain one, let it go on, or declare it gone."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox import errors
from mlbox.client import lab, output
from mlbox.core import text


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(description="A person's word about a host. NAME is the host's own name.")
    verbs = made.add_subparsers(dest="do", metavar="WHAT", required=True, parser_class=type(made))
    for name, words in (
        ("drain", "start nothing new there; what runs goes on"), ("resume", "start again"),
        ("fence", "it is gone for good: requeue what it ran"),
    ):  # fmt: skip
        one = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
        one.add_argument("name", metavar="NAME")
        if name == "drain":
            one.add_argument("--why", default="", help="for the others")
        if name == "fence":
            one.add_argument("-y", "--yes", action="store_true", help="ask nothing")
        lab.options(one)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = lab.config(arguments)
    if arguments.do == "fence" and not arguments.yes:
        _sure(arguments.name)
    args = {"do": arguments.do, "name": arguments.name, "why": getattr(arguments, "why", "")}
    reply = lab.entry(arguments, settings).call("host", args)
    if arguments.json:
        output.facts(reply)
    elif arguments.do == "fence":
        print(
            f"{text.safe(reply['host'])} is fenced; {text.count(len(reply['requeued']), 'job')} of yours in line again"
        )
    else:
        state = "starts nothing new" if reply["drained"] else "starts jobs"
        print(f"{text.safe(reply['host'])} {state}; {text.count(len(reply['running']), 'job')} running there")
    return 0


def _sure(name: str) -> None:
    """A host that only seems gone would run a job beside its successor."""
    if not output.may_ask():
        raise errors.Usage(f"fencing {name} requeues what it runs, even if it still runs", "-y, if it is really gone")
    question = f"Is {name} switched off, or rebooted? What it ran will run elsewhere. [y]es, [n]o? [n]"
    if output.ask(question, ("yes", "no"), "no") == "no":
        raise KeyboardInterrupt
