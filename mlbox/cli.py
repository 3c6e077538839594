"""The command line: parse, pick a verb, map errors to exit codes. Verbs are imported only when called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mlbox import __version__, errors

EPILOG = """\
exit codes: 0 done; 1 failed; 2 wrong usage; 3 can't be had there (GPUs, image, space); 4 host not reached;
5 host not ready (python, engine, rights); 6 no such session; 7 did not come up; 70 a bug; 130 interrupted"""


class _Formatter(argparse.HelpFormatter):
    """argparse makes one for every option that it is told of, and one without a width asks shutil, a costly import."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
        except (ValueError, OSError):
            columns = 80
        super().__init__(prog, width=columns - 2)


class _RawFormatter(argparse.RawDescriptionHelpFormatter, _Formatter):
    pass


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **settings})

    def error(self, message: str) -> NoReturn:
        raise errors.Usage(message, f"{self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse takes `--engine-args --memory=1g` for two options, because mlbox has a --memory too."""
        words = list(sys.argv[1:] if args is None else args)
        own = words.index("--") if "--" in words else len(words)  # what follows is a job's command
        if "--engine-args" in words[: own - 1]:
            at = words.index("--engine-args")
            words[at : at + 2] = ["=".join(words[at : at + 2])]
        return super().parse_known_args(words, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mlbox", description="A GPU work place over nothing but SSH.", epilog=EPILOG,
        formatter_class=_RawFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"mlbox {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_session(verbs)
    status = verbs.add_parser("status", help="every host's GPUs, who holds them, and the sessions there")
    status.add_argument(
        "hosts", nargs="*", metavar="HOST", help="hosts to ask (default: those configured or seen before)"
    )
    _common(status)
    for name, words in QUEUE_VERBS.items():
        verbs.add_parser(name, help=words)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print facts as JSON")
    parser.add_argument("--ssh-config", metavar="F", help="ssh's configuration file (ssh -F)")
    parser.add_argument(
        "--root", metavar="DIR", help="mlbox's folder on the host (default: the user's data home there)"
    )


def _add_session(verbs: Any) -> None:
    parser = verbs.add_parser(
        "session", help="start an interactive session (Jupyter, VS Code, SSH) and attach to it",
        usage="mlbox session [HOST] [options]\n       mlbox session {list|info|attach|shutdown} …",
        description="Start a session on HOST (any name that `ssh` knows, or `local`), or join the one that runs there.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("host", nargs="?", metavar="HOST")
    what = parser.add_argument_group("the session")
    what.add_argument(
        "--gpus",
        metavar="N|NAME[:N]|UUIDS",
        help="how many, of which name, or exactly which (default: 1 if there is any)",
    )
    what.add_argument("--image", metavar="I", help="container image; without one the session runs in no container")
    what.add_argument("--name", help="its name (default: one is made up)")
    what.add_argument("--user-folder", metavar="DIR", help="the host's folder to work in (default: ~/mlbox)")
    what.add_argument("--packages", action="append", metavar="P", help="pip packages to add; comma or repeat")
    what.add_argument("--requirements", metavar="F", help="a pip requirements file to add")
    what.add_argument("--init-script", metavar="F", help="a script to run once, when the image's layer is built")
    what.add_argument(
        "--vscode-extensions", action="append", metavar="E", help="publisher.name or a .vsix file; comma or repeat"
    )
    for name, title in (("jupyter", "Jupyter Lab"), ("vscode", "VS Code")):
        what.add_argument(
            f"--{name}",
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"{title} (default: where it can be had)",
        )
    what.add_argument(
        "--env", action="append", metavar="K=V", help="a variable inside; repeat (K alone: its value here)"
    )
    what.add_argument("--mount", action="append", metavar="H:C[:ro]", help="a host folder inside the container; repeat")
    what.add_argument("--engine-args", metavar="'…'", help="more arguments for the container engine (safe ones)")
    what.add_argument(
        "--runtime",
        choices=("auto", "docker", "podman", "process"),
        help="container engine (default: what the host has), or process (no container)",
    )
    what.add_argument(
        "--user", choices=("uid", "root"), help="the user inside: yours (default), or the container's root"
    )
    what.add_argument("--jupyter-version", metavar="V", help="the JupyterLab to add")
    what.add_argument("--vscode-version", metavar="V", help="the code-server to add")
    what.add_argument("--sources", metavar="DIR", help="the host's folder with code-server archives and SHA256SUMS")
    what.add_argument(
        "--tunnel",
        choices=("forward", "reverse"),
        help="forward: this machine dials the host (default); reverse: the host dials out, and both meet (host add)",
    )
    what.add_argument(
        "--port",
        action="append",
        metavar="P|LOCAL:P",
        help="bring port P inside to this machine's loopback too; repeat",
    )
    what.add_argument(
        "--start-timeout", type=int, metavar="S", help="seconds a service may take to answer (default: 120)"
    )
    how = parser.add_argument_group("the command")
    how.add_argument("-f", "--file", metavar="session.yaml", help="settings from a file; flags win")
    how.add_argument(
        "--queue", metavar="Q", help="wait in the lab's queue for the first host that fits, instead of HOST"
    )
    how.add_argument("--new", action="store_true", help="start another even if one runs (as a new --name does)")
    how.add_argument("--fresh", action="store_true", help="ignore last time's answers for this host")
    how.add_argument("--detach", action="store_true", help="leave; its tunnels stay in the background")
    how.add_argument("--dry-run", action="store_true", help="say what would be started")
    how.add_argument("-y", "--yes", action="store_true", help="ask nothing")
    _common(parser)


def _session_verbs() -> argparse.ArgumentParser:
    parser = _Parser(prog="mlbox session", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    listing = verbs.add_parser("list", help="your running sessions")
    listing.add_argument("hosts", nargs="*", metavar="HOST")
    for name, text in (("info", "one session's facts"), ("attach", "join a session"), ("shutdown", "end a session")):
        one = verbs.add_parser(name, help=text)
        one.add_argument(
            "session", nargs="?", default="", metavar="NAME|ID", help="needed where you have more than one"
        )
        one.add_argument("--host", default="", help="where it runs (default: remembered, or all known hosts are asked)")
    attach = verbs.choices["attach"]
    attach.add_argument("--port", action="append", metavar="P|LOCAL:P", help="bring port P inside here too; repeat")
    attach.add_argument("--detach", action="store_true", help="leave again; the tunnels stay in the background")
    for sub in verbs.choices.values():
        _common(sub)
    return parser


SESSION_VERBS = ("list", "info", "attach", "shutdown")


# Each is a file in client/commands with `parser(make)` and `main(arguments)`, imported when it is called.
QUEUE_VERBS = {
    "init": "make a folder that hosts share a lab",
    "submit": "put a job in line",
    "run": "submit, and follow to the end",
    "jobs": "what runs, what waits and why, what ended",
    "show": "one job, whole",
    "logs": "a job's output",
    "cancel": "end jobs",
    "retry": "run an ended job once more",
    "move": "another queue, priority, top or bottom",
    "queue": "list, create, pause, resume, process",
    "cron": "install, show or remove the line that works the queue off",
    "image": "what is kept on the hosts for another time: list, prune",
    "host": "drain, resume or fence a host; add or remove one behind NAT",
    "open": "a session in an editor of this machine's, or in the browser",
    "ssh-config": "the line by which ssh knows sessions by name: install, remove, show",
    "tunnels": "list or stop the tunnels that this machine holds",
    "port": "add, list or remove more ports of a running session",
}


def _run_queue_verb(verb: str, argv: Sequence[str]) -> int:
    import importlib
    from functools import partial

    command = importlib.import_module(f"mlbox.client.commands.{verb.replace('-', '_')}")
    make = partial(_Parser, prog=f"mlbox {verb}", allow_abbrev=False)
    return int(command.main(command.parser(make).parse_args(argv)))


def _dispatch(argv: Sequence[str]) -> int:
    if list(argv) == ["--version"]:
        print(f"mlbox {__version__}")
        return 0
    if list(argv[:1]) == ["session"] and argv[1:2] and argv[1] in SESSION_VERBS:
        return _run_session_verb(_session_verbs().parse_args(argv[1:]))
    if argv and argv[0] in QUEUE_VERBS:
        return _run_queue_verb(argv[0], argv[1:])
    arguments = _parser().parse_args(argv)
    if arguments.verb == "session":
        return _run_session(arguments)
    from mlbox.client.commands import status

    return status.run(arguments.hosts, _config(arguments), arguments.json)


def _config(arguments: argparse.Namespace) -> Any:
    from dataclasses import replace

    from mlbox.client import state

    config = state.config()
    if arguments.ssh_config:
        config = replace(config, ssh_config=os.path.expanduser(arguments.ssh_config))
    return replace(config, root=arguments.root) if arguments.root else config


_PLAIN_SETTINGS = [
    "host",
    "name",
    "gpus",
    "image",
    "runtime",
    "user",
    "user_folder",
    "requirements",
    "init_script",
    "jupyter",
    "vscode",
    "jupyter_version",
    "vscode_version",
    "sources",
    "tunnel",
    "start_timeout",
]


def _run_session(arguments: argparse.Namespace) -> int:
    from mlbox.client import answers
    from mlbox.client.commands import session

    said = {name: getattr(arguments, name) for name in _PLAIN_SETTINGS}
    for name in ("packages", "vscode_extensions"):
        given = getattr(arguments, name)
        said[name] = tuple(item for word in given for item in answers.split_list(word)) if given is not None else None
    for name in ("env", "mount", "port"):
        given = getattr(arguments, name)
        said[name] = tuple(given) if given is not None else None
    given = arguments.engine_args
    said["engine_args"] = tuple(answers.split_words(given, "--engine-args")) if given is not None else None
    from_flags = answers.Answers(**said)
    from_file = answers.from_yaml(Path(arguments.file)) if arguments.file else answers.Answers()
    options = session.Options(
        arguments.new,
        arguments.detach,
        arguments.yes,
        arguments.json,
        arguments.dry_run,
        arguments.fresh,
        arguments.queue or "",
    )
    return session.run(from_flags.over(from_file), _config(arguments), options)


def _run_session_verb(arguments: argparse.Namespace) -> int:
    from mlbox.client.commands import attach, shutdown
    from mlbox.core import port

    config = _config(arguments)
    if arguments.verb == "list":
        return attach.list_all(arguments.hosts, config, arguments.json)
    if arguments.verb == "info":
        return attach.info(arguments.session, arguments.host, config, arguments.json)
    if arguments.verb == "attach":
        ports = [port.parse(word) for word in arguments.port or ()]
        return attach.run(arguments.session, arguments.host, config, ports, arguments.detach, arguments.json)
    return shutdown.run(arguments.session, arguments.host, config, arguments.json)


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _dispatch(given)
        finally:
            sys.stdout.flush()  # here, where a reader that had enough can still be told from a bug
    except errors.MlboxError as error:
        from mlbox.client import output

        output.failure(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output had enough
        return 0
    except Exception as error:  # a bug: keep what is needed to report it
        return _report_bug(error, given)


def _report_bug(error: Exception, argv: Sequence[str]) -> int:
    import platform
    import traceback

    from mlbox.client import output, state

    verb = " ".join(argv[:1])  # not the rest: --env values are secrets
    where = f"Python {platform.python_version()}, {platform.platform()}"
    report = f"mlbox {__version__}, {where}, verb: {verb}\n{traceback.format_exc()}"
    path = state.home() / "bug.txt"
    try:
        state.write(path, report)
    except OSError:
        print(report, file=sys.stderr)
    output.failure(f"this is a bug in mlbox: {type(error).__name__}: {error}", f"report it with {path}")
    return 70
