"""mlbox logs: a job's output, now and (-f) as it comes."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mlbox import errors
from mlbox.client import lab, options, output
from mlbox.client.remote import Host
from mlbox.core import text
from mlbox.core.log import said

Json = dict[str, Any]
_ENDS = {"finished": 0, "cancelled": 130}


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox logs -f train\n  mlbox logs -n 50 'sweep[3]'",
        description="A job's output. With -f the exit code is the job's.",
    )
    options.job(made)
    made.add_argument("-f", "--follow", action="store_true", help="and what comes, until the job has ended")
    made.add_argument("-n", "--tail", type=int, metavar="N", help="only the last N lines of what is there")
    made.add_argument("--attempt", type=int, default=0, metavar="N", help="of that attempt (default: the latest)")
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    if (arguments.tail or 0) < 0:
        raise errors.Usage(f"-n {arguments.tail}: there are no lines before the first", "-n 20: the last 20")
    host = lab.entry(arguments, options.config(arguments))
    if arguments.json:
        found = collect(host, arguments.job, arguments.follow, arguments.tail, arguments.attempt)
        output.facts(found)
        return exit_code(found) if arguments.follow else 0
    if arguments.follow:
        return follow(host, arguments.job, arguments.tail, arguments.attempt)
    args = {"job": arguments.job, "tail": arguments.tail, "attempt": arguments.attempt}
    printed: list[str] = []

    def show(facts: Json) -> None:
        printed.extend(["output"] if facts.get("output") else ())
        _print(facts)

    reply = host.call("logs", args, show)
    sys.stdout.flush()
    if not printed and arguments.tail != 0:
        nothing = "it has printed nothing" if reply["attempt"] else "it has not run"
        output.note(f"{nothing}; it is {said(reply['state'])}{_why(reply)}")
    return 0


def follow(host: Host, job: str, tail: int | None = None, attempt: int = 0) -> int:
    """To the end; the exit code is the job's."""
    reply = host.call("logs", {"job": job, "follow": True, "tail": tail, "attempt": attempt}, _print)
    sys.stdout.flush()
    output.note(f"  {reply['state']}{_why(reply)}")
    return exit_code(reply)


def collect(host: Host, job: str, follow: bool, tail: int | None = None, attempt: int = 0) -> Json:
    """All as one document: how it stands or ended, and its output."""
    heard: list[str] = []
    args = {"job": job, "follow": follow, "tail": tail, "attempt": attempt}
    reply = host.call("logs", args, lambda facts: heard.append(facts.get("output", "")))
    return {**reply, "output": "".join(heard)}


def exit_code(reply: Json) -> int:
    """The job's, or 1 where it had none."""
    if reply["state"] in _ENDS:
        return _ENDS[reply["state"]]
    code, signal = reply.get("exit") or 0, reply.get("signal") or 0
    return 128 + signal if signal else code or 1


def _why(facts: Json) -> str:
    return f": {text.safe(facts['why'])}" if facts.get("why") else ""


def _print(facts: Json) -> None:
    """A job's output is its owner's own, colours and all; what an outsider wrote never comes this way."""
    if "output" in facts:
        sys.stdout.write(facts["output"])
        sys.stdout.flush()
    elif "silent" in facts:
        if sys.stderr.isatty():
            output.note(f"  it has printed nothing yet; it is {said(facts['silent'])}")
    elif "state" in facts:
        after_an_attempt = facts["state"] in ("lost", "preempted", "retry")  # it waits again, and that is why
        output.note(f"  {facts['state'] if after_an_attempt else said(facts['state'])}{_why(facts)}")
