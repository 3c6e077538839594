"""mlbox cron: the line that works the queue off, in your own crontab on each host."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox import errors
from mlbox.client import lab, options, output
from mlbox.client.hosts import ask_all, exit_code, facts, told


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox cron install\n  mlbox cron show gpu1",
        description="One line in your crontab on each host: a pass every minute.",
    )
    made.add_argument("do", choices=("install", "show", "remove"), metavar="WHAT", help="install, show or remove")
    made.add_argument("hosts", nargs="*", default=[], metavar="HOST", help="as several of --host")
    options.dry_run(made)
    options.queue(made, options.ALL)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    if arguments.hosts and arguments.host:
        raise errors.Usage("either HOST or --host", f"mlbox cron {arguments.do} {arguments.host} …")
    hosts = arguments.hosts or lab.each(arguments, settings)
    replies = ask_all(hosts, "cron", {"do": arguments.do}, settings)
    failed = {host: reply for host, reply in replies.items() if isinstance(reply, errors.MlboxError)}
    good = {host: reply for host, reply in replies.items() if not isinstance(reply, errors.MlboxError)}
    if arguments.json:
        asked = {host: facts(host, reply) for host, reply in replies.items()}
        output.facts({host: {**said, "dry_run": True} for host, said in asked.items()} if settings.dry_run else asked)
    else:
        for host, reply in good.items():
            would = "would have " if settings.dry_run and reply.get("changed") else ""
            for line in reply["lines"] or ["no line of mlbox's"]:
                print(f"{host}: {would}{line}")
    for host, error in failed.items():
        output.failure(told(host, error), error.hint)
    return exit_code(replies, arguments.hosts if arguments.do == "show" else hosts)
