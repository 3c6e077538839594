"""mlbox submit: put a job in line. mlbox run: and follow it."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from mlbox import errors
from mlbox.client import answers, asked, lab, options, output, state, words
from mlbox.client.remote import Host
from mlbox.core import ids, text
from mlbox.core.job import REASONS, JobSpec, check_folder
from mlbox.core.log import said
from mlbox.core.resources import parse_duration, parse_memory
from mlbox.core.schedule import After

Json = dict[str, Any]


_EXAMPLES = """\
examples:
  mlbox submit --gpus 1 --image pytorch/pytorch -- python train.py --lr 3e-4
  mlbox submit --array 20%4 --time-limit 4h -- sh -c 'python train.py --seed $MLBOX_ARRAY_INDEX'
  mlbox submit --after 01K… --gpus A100:2 --gpu-memory 40G -- torchrun train.py
  mlbox submit -f job.yaml --queue night"""


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        usage="mlbox submit [options] -- COMMAND …",
        epilog=_EXAMPLES,
        description="Put a job in line: it runs once, on the first host that fits, in the code as it is now.",
    )
    what = made.add_argument_group("the job")
    what.add_argument("-f", "--file", metavar="job.yaml", help="all of these, and COMMAND, from a file; flags win")
    options.work(what, "job")
    what.add_argument(
        "--code", metavar="FOLDER", help="the folder to send (default: this one); --no-code sends nothing"
    )
    what.add_argument("--no-code", dest="code", action="store_const", const="")
    what.add_argument("--folder", metavar="DIR", help="run in this folder of the host's, as it is, and send no code")
    need = made.add_argument_group("what it needs")
    need.add_argument("--gpus", metavar="N|NAME[,NAME][:N]|UUIDS", help="GPUs (default: 1 if the host has any)")
    options.needs(need)
    policy = made.add_argument_group("when and how")
    policy.add_argument("--queue", metavar="Q", help="its queue (default: default)")
    options.priority(policy)
    policy.add_argument(
        "--after",
        action="append",
        metavar="ID|NAME",
        help="wait until that job (or all of that array) has succeeded; repeat",
    )
    policy.add_argument("--after-any", action="append", metavar="ID|NAME", help="wait until it has ended; repeat")
    policy.add_argument("--array", metavar="N[%M]", help="N jobs that differ in $MLBOX_ARRAY_INDEX; M at once")
    policy.add_argument("--retries", type=int, metavar="N", help="try again after a failure (default: 0)")
    policy.add_argument("--retry-on", metavar="R,…", help="only after these: " + ", ".join(REASONS))
    policy.add_argument("--backoff", metavar="10s", help="wait before the second attempt; doubles with each")
    policy.add_argument("--grace", metavar="10s", help="between SIGTERM and SIGKILL")
    policy.add_argument("--output-limit", metavar="1G", help="of output kept per attempt (default: the queue's, or 1G)")
    policy.add_argument("--on-host-loss", choices=("requeue", "hold"), help="a host that was lost: run again, or fail")
    policy.add_argument("--max-losses", type=int, metavar="N", help="fail when it was lost so often (default: 3)")
    policy.add_argument("--if-absent", action="store_true", help="only if none of yours of that --name runs or waits")
    options.dry_run(policy)
    made.add_argument("command", nargs="*", metavar="COMMAND")
    options.queue(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    complete(arguments)
    settings = options.config(arguments)
    prepared = prepare(arguments, settings)
    if arguments.dry_run:
        return foretell(prepared, arguments.json)
    host = lab.entry(arguments, settings)
    with lab.submitting():
        reply = send(host, prepared, settings)
    if arguments.json:
        output.facts(reply)
    else:
        told(reply)
    return 0


def complete(arguments: argparse.Namespace) -> None:
    """What the flags leave open comes from job.yaml, where there is one. Raises Usage."""
    if arguments.file is not None:
        from mlbox.client import job_file

        job_file.fill(arguments, parser(argparse.ArgumentParser))


class Prepared(NamedTuple):
    """A submission, before any host was asked."""

    spec: JobSpec
    array: int  # of how many jobs; 0: none
    folder: str  # whose code goes along; empty: none
    after: tuple[After, ...]  # others to wait for, by their names, which only a host can look up
    if_absent: bool  # of that name


def prepare(arguments: argparse.Namespace, settings: state.Config) -> Prepared:
    """What was asked for. Raises Usage."""
    try:
        return _prepared(arguments, settings)
    except errors.Usage as error:
        if not hasattr(arguments, "taken"):
            raise
        from mlbox.client import job_file

        raise job_file.named(error, arguments, lambda alone: _prepared(alone, settings)) from None


def _prepared(arguments: argparse.Namespace, settings: state.Config) -> Prepared:
    command = tuple(arguments.command)
    if not command or not command[0].strip():
        raise errors.Usage("what is to be run?", "mlbox submit [options] -- COMMAND, or `command:` in job.yaml")
    count, limit = _array(arguments.array)
    after = (*_after(arguments.after, "ok"), *_after(arguments.after_any, "any"))
    spec = JobSpec(
        command=command, work=_work(arguments, settings), resources=options.resources(arguments), array_limit=limit,
        after=tuple(one for one in after if ids.is_ulid(one.job)), folder=arguments.folder or "", **_policy(arguments),
    )  # fmt: skip
    check_folder(spec.folder)
    if spec.folder and arguments.code:
        raise errors.Usage("either --code, which is sent, or --folder, which is there", "one of them")
    folder = "" if spec.folder else "." if arguments.code is None else arguments.code
    _no_file(command[0], folder)
    if folder:
        from mlbox.client import code

        code.check(folder)
    if arguments.if_absent and not spec.name:
        raise errors.Usage("--if-absent: of which name?", "mlbox submit --if-absent --name NAME … -- COMMAND …")
    named = tuple(one for one in after if not ids.is_ulid(one.job))
    return Prepared(spec, count, folder, named, bool(arguments.if_absent))


def _no_file(word: str, code: str) -> None:
    """`mlbox submit train.py`, as if to sbatch: hosts look for a command without / in their PATH. Raises Usage."""
    stem, dot, kind = word.rpartition(".")
    if code and stem and dot and "/" not in word and os.path.isfile(os.path.join(os.path.expanduser(code), word)):
        program = {"py": "python3 ", "sh": "sh "}.get(kind, "./")
        hint = f"mlbox submit -f {word}" if kind in ("yaml", "yml") else f"mlbox submit … -- {program}{word}"
        raise errors.Usage(f"{text.safe(word)} is a file here, and no command", text.safe(hint))


def _work(arguments: argparse.Namespace, settings: state.Config) -> Any:
    given = {name: getattr(arguments, name) for name in ("name", "image", "runtime", "user", "requirements",
                                                         "init_script")}  # fmt: skip
    packages = [item for word in arguments.packages or () for item in words.split_list(word)]
    asked = answers.Answers(
        **given, packages=tuple(packages), env=tuple(arguments.env or ()), mount=tuple(arguments.mount or ()),
        engine_args=tuple(words.split_words(arguments.engine_args or "", "--engine-args")), jupyter=False,
        vscode=False,
    )  # fmt: skip
    image = settings.image if given["image"] is None and given["runtime"] != "process" else None
    return answers.to_spec(asked.over(answers.Answers(image=image or None)), ())


def _policy(arguments: argparse.Namespace) -> Json:
    said = {
        "queue": arguments.queue, "priority": arguments.priority, "retries": arguments.retries,
        "retry_on": tuple(words.split_list(arguments.retry_on)) if arguments.retry_on else None,
        "backoff": parse_duration(arguments.backoff) if arguments.backoff else None,
        "grace": parse_duration(arguments.grace) if arguments.grace else None,
        "output_limit": parse_memory(arguments.output_limit) if arguments.output_limit else None,
        "on_host_loss": arguments.on_host_loss, "max_losses": arguments.max_losses,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def _array(value: str | None) -> tuple[int, int]:
    """Of how many jobs, and how many at once; 0: no array, no limit. Raises Usage."""
    if not value:
        return 0, 0
    number, _, limit = value.partition("%")
    if not (number.isdecimal() and int(number)) or ("%" in value and not (limit.isdecimal() and int(limit))):
        raise errors.Usage(
            f"--array {text.safe(value)} can't be read", "write --array 20 (for 0 to 19), or 20%4 for 4 at once"
        )
    return int(number), int(limit or 0)


def _after(jobs: Sequence[str] | None, end: str) -> tuple[After, ...]:
    if "" in (jobs or ()):
        raise errors.Usage("'' is no job to wait for", "--after ID or NAME, as mlbox jobs shows them")
    return tuple(After(job.upper() if ids.is_ulid(job.upper()) else job, end) for job in jobs or ())


def send(host: Host, prepared: Prepared, settings: state.Config) -> Json:
    """The reply to a submission, and the other hosts' when this one could not start it."""
    spec, count, folder, after, if_absent = prepared
    args: Json = {"array": count, "after": [one.to_wire() for one in after], "if_absent": if_absent}
    if folder:
        from mlbox.client import code

        archive, seen = code.pack(folder)
        args["code"], spec = archive, code.with_provenance(spec, seen)
    args["spec"] = spec.to_wire()
    reply = host.call("submit", args)
    started = lab.start_elsewhere(reply["waits"], reply["elsewhere"], settings)
    reply["on"] = {**dict.fromkeys(reply["started"], reply["host"]), **started}
    reply["started"] += started
    state.remember_seen(reply["jobs"])
    return reply


