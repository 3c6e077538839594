"""mlbox session list: your running sessions, on all hosts at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from mlbox import errors
from mlbox.client import options, output, sessions, ssh_config, state
from mlbox.client.hosts import ask_all, known_hosts
from mlbox.core import text

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(description="Your running sessions, and those that colleagues share with you.")
    options.hosts(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    return run(arguments.hosts, options.config(arguments), arguments.json)


def run(hosts: Sequence[str], config: state.Config, as_json: bool) -> int:
    names = hosts or known_hosts(config)
    replies = ask_all(names, "sessions", {}, config)
    rows = sessions.listed(replies)
    failed = {name: r for name, r in replies.items() if isinstance(r, errors.MlboxError)}
    for name in set(replies) - set(failed):
        ssh_config.keep_only(name, config.root, [row["id"] for row in rows if row["host"] == name])
    if as_json:
        output.facts(rows)
    elif rows:
        table = [
            (_name(s), s["id"], s["host"], s["state"], str(len(s["gpus"])), s["image"] or "(process)", _age(s))
            for s in rows
        ]
        output.table(("NAME", "ID", "HOST", "STATE", "GPUS", "IMAGE", "AGE"), table)
    elif not failed:
        output.note(f"no session of yours is running on {', '.join(names)}")
    for name, error in failed.items():
        output.warn(f"{name}: {error.message}")
    return next(iter(failed.values())).exit_code if failed and len(failed) == len(replies) else 0


def _name(session: Json) -> str:
    return f"{session['name']} ({text.safe(session['owner'])}'s)" if "owner" in session else str(session["name"])


def _age(session: Json) -> str:
    return text.duration(time.time() - session["since"]) if session["since"] else "-"
