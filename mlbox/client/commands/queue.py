"""mlbox queue: list, create, pause, resume; process it once, or (--watch) for as long as this stands."""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

from mlbox import errors
from mlbox.client import lab, options, output, state
from mlbox.client.hosts import ask_all, exit_code, facts, told
from mlbox.core import text

Json = dict[str, Any]
_EVERY = 15.0  # s between two passes of --watch


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox queue pause night --why 'new driver'\n  mlbox queue process --watch",
        description="The lab's queues.",
    )
    verbs = made.add_subparsers(dest="do", metavar="WHAT", required=True, parser_class=type(made))
    for name, words in (
        ("list", "the queues: who waits, what runs"), ("create", "a new queue (a line in lab.yaml)"),
        ("pause", "start nothing from it"), ("resume", "start again"),
        ("process", "one pass now: what cron does every minute"),
    ):  # fmt: skip
        one = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
        if name in ("create", "pause", "resume"):
            one.add_argument("queue", metavar="QUEUE")
        if name == "pause":
            one.add_argument("--why", default="", help="for the others")
        if name == "process":
            either = one.add_mutually_exclusive_group()
            either.add_argument("--watch", action="store_true", help="again and again, until ^C")
        if name != "list":
            options.dry_run(either if name == "process" else one)
        options.queue(one, options.ALL if name == "process" else options.ANY)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    if arguments.do == "process":
        return _process(arguments, settings)
    args = {"do": arguments.do, "queue": getattr(arguments, "queue", ""), "why": getattr(arguments, "why", "")}
    entry = lab.entry(arguments, settings)
    reply = entry.call("queue", args)
    if arguments.do == "resume":
        lab.look_again(entry, reply["nudge"], settings)
    if not settings.dry_run:
        state.remember_seen(queues=[queue["name"] for queue in reply["queues"]])
    if arguments.json:
        output.facts(reply["queues"], settings.dry_run)
        return 0
    lab.trouble(reply)
    if settings.dry_run:
        print(f"would {arguments.do} {text.safe(arguments.queue)}:")
    head = ("QUEUE", "WAITING", "RUNNING", "HOSTS", "STATE")
    output.table(head, [_row(queue) for queue in reply["queues"]])
    return 0


def _row(queue: Json) -> tuple[str, ...]:
    limit = f" of {queue['max_running']}" if queue["max_running"] else ""
    paused = f"paused by {queue['paused']}" if queue["paused"] else "open"
    return (
        queue["name"],
        str(queue["waiting"]),
        f"{queue['running']}{limit}",
        ", ".join(queue["hosts"]) or "-",
        paused,
    )


def _process(arguments: argparse.Namespace, settings: state.Config) -> int:
    hosts = lab.each(arguments, settings)
    if arguments.watch:
        output.note(f"  {', '.join(hosts)}: a pass every {_EVERY:.0f} s, until ^C; what it does is said here")
    while True:
        replies = ask_all(hosts, "tick", {}, settings)
        for host, reply in replies.items():
            if isinstance(reply, errors.MlboxError):
                output.warn(told(host, reply))
            elif arguments.json:
                continue
            elif arguments.dry_run:
                _foretold(host, reply)
            else:
                _told(host, reply, quiet=arguments.watch)
        if arguments.json:
            output.facts([facts(host, reply) for host, reply in replies.items()], arguments.dry_run)
        if not arguments.watch:
            return exit_code(replies)
        threading.Event().wait(_EVERY)


def _told(host: str, reply: Json, quiet: bool) -> None:
    lab.trouble(reply)
    parts = [f"{len(reply[key])} {key}" for key in ("started", "preempted", "failed") if reply[key]]
    parts += [f"{text.count(len(reply['waits']), 'job')} waiting"] if reply["waits"] else []
    if reply["busy"]:
        parts = ["another pass is at work"]
    if parts or not quiet:
        print(f"{time.strftime('%H:%M:%S')} {host}: {', '.join(parts) or 'nothing to do'}", flush=True)


def _foretold(host: str, reply: Json) -> None:
    lab.trouble(reply)
    for act in ("started", "preempted", "failed"):
        for job in reply[act]:
            print(f"{host}: {job}  would be {act}")
    for job, why in reply["waits"].items():
        print(f"{host}: {job}  in line: {text.safe(why)}")
    if not any(reply[key] for key in ("started", "preempted", "failed", "waits")):
        print(f"{host}: nothing to do")
