"""mlbox init: make a folder that the hosts share the lab's, and try what the queue needs of it."""

from __future__ import annotations

import argparse
import json
import secrets
from typing import Any

from mlbox import errors
from mlbox.client import options, output, state
from mlbox.client.hosts import ask_all
from mlbox.client.remote import connect

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        usage="mlbox init HOST… --root DIR",
        description="Make DIR, a folder that all these hosts share, a lab; asked again, it checks and adds hosts.",
    )
    made.add_argument("hosts", nargs="+", metavar="HOST", help="as `ssh` knows them")
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    with output.Progress() as progress:
        progress.say(f"trying the folder from {', '.join(dict.fromkeys(arguments.hosts))}")
        replies, problems = _tried(arguments.hosts, settings)
    if arguments.json:
        output.facts({"hosts": replies, "problems": problems})
    else:
        _told(replies, problems)
    return 3 if problems else 0


def _tried(hosts: list[str], settings: state.Config) -> tuple[dict[str, Json], list[str]]:
    """What each host replied, and what is wrong. Raises Refused where they do not mean the same folder."""
    replies = {host: connect(host, settings).call("init", {"ssh": host}) for host in dict.fromkeys(hosts)}
    ids = {reply["id"] for reply in replies.values()}
    if len(ids) > 1:
        raise errors.Refused(
            f"{settings.root or 'the default ROOT'} is not the same folder on these hosts", "is it mounted on all?"
        )
    problems = [f"{host}: {p}" for host, reply in replies.items() for p in reply["problems"]]
    if len(replies) > 1:
        problems += _race(list(replies), settings)
    return replies, problems


def _race(hosts: list[str], settings: state.Config) -> list[str]:
    """All hosts append to one log at once: every slot has exactly one winner, or this filesystem won't do."""
    race = {"race": f".trial-{secrets.token_hex(4)}"}
    answers = ask_all(hosts, "init", race, settings)
    if connect(hosts[0], settings).call("init", {**race, "over": True})["left"]:
        output.warn(f"{race['race']} in the lab's folder could not be removed whole")
    failed = [f"{host}: {a.message}" for host, a in answers.items() if isinstance(a, errors.MlboxError)]
    won = sorted(slot for a in answers.values() if not isinstance(a, errors.MlboxError) for slot in a["won"])
    if not failed and len(won) != len(set(won)):
        return [f"two hosts won the same name: {len(won) - len(set(won))} of {len(won)} times"]
    return failed


def _told(replies: dict[str, Json], problems: list[str]) -> None:
    first = next(iter(replies.values()))
    print(f"{first['root']} is a lab ({first['filesystem'] or 'unknown filesystem'}); lab.yaml in it is yours to edit")
    print(f"  hosts: {', '.join(reply['host'] for reply in replies.values())} · queues: {', '.join(first['queues'])}")
    if not first["shared"]:
        print("  it is yours alone; for several people: chmod 1777 on it, and mlbox init again")
    for problem in problems:
        output.warn(problem)
    if not problems:
        print("  exclusive creation, renaming and flushing work there" + (", between these hosts too"
              if len(replies) > 1 else ""))  # fmt: skip
        _next(first["root"], list(replies))


def _next(root: str, hosts: list[str]) -> None:
    """What the laptop has to know of it: shown, and written if wished where there are no settings yet."""
    path, lines = state.config_file(), f"root = {json.dumps(root)}\nhosts = {json.dumps(hosts)}\n"
    known = state.config()
    if (known.root, sorted(known.hosts)) != (root, sorted(hosts)):
        print(f"next: these lines in {path}, by which each command finds it, and mlbox cron install\n{lines}", end="")
        may = not path.exists() and output.may_ask()
        if may and output.ask("  write them there? [y]es, [n]o [y]", ("yes", "no"), "yes") == "yes":
            state.write(path, lines)
    else:
        print("next: mlbox cron install")
