"""mlbox init: make a folder that the hosts share the lab's, and try what the queue needs of it."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlbox import errors
from mlbox.client import options, output, state
from mlbox.client.hosts import ask_all, told
from mlbox.client.remote import connect
from mlbox.core import text

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        usage="mlbox init HOST… --root DIR",
        epilog="example:\n  mlbox init gpu1 gpu2 --root /share/mlbox",
        description="Make DIR, a folder that all these hosts share, a lab; asked again, it checks and adds hosts.",
    )
    made.add_argument("hosts", nargs="+", metavar="HOST", help="as `ssh` knows them")
    options.dry_run(made)
    options.yes(made, "write the settings without asking, where there are none yet")
    options.queue(made, host="")
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    folder = next((host for host in arguments.hosts if host.startswith(("/", "~", "."))), "")
    if folder:
        raise errors.Usage(f"{folder} is a folder, not a host", f"mlbox init HOST… --root {folder}")
    with output.Progress() as progress:
        asked = ", ".join(dict.fromkeys(arguments.hosts))
        progress.say(f"asking {asked}" if arguments.dry_run else f"trying the folder from {asked}")
        replies = _made(arguments.hosts, settings)
        problems = [] if arguments.dry_run else _tried(replies, settings)
    if arguments.json:
        output.facts({"hosts": replies, "problems": problems}, arguments.dry_run)
        if arguments.yes and not arguments.dry_run and not problems and not state.config_file().exists():
            state.write(state.config_file(), _settings(next(iter(replies.values()))["root"], list(replies)))
    elif arguments.dry_run:
        _foretold(replies, arguments.yes)
    else:
        _told(replies, problems, arguments.yes)
    return 3 if problems else 0


def _made(hosts: list[str], settings: state.Config) -> dict[str, Json]:
    """What each host replied. Raises what the first of them failed with, and Refused where they do not mean the same
    folder: then no host is changed."""
    names, made = list(dict.fromkeys(hosts)), set[str]()
    if len(names) > 1:
        _check_one_folder(ask_all(names, "init", {}, replace(settings, dry_run=True)), settings)
        if not settings.dry_run:
            made = _agree(names, settings)
    several = len(names) > 1
    replies = {host: connect(host, settings).call("init", {"ssh": host, "several": several}) for host in names}
    return {host: {**reply, "made": reply["made"] or host in made} for host, reply in replies.items()}


def _agree(hosts: list[str], settings: state.Config) -> set[str]:
    """The first sets the lab's mark, where there is none, and the others see it; or each takes back what it set, also
    where that is interrupted. Who set it."""
    replies: dict[str, Json | errors.MlboxError] = {}
    try:
        # One after the other: with all at once, GlusterFS had two marks one time in 25.
        replies.update(ask_all(hosts[:1], "init", {"mark": True}, settings))
        _check_one_folder(replies, settings)
        replies.update(ask_all(hosts[1:], "init", {"mark": True}, settings))
        _check_one_folder(replies, settings)
    except BaseException:  # ^C too: a mark that only some hosts see would be half a lab
        for host, reply in replies.items():
            if not isinstance(reply, errors.MlboxError) and reply["made"]:
                _take_back(host, reply, settings)
        raise
    return {host for host, reply in replies.items() if not isinstance(reply, errors.MlboxError) and reply["made"]}


def _take_back(host: str, marked: Json, settings: state.Config) -> None:
    root = settings.root or "the default ROOT"
    try:
        reply = connect(host, settings).call("init", {"unmark": marked["id"], "folder": marked["folder"]})
    except errors.MlboxError as error:
        output.warn(f"{told(host, error)}: mlbox.json stays in {root} there")
        return
    if reply["left"]:
        output.warn(f"{host}: mlbox.json stays in {root} there")


def _check_one_folder(replies: Mapping[str, Json | errors.MlboxError], settings: state.Config) -> None:
    """Raises what the first host failed with, and Refused. Of a lab that is to be made no id is known yet."""
    known = set()
    for host, reply in replies.items():
        if isinstance(reply, errors.MlboxError):
            raise type(reply)(told(host, reply), reply.hint)
        known.add(reply["id"])
    if len(known) > 1:
        what = f"{settings.root or 'the default ROOT'} is not the same folder on these hosts"
        raise errors.Refused(what, "is it mounted on all?")


def _tried(replies: dict[str, Json], settings: state.Config) -> list[str]:
    """What is wrong."""
    problems = [f"{host}: {p}" for host, reply in replies.items() for p in reply["problems"]]
    if len(replies) > 1:
        one_name_each = {reply["host"]: host for host, reply in replies.items()}
        problems += _race(list(one_name_each.values()), settings)
    return problems


def _race(hosts: list[str], settings: state.Config) -> list[str]:
    """All hosts append to one log at once: every slot has exactly one winner, or this filesystem won't do. With two
    names for one host it may be one."""
    race = {"race": f".trial-{secrets.token_hex(4)}", "hosts": len(hosts)}
    answers = ask_all(hosts, "init", race, settings)
    if connect(hosts[0], settings).call("init", {**race, "over": True})["left"]:
        output.warn(f"{race['race']} in the lab's folder could not be removed whole")
    said = {host: answer for host, answer in answers.items() if not isinstance(answer, errors.MlboxError)}
    failed = [f"{host}: {a.message}" for host, a in answers.items() if isinstance(a, errors.MlboxError)]
    won = [slot for answer in said.values() for slot in answer["won"]]
    if failed:
        return failed
    if len(won) != len(set(won)):
        return [f"exclusive creation has not exactly one winner: {len(won) - len(set(won))} of {len(won)} won twice"]
    if any(answer["broken"] for answer in said.values()):
        return [f"{host}: {answer['broken']}" for host, answer in said.items() if answer["broken"]]
    if not all(answer["met"] for answer in said.values()):
        return [f"{' and '.join(hosts)} did not meet in time, so the folder was not tried between them: run it again"]
    return []


def _what(replies: dict[str, Json], what: str) -> None:
    first = next(iter(replies.values()))
    print(f"{first['root']} {what} ({first['filesystem'] or 'unknown filesystem'}); lab.yaml in it is yours to edit")
    print(f"  hosts: {', '.join(reply['host'] for reply in replies.values())} · queues: {', '.join(first['queues'])}")
    if not first["shared"]:
        print("  it is yours alone; for several people: chmod 1777 on it, and mlbox init again")


def _foretold(replies: dict[str, Json], yes: bool) -> None:
    _what(replies, f"would be made a lab, on {', '.join(replies)}" if _is_new(replies) else "is a lab already")
    print("  its filesystem was not tried" + (", nor whether it is one folder on these hosts"
          if len(replies) > 1 and _is_new(replies) else ""))  # fmt: skip
    lines = [reply["line"] for reply in replies.values() if reply["line"]]
    if lines:
        print("\n".join(["  lab.yaml would get, under hosts:", *map(text.safe, lines)]))
    _next(next(iter(replies.values()))["root"], list(replies), yes, dry=True)


def _is_new(replies: dict[str, Json]) -> bool:
    return any(reply["made"] for reply in replies.values())


def _told(replies: dict[str, Json], problems: list[str], yes: bool) -> None:
    _what(replies, "is a lab")
    for problem in problems:
        output.warn(problem)
    if not problems:
        print("  exclusive creation, renaming and flushing work there" + (", between these hosts too"
              if len({reply["host"] for reply in replies.values()}) > 1 else ""))  # fmt: skip
        _next(next(iter(replies.values()))["root"], list(replies), yes, dry=False)


def _next(root: str, hosts: list[str], yes: bool, dry: bool) -> None:
    """What the laptop has to know of it: shown, and written if wished where there are no settings yet."""
    path, lines = state.config_file(), _settings(root, hosts)
    known = state.config()
    if (known.root, sorted(known.hosts)) != (root, sorted(hosts)):
        print(f"next: these lines in {path}, by which each command finds it, and mlbox cron install\n{lines}", end="")
        if path.exists() or not (yes or output.may_ask()):
            return
        question = "  write them there? [y]es, [n]o [y]"
        if dry:
            output.note("  they would be written there" if yes else "  it would be asked whether to write them there")
        elif yes or output.ask(question, ("yes", "no"), "yes") == "yes":
            state.write(path, lines)
            output.note(f"  written to {path}")
    else:
        print("next: mlbox cron install")


def _settings(root: str, hosts: list[str]) -> str:
    return f"root = {json.dumps(root)}\nhosts = {json.dumps(hosts)}\n"
