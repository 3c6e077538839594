"""The command line: parse, pick a verb, map errors to exit codes. Verbs are imported only when called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from mlbox import __version__, errors

EPILOG = """\
exit codes: 0 done; 1 failed; 2 wrong usage; 3 can't be had there (GPUs, image, space); 4 host not reached;
5 host not ready (python, engine, rights); 6 no such session; 7 did not come up; 70 a bug; 130 interrupted"""


# Each is a file in client/commands with `parser(make)` and `main(arguments)`, imported when it is called.
VERBS = {
    "session": "start an interactive session (Jupyter, VS Code, SSH) and attach to it",
    "attach": "join a session: yours from another laptop, or a colleague's who shares it",
    "status": "every host's GPUs, who holds them, and the sessions there",
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
SESSION_VERBS = ("list", "info", "attach", "shutdown", "share", "unshare")  # mlbox session VERB: a file each, too


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
    """Of the command line as a whole: its help, and what is wrong where no verb is called."""
    parser = _Parser(
        prog="mlbox", description="A GPU work place over nothing but SSH.", epilog=EPILOG,
        formatter_class=_RawFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"mlbox {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, words in VERBS.items():
        verbs.add_parser(name, help=words)
    return parser


def _dispatch(argv: Sequence[str]) -> int:
    if argv[:1] == ["session"] and argv[1:2] and argv[1] in SESSION_VERBS:
        return _call(argv[1], f"mlbox session {argv[1]}", argv[2:])
    if argv and argv[0] in VERBS:
        return _call(argv[0], f"mlbox {argv[0]}", argv[1:])
    _parser().parse_args(argv)
    raise errors.Usage("which command?", "mlbox --help")  # behind a lone `--`


def _call(verb: str, prog: str, argv: Sequence[str]) -> int:
    command = importlib.import_module(f"mlbox.client.commands.{verb.replace('-', '_')}")
    make = partial(_Parser, prog=prog, allow_abbrev=False)
    return int(command.main(command.parser(make).parse_args(argv)))


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
