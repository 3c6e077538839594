"""mlbox jobs: what runs, what waits and why, what ended lately."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from mlbox.client import lab, options, output, state
from mlbox.core import text
from mlbox.core.log import RUNNING, WAITING, said

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        usage="mlbox jobs [options]\n       mlbox jobs prune …",
        description="Your jobs: running, waiting (and why), and ended lately.",
        epilog="examples:\n  mlbox jobs -n 5\n  mlbox jobs --all --queue night\n  mlbox jobs prune --older-than 30d",
    )
    made.add_argument("--all", action="store_true", help="everybody's")
    made.add_argument("--queue", metavar="Q", default="", help="of one queue")
    ended = "ended ones to show, of each user (default: 20)"
    made.add_argument("-n", "--ended", type=int, default=20, metavar="N", help=ended)
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    host = lab.entry(arguments, options.config(arguments))
    reply = host.call("jobs", {"all": arguments.all, "queue": arguments.queue, "ended": max(0, arguments.ended)})
    if not arguments.all:
        state.remember_seen(reply["jobs"])
    if arguments.json:
        output.facts(reply["jobs"])
        return 0
    lab.trouble(reply)
    if not reply["jobs"]:
        output.note("no jobs; mlbox submit -- COMMAND makes one")
        return 0
    show(reply["jobs"], arguments.all)
    return 0


def show(jobs: Sequence[Json], owners: bool = False) -> None:
    """A table of them; `owners`: with a column for whose they are."""
    owner = ("OWNER",) if owners else ()
    rows = [((job["owner"],) if owner else ()) + row for job in jobs for row in _rows(job)]
    output.table((*owner, "ID", "NAME", "STATE", "WHERE", "GPUS", "AGE", "WHY"), rows)


def _rows(job: Json) -> list[tuple[str, ...]]:
    """Its own, and one for all that wait behind it and are not shown."""
    rest = ("…", f"and {job.get('more')} more", said("submitted"), f"({job['queue']})", "", "", "")
    return [_row(job), rest] if job.get("more") else [_row(job)]


def _row(job: Json) -> tuple[str, ...]:
    state = str(job["state"])
    where = job["host"] if state in RUNNING or state not in WAITING else f"({job['queue']})"
    shown = "ending" if job.get("requested") else said(state)
    why = job.get("waits") or (job["why"] if state not in RUNNING and state != "finished" else "")
    if job.get("silent"):
        why = f"{job['host']} has been silent for {text.duration(job['silent'])}"
    gpus = str(len(job["gpus"])) if state not in WAITING else ""
    return (job["id"], lab.title(job), shown, where or "-", gpus, _age(job), why)


def _age(job: Json) -> str:
    since = job["at"] if job["state"] in RUNNING or job["state"] not in WAITING else job["submitted"] or job["at"]
    return text.duration(time.time() - since) if since else "-"
