"""mlbox move: another queue, another priority, the top or the bottom."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox import errors
from mlbox.client import lab, options, output
from mlbox.core import text


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox move train --top\n  mlbox move train --queue night",
        description="Move a waiting job, to a queue, a priority, or among your own jobs of that priority.",
    )
    options.job(made)
    made.add_argument("--queue", metavar="Q", default="", help="to another queue")
    made.add_argument("--priority", type=int, metavar="N", help="to another priority")
    ends = made.add_mutually_exclusive_group()
    ends.add_argument(
        "--top",
        dest="where",
        action="store_const",
        const="top",
        default="",
        help="before your others; passes nobody else's",
    )
    ends.add_argument("--bottom", dest="where", action="store_const", const="bottom", help="behind your others")
    options.dry_run(made)
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    if not arguments.queue and arguments.priority is None and not arguments.where:
        raise errors.Usage("move it where?", "--queue Q, --priority N, --top or --bottom")
    args = {"job": arguments.job, "queue": arguments.queue, "priority": arguments.priority, "where": arguments.where}
    settings = options.config(arguments)
    reply = lab.entry(arguments, settings).call("move", args)
    reply["started"] |= bool(lab.start_elsewhere({reply["id"]: ""}, reply.pop("elsewhere"), settings))
    if arguments.json:
        output.facts(reply, arguments.dry_run)
        return 0
    lab.trouble(reply)
    place = {"top": ", before your others", "bottom": ", behind your others"}.get(arguments.where, "")
    state = "; it has started" if reply["started"] else place
    where = f"{'would be ' if arguments.dry_run else ''}in queue {reply['queue']}, priority {reply['priority']}"
    print(f"{text.safe(reply['name'])}  {reply['id']}  {where}{state}")
    return 0
