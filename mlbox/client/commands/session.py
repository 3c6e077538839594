"""mlbox session: what is asked for on the command line; session_start.py and session_queue.py do it.

Its --help is as quick as that of mlbox itself: what only a start needs is imported when there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlbox import errors
from mlbox.client import options

if TYPE_CHECKING:
    from mlbox.client.answers import Answers

_IN_LINE, _LISTS_IN_LINE = ("priority", "gpu_memory", "gpu_share", "cpus", "memory", "time_limit"), ("on", "label")
_AS_SAID = (
    *("host", "name", "gpus", "image", "runtime", "user", "user_folder", "requirements", "init_script", "jupyter"),
    *("vscode", "jupyter_version", "vscode_version", "sources", "tunnel", "start_timeout", "queue", *_IN_LINE),
)


_EXAMPLES = """\
other commands: mlbox session list, info, attach, share, unshare, shutdown (each with --help)

examples:
  mlbox session gpu1 --gpus 2 --image pytorch/pytorch
  mlbox session gpu1 --gpus A100:1 --packages pandas,einops --port 6006
  mlbox session --queue default --gpu-memory 40G --image pytorch/pytorch
  mlbox session local"""


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        usage="mlbox session [HOST] [options]\n       mlbox session {list|info|attach|shutdown|share|unshare} …",
        epilog=_EXAMPLES,
        description="Start a session on HOST (any name that `ssh` knows, or `local`), or join the one that runs there.",
    )
    made.add_argument("host", nargs="?", metavar="HOST")
    _what(made.add_argument_group("the session"))
    _line(made.add_argument_group("in a queue"))
    _how(made.add_argument_group("the command"))
    options.common(made)
    return made


def _what(group: Any) -> None:
    group.add_argument(
        "--gpus",
        metavar="N|NAME[,NAME][:N]|UUIDS",
        help="how many, of which name (the first is the best), or exactly which (default: 1 if there is any)",
    )
    options.work(group, "session")
    group.add_argument("--user-folder", metavar="DIR", help="the host's folder to work in (default: ~/mlbox)")
    group.add_argument(
        "--vscode-extensions", action="append", metavar="E", help="publisher.name or a .vsix file; comma or repeat"
    )
    for name, title in (("jupyter", "Jupyter Lab"), ("vscode", "VS Code")):
        group.add_argument(
            f"--{name}",
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"{title} (default: where it can be had)",
        )
    group.add_argument("--jupyter-version", metavar="V", help="the JupyterLab to add")
    group.add_argument("--vscode-version", metavar="V", help="the code-server to add: V, or V@sha256:…")
    group.add_argument(
        "--sources", metavar="DIR", help="the host's folder with code-server archives, wheels and SHA256SUMS"
    )
    group.add_argument(
        "--tunnel",
        choices=("forward", "reverse"),
        help="forward: this machine dials the host (default); reverse: the host dials out, and both meet (host add)",
    )
    group.add_argument(
        "--port",
        action="append",
        metavar="P|LOCAL:P",
        help="bring port P inside to this machine's loopback too; repeat",
    )
    group.add_argument(
        "--start-timeout", type=int, metavar="S", help="seconds a service may take to answer (default: 120)"
    )


def _line(group: Any) -> None:
    group.add_argument(
        "--queue", metavar="Q", help="wait in the lab's queue for the first host that fits, instead of HOST"
    )
    options.needs(group)
    options.priority(group)


def _how(group: Any) -> None:
    group.add_argument("-f", "--file", metavar="session.yaml", help="settings from a file; flags win")
    group.add_argument("--new", action="store_true", help="start another even if one runs (as a new --name does)")
    group.add_argument("--fresh", action="store_true", help="ignore last time's answers for this host")
    group.add_argument("--no-remember", action="store_true", help="keep no answers of this time for the next")
    group.add_argument("--detach", action="store_true", help="leave; its tunnels stay in the background")
    options.dry_run(group)
    options.yes(group)


def main(arguments: argparse.Namespace) -> int:
    from mlbox.client import answers

    from_file = answers.from_yaml(Path(arguments.file)) if arguments.file is not None else answers.Answers()
    try:
        return _run(arguments, from_file)
    except errors.Usage as error:
        raise answers.named(error, arguments.file, from_file) from None


def _run(arguments: argparse.Namespace, from_file: Answers) -> int:
    from dataclasses import replace

    from mlbox.client.commands import session_queue, session_start

    said = _said(arguments)
    if said.queue:
        from_file = replace(from_file, host=None)
    elif said.host:
        from_file = replace(from_file, **dict.fromkeys(("queue", *_IN_LINE, *_LISTS_IN_LINE)))
    said = said.over(from_file)
    how = session_start.Options(
        new=arguments.new, detach=arguments.detach, yes=arguments.yes, json=arguments.json,
        dry_run=arguments.dry_run, fresh=arguments.fresh, remember=not arguments.no_remember,
    )  # fmt: skip
    config = options.config(arguments)
    if said.queue:
        return session_queue.run(said, said.queue, config, how)
    unmeant = [
        f"--{name.replace('_', '-')}" for name in (*_IN_LINE, *_LISTS_IN_LINE) if getattr(said, name) is not None
    ]
    if unmeant:
        raise errors.Usage(
            f"{', '.join(unmeant)}: only a session that waits in a queue asks for that",
            "add --queue Q; limits of a container go into --engine-args",
        )
    return session_start.run(said, config, how)


def _said(arguments: argparse.Namespace) -> Answers:
    """What the flags say; None where they say nothing."""
    from mlbox.client import answers, words

    said = {name: getattr(arguments, name) for name in _AS_SAID}
    for name in ("packages", "vscode_extensions"):
        given = getattr(arguments, name)
        said[name] = tuple(item for word in given for item in words.split_list(word)) if given is not None else None
    for name in ("env", "mount", "port", *_LISTS_IN_LINE):
        given = getattr(arguments, name)
        said[name] = tuple(given) if given is not None else None
    given = arguments.engine_args
    said["engine_args"] = tuple(words.split_words(given, "--engine-args")) if given is not None else None
    return answers.Answers(**said)
