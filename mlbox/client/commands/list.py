"""mlbox session list: your running sessions, on all hosts at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from mlbox import errors
from mlbox.client import options, output, sessions, ssh_config, state
from mlbox.client.hosts import ask_all, exit_code, facts, known_hosts, told
from mlbox.client.transports import LOCAL
from mlbox.core import text
from mlbox.core.log import said

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(description="Your running sessions, and those that colleagues share with you.")
    options.hosts(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    return run(arguments.hosts, options.config(arguments), arguments.json)


def run(hosts: Sequence[str], config: state.Config, as_json: bool) -> int:
    names = hosts or known_hosts(config)
    replies, more = _ask_of(names, config)
    everything = sessions.listed(replies)
    rows = [row for row in everything if row["host"] in names or not more]
    asked = names if hosts else [*names, *sorted(sessions.away(replies))]
    replies = {name: reply for name, reply in replies.items() if name in names}
    failed = {name: r for name, r in replies.items() if isinstance(r, errors.MlboxError)}
    living = [row["id"] for row in everything]  # anywhere: an entry leads to a rendezvous where one is needed
    for name in set(replies) - set(failed):
        ssh_config.keep_only(name, config.root, living)
    if as_json:
        output.facts([*rows, *(facts(name, error) for name, error in failed.items())])
    elif rows:
        table = [
            (_name(s), s["id"], s["host"], said(s["state"]), str(len(s["gpus"])), s["image"] or "(process)", _age(s))
            for s in rows
        ]
        output.table(("NAME", "ID", "HOST", "STATE", "GPUS", "IMAGE", "AGE"), table)
    elif not failed:
        output.note(f"no session of yours is running on {', '.join(asked)}")
    for name, error in failed.items():
        output.warn(told(name, error))
    return exit_code(replies, hosts)


def _name(session: Json) -> str:
    return f"{session['name']} ({text.safe(session['owner'])}'s)" if "owner" in session else str(session["name"])


def _ask_of(names: Sequence[str], config: state.Config) -> tuple[dict[str, Json | errors.MlboxError], bool]:
    """The replies of these hosts, and whether more were asked: of one that can't be dialled the known hosts tell."""
    known = known_hosts(config)
    strangers = [name for name in names if name not in known]
    told = ask_all(known, "sessions", {}, config) if strangers and known != [LOCAL] else {}
    met = [name for name in sessions.away(told) if name in strangers]
    left = [name for name in names if name not in told and name not in met]
    return {**told, **(ask_all(left, "sessions", {}, config) if left else {})}, bool(told)


def _age(session: Json) -> str:
    ends = f", ends in {text.duration(session['ends'] - time.time())}" if session.get("ends") else ""
    return text.duration(time.time() - session["since"]) + ends if session["since"] else "-"
