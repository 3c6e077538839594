"""mlbox show: one job, whole."""

from __future__ import annotations

import argparse
import datetime
import shlex
from typing import Any

from mlbox.client import asked as words
from mlbox.client import lab, options, output
from mlbox.core import text
from mlbox.core.log import TERMINAL, WAITING, said

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox show train\n  mlbox show 'sweep[3]'",
        description="One job: what was asked for, what happened, why it waits.",
    )
    options.job(made)
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    reply = lab.entry(arguments, options.config(arguments)).call("show", {"job": arguments.job})
    if arguments.json:
        output.facts(reply)
        return 0
    job, spec = reply["job"], reply["spec"]
    print(f"{output.bold(lab.title(job))}  {job['id']}  {said(job['state'])}" + (
        f" (attempt {job['attempt']})" if job["attempt"] > 1 else ""))  # fmt: skip
    work = spec["work"]
    silent = f", silent for {text.duration(reply['silent'])}" if reply["silent"] else ""
    facts = {
        "command": shlex.join(spec["command"]), "image": work["image"] or "none (process)", "queue": job["queue"],
        "host": job["host"] + silent, "gpus": ", ".join(job["gpus"]), "asked for": _resources(spec["resources"]),
        "code": ", ".join(f"{k} {v}" for k, v in spec["provenance"].items() if k in ("repository", "commit")),
        "folder": reply["folder"], "doing": reply["progress"],
    }  # fmt: skip
    for key, value in facts.items():
        if value:
            print(f"  {key + ':':<11}{text.safe(str(value))}")
    for host, why in reply["waits"].items():
        if why:
            print(f"  in line:   {text.safe(why)}" + (f"  [{text.safe(host)}]" if host else ""))
    began: Any = None
    for event in reply["events"]:
        ran = _ran(began, event) if event.get("event") in TERMINAL | WAITING else ""
        print(f"  {_when(event)}  {text.safe(str(event.get('event')))}{_detail(event)}{ran}")
        began = event.get("at") if event.get("event") == "started" else None if ran else began
    return 0


def _resources(asked: Json) -> str:
    told = ((name, words.said(name, value)) for name, value in asked.items() if value)
    return ", ".join(f"{name} {value}" for name, value in told if (name, value) != ("gpus", "auto"))


def _when(event: Json) -> str:
    at = event.get("at")
    if not isinstance(at, (int, float)):
        return " " * 19
    return datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def _detail(event: Json) -> str:
    kept = [event.get("why"), event.get("host") and f"on {event['host']}", event.get("for")]
    words = ", ".join(text.safe(str(word)).replace("\n", " ") for word in kept if word)
    return f": {words}" if words else ""


def _ran(began: Any, ended: Json) -> str:
    """How long that was, if the host's clock was not set meanwhile."""
    at = ended.get("at")
    known = isinstance(began, (int, float)) and isinstance(at, (int, float)) and at >= began
    return f" (ran {text.duration(at - began)})" if known else ""
