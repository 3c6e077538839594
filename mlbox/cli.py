"""The command line: parse, pick a verb, map errors to exit codes. Verbs are imported only when called."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from mlbox import __version__, errors

HELP = """\
usage: mlbox COMMAND …

A GPU work place over nothing but SSH.

{groups}
examples:
  mlbox session gpu1 --gpus 1 --image pytorch/pytorch
  mlbox status gpu1 gpu2
  mlbox submit --gpus 2 -- python train.py --lr 3e-4

more:
  mlbox COMMAND --help    a command's options and arguments
  mlbox --version         which mlbox this is

exit codes: 0 done; 1 failed; 2 wrong usage; 3 can't be had there (GPUs, image,
space); 4 host not reached; 5 host not ready (python, engine, rights); 6 no
such session, job, queue or host; 7 did not come up; 70 a bug; 130 interrupted"""

# Each is a file in client/commands with `parser(make)` and `main(arguments)`, imported when it is called.
GROUPS = {
    "sessions": {
        "session": "start one, or join it; list, info, share, unshare, shutdown",
        "attach": "join one: yours from another laptop, or a colleague's",
        "ssh": "a shell in a session, or one command",
        "open": "a session in an editor of this machine's, or in the browser",
        "port": "add, list or remove more ports of a running session",
        "tunnels": "list or stop the tunnels that this machine holds",
        "ssh-config": "the line by which ssh knows sessions: install, remove, show",
    },
    "jobs": {
        "submit": "put a job in line",
        "run": "submit, and follow to the end",
        "jobs": "what runs, what waits and why, what ended; prune",
        "show": "one job, whole",
        "logs": "a job's output",
        "cancel": "end jobs",
        "retry": "run an ended job once more",
        "move": "another queue, priority, top or bottom",
    },
    "hosts and queues": {
        "status": "every host's GPUs, who holds them, and the sessions there",
        "top": "the same and why your jobs wait, kept up to date",
        "init": "make a folder that hosts share a lab",
        "queue": "list, create, pause, resume, process",
        "cron": "install, show or remove the line that works the queue off",
        "host": "drain, resume or fence a host; add or remove one behind NAT",
        "image": "what is kept on the hosts for another time: list, prune",
    },
    "this program": {
        "doctor": "what is wrong here and on hosts, and how to mend it",
        "completion": "what completes its commands in bash, zsh or fish",
    },
}
VERBS = {name: words for group in GROUPS.values() for name, words in group.items()}
# mlbox session VERB, mlbox jobs VERB: a file each, too
SESSION_VERBS = {
    "list": "your running sessions",
    "info": "one session's facts",
    "attach": "join a session",
    "shutdown": "end a session",
    "share": "let a colleague join a session",
    "unshare": "let a colleague join no longer",
}
BELOW = {"session": SESSION_VERBS, "jobs": {"prune": "remove those that ended long ago"}}


_NAMING = ("host", "root", "name", "queue", "on", "gpus", "after", "after_any", "older_than")  # options
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # as in `mlbox jobs >/dev/full`
_CLOSED = (*_UNWRITABLE, errno.EROFS, errno.EACCES, errno.ENOTDIR)  # as where HOME is a file


class _Formatter(argparse.HelpFormatter):
    """argparse makes one for every option that it is told of, and one without a width asks shutil, a costly import."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
        except (ValueError, OSError):
            columns = 80
        super().__init__(prog, width=columns - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """What is written in lines (examples) stays in them."""
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **given: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Formatter, **given})

    def error(self, message: str) -> NoReturn:
        what = next((action for action in self._actions if action.metavar == "WHAT"), None)
        if what is not None and message.endswith(": WHAT"):
            hint = f"one of: {', '.join(_choices(what))}\n{self._help()}"
            raise errors.Usage(f"what is `{self.prog}` to do?", hint)
        missing = re.fullmatch("the following arguments are required: (.*)", message)
        if missing:
            from mlbox.client import habits

            raise errors.Usage(f"`{self.prog}` needs {missing[1]}", habits.shown(missing[1]) + self._help())
        number = re.fullmatch(r"argument (\S+): invalid int value: (.*)", message)
        raise errors.Usage(f"{number[1]} takes a whole number, not {number[2]}" if number else message, self._help())

    def _help(self) -> str:
        return f"{self.prog} --help"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = _choices(action)
            option = "/".join(action.option_strings)
            what = f"{option} can't be {value}" if option else f"there is no `{self.prog} {value}`"
            meant = _meant("" if option else self.prog, str(value), known)
            raise errors.Usage(what, meant + "one of: " + ", ".join(known))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """An empty name is a variable that is not set: it means neither the only session nor the usual ROOT."""
        named = action.dest in _NAMING if action.option_strings else action.dest not in ("command", "words")
        if "" in arg_strings and named and not isinstance(action, argparse._SubParsersAction):
            what = "/".join(action.option_strings) or action.metavar or action.dest
            raise errors.Usage(f"{what} is empty", "is it a variable that is not set? leave it out, or say which")
        return super()._get_values(action, arg_strings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Raises Usage where some are not known. argparse takes `--engine-args --memory=1g` for two options, because
        mlbox has a --memory too."""
        words = list(sys.argv[1:] if args is None else args)
        own = words.index("--") if "--" in words else len(words)  # what follows is a job's command
        if "--engine-args" in self._option_string_actions and "--engine-args" in words[: own - 1]:
            at = words.index("--engine-args")
            words[at : at + 2] = ["=".join(words[at : at + 2])]
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            raise errors.Usage(f"unrecognized arguments: {' '.join(unknown)}", self._instead(unknown[0]) + self._help())
        return found, unknown

    def _instead(self, unknown: str) -> str:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        below = BELOW.get(self.prog.partition(" ")[2], ())
        known = [*below, *options] if unknown.startswith("-") else below
        meant = _meant(self.prog, unknown.partition("=")[0], known)
        if unknown == "--":
            meant = "a word before -- was taken for the command: only options go there\n"
        elif any(action.dest == "command" for action in self._actions):
            meant += f"a command with options goes behind --: {self.prog} … -- COMMAND …\n"
        return meant


def _choices(action: argparse.Action) -> list[str]:
    """Those that are for people: a command that only programs call has no words in --help."""
    if isinstance(action, argparse._SubParsersAction):
        return [one.dest for one in action._choices_actions]
    return [str(choice) for choice in action.choices or ()]


def _meant(prog: str, word: str, known: Iterable[str]) -> str:
    from mlbox.client import habits  # only a mistake pays for its import

    return habits.meant(prog, word, known)


def _help() -> str:
    groups = (
        f"{title}:\n" + "".join(f"  {name:<12}{words}\n" for name, words in group.items())
        for title, group in GROUPS.items()
    )
    return HELP.format(groups="\n".join(groups))


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """Of a command: `[verb]`, or `["session", verb]` and such (BELOW)."""
    make = partial(_Parser, prog=" ".join(("mlbox", *words)))
    made: argparse.ArgumentParser = _command(words[-1]).parser(make)
    return made


def _command(verb: str) -> Any:
    return importlib.import_module(f"mlbox.client.commands.{verb.replace('-', '_')}")


def _dispatch(argv: Sequence[str]) -> int:
    if argv[:1] == ["help"]:  # mlbox help submit
        argv = [*argv[1:], "--help"]
    if argv[:2] == ["completion", "words"]:
        return _complete(argv[2:])
    if argv and argv[0] in VERBS:
        words = _words(argv)
        return _call(argv[:words], argv[words:])
    if argv[:1] == ["--version"]:
        print(f"mlbox {__version__}")
        return 0
    if argv[:1] in (["-h"], ["--help"]):
        print(_help())
        return 0
    if argv:
        what = "option" if argv[0].startswith("-") else "command"
        raise errors.Usage(f"there is no {what} `{argv[0]}`", _meant("mlbox", argv[0], VERBS) + "mlbox --help")
    print(_help(), file=sys.stderr)
    return errors.Usage.exit_code


def _words(argv: Sequence[str]) -> int:
    """How many of these name the command."""
    return 2 if argv[1:2] and argv[1] in BELOW.get(argv[0], ()) else 1


def _call(words: Sequence[str], argv: Sequence[str]) -> int:
    try:
        return int(_command(words[-1]).main(parser_of(words).parse_args(argv)))
    except errors.Unreachable as error:
        near = _meant("mlbox session", argv[0], SESSION_VERBS) if list(words) == ["session"] and argv else ""
        raise errors.Unreachable(error.message, (near + error.hint) if near else error.hint) from None


def _complete(argv: Sequence[str]) -> int:
    """`words SHELL WORD… CURRENT`: what the last of them may become, for the scripts of `mlbox completion`."""
    from mlbox.client import completion

    bash = argv[:1] == ["bash"]
    words, fixed = completion.rejoined(argv[1:]) if bash else (list(argv[1:]), "")
    *before, current = words or [""]
    verbs = BELOW.get(before[0], {}) if len(before) == 1 else {} if before else {**VERBS, "--help": "", "--version": ""}
    found = [(verb, told) for verb, told in verbs.items() if verb.startswith(current)]
    verb = before[: _words(before)] if before else []
    if verb and verb[0] in VERBS:
        found += completion.candidates(parser_of(verb), before[len(verb) :], current, completion.known(verb[0]))
    for word, told in found:
        print(word[len(fixed) :] if bash and word else f"{word}\t{told}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    _mend_streams()
    try:
        try:
            return _dispatch(given)
        finally:
            sys.stdout.flush()  # here, where a reader that had enough can still be told from a bug
    except errors.Bug as error:  # of a process of ours elsewhere
        return _report_bug(error.message, error.hint, given)
    except errors.MlboxError as error:
        from mlbox.client import output

        output.failure(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output had enough
        return 0
    except Exception as error:  # nobody is shown a traceback: a bug's is in a file that is named
        if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            print(f"mlbox: the output can't be written: {error.strerror}", file=sys.stderr)
            return 1
        if isinstance(error, OSError) and error.filename and error.errno in _CLOSED:
            from mlbox.client import output

            output.failure(
                f"{error.filename}: {error.strerror}", "is there room on this machine, and may you write there?"
            )
            return errors.HostUnready.exit_code
        import traceback

        return _report_bug(f"a bug in mlbox: {type(error).__name__}: {error}", traceback.format_exc(), given)


def _mend_streams() -> None:
    """One that is closed (`>&-`) leads nowhere; in one that has no Unicode (LC_ALL=en_US) `·` is a question mark."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _report_bug(what: str, trace: str, argv: Sequence[str]) -> int:
    from mlbox.client import bug, output

    output.failure(f"this is {what}", bug.keep(trace, " ".join(argv[:1])))
    return errors.Bug.exit_code
