"""mlbox retry: run an ended job once more, as a new one."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox.client import lab, options, output
from mlbox.core import text


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="example:\n  mlbox retry train",
        description="Run an ended job once more: a new job, the same code and settings.",
    )
    options.job(made)
    options.dry_run(made)
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    settings = options.config(arguments)
    reply = lab.entry(arguments, settings).call("retry", {"job": arguments.job})
    waits = {} if reply["started"] else {reply["id"]: reply["waits"]}
    for host in lab.start_elsewhere(waits, reply.pop("elsewhere"), settings).values():
        reply.update(started=True, host=host)
    reply["waits"] = waits.get(reply["id"], "")
    if arguments.json:
        output.facts(reply, arguments.dry_run)
        return 0
    if arguments.dry_run:
        print(f"{output.bold(text.safe(reply['name']))}  would be in line again, as a new job like {reply['of']}")
        return 0
    lab.trouble(reply)
    where = f"started on {reply['host']}" if reply["started"] else "in line"
    why = f": {text.safe(reply['waits'])}" if reply["waits"] else ""
    print(f"{output.bold(text.safe(reply['name']))}  {reply['id']}  {where}{why}")
    if not reply["started"]:
        lab.unattended(reply)
    return 0