def told(reply: Json) -> None:
    lab.trouble(reply)
    if reply.get("there"):
        job = reply["jobs"][0]
        print(f"{output.bold(job['name'])}  {job['id']}  is there already: {said(reply['there'])}")
        return
    for index, job in enumerate(reply["jobs"][:5]):
        name = job["name"] + (f"[{index}]" if len(reply["jobs"]) > 1 else "")  # as mlbox jobs shows it
        where = f"started on {text.safe(reply['on'][job['id']])}" if job["id"] in reply["on"] else "in line"
        waits = reply["waits"].get(job["id"], "")
        print(f"{output.bold(name)}  {job['id']}  {where}" + (f": {text.safe(waits)}" if waits else ""))
    if len(reply["jobs"]) > 5:
        print(f"… and {len(reply['jobs']) - 5} more; {len(reply['started'])} started")
    if reply["waits"]:
        lab.unattended(reply)


def foretell(prepared: Prepared, as_json: bool) -> int:
    spec, count, folder, after, _ = prepared
    wire, named = spec.without_secrets().to_wire(), [one.to_wire() for one in after]
    if as_json:
        output.facts({"spec": wire, "array": count, "code": folder, "after": named}, dry=True)
        return 0
    print(f"would submit: {text.safe(shlex.join(spec.command))}")
    wire["after"] = [*wire["after"], *named]
    asked.foretell(wire, queue=spec.queue, array=count, code=folder)
    return 0
