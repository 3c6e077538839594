"""mlbox run: submit, and follow to the end; its exit code is the job's."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox import errors
from mlbox.client import lab, options, output
from mlbox.client.commands import logs, submit


def parser(make: Any) -> argparse.ArgumentParser:
    made = submit.parser(make)
    made.epilog = "example:\n  mlbox run --gpus 1 --image pytorch/pytorch -- python train.py"
    made.usage = "mlbox run [options] -- COMMAND …"
    made.description = "Submit a job and follow it: its output, and its exit code. ^C leaves it running."
    return made


def main(arguments: argparse.Namespace) -> int:
    submit.complete(arguments)
    settings = options.config(arguments)
    prepared = submit.prepare(arguments, settings)
    if prepared.array > 1:
        raise errors.Usage("run follows one job", "--array 1 is the first alone; or mlbox submit, and mlbox logs -f ID")
    if arguments.dry_run:
        return submit.foretell(prepared, arguments.json)
    host = lab.entry(arguments, settings)
    with lab.submitting():
        reply = submit.send(host, prepared, settings)
    job = reply["jobs"][0]
    try:
        if arguments.json:
            found = logs.collect(host, job["id"], follow=True)
            output.facts({**job, **found})
            return logs.exit_code(found)
        submit.told(reply)
        return logs.follow(host, job["id"])
    except KeyboardInterrupt:
        output.note(f"\n  {job['name']} goes on (mlbox logs -f {job['id']}; mlbox cancel {job['id']})")
        raise
