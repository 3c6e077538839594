"""job.yaml: the options of `mlbox submit` under their own names, and the command.

The command's own parser says what there is, so a new option is a new setting. What a flag says wins; what the file
says is put in as if it had been typed.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any, Callable

from mlbox import errors
from mlbox.client import yaml_file

_OF_THE_CALL = ("help", "file", "dry_run", "if_absent", "json", "host", "root", "ssh_config")
_ONE_OF = {"code": "folder", "folder": "code"}  # a flag for one is a word against the file's other


def fill(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Take from `arguments.file` what the flags leave open. Raises Usage."""
    path, taken = Path(arguments.file), dict[str, Any]()
    said = yaml_file.read(path, kinds(parser), "mlbox submit --help")
    if arguments.runtime == "process":
        said.pop("image", None)
    elif arguments.image and said.get("runtime") == "process":
        del said["runtime"]
    flags = {name: value for name, value in vars(arguments).items() if value not in (None, [])}
    for name, value in said.items():
        if name not in flags and not flags.get(_ONE_OF.get(name, "")):
            setattr(arguments, name, value)
            taken[name] = value
    arguments.file, arguments.taken = None, (path, taken)


def named(error: errors.Usage, arguments: argparse.Namespace, prepare: Callable[[Any], object]) -> errors.Usage:
    """The error, with the file's name where it is about what the file says. `prepare`: what refuses arguments."""

    def alone(name: str, value: Any) -> None:
        prepare(argparse.Namespace(**{**dict.fromkeys(vars(arguments)), "command": ["true"], name: value}))

    path, taken = arguments.taken
    try:
        prepare(argparse.Namespace(**{**dict.fromkeys(vars(arguments)), "command": ["true"]}))
    except errors.Usage as same:  # such as a home folder as the code: whatever the file says
        if same.message == error.message:
            return error
    return yaml_file.named(error, path, taken, alone)


def kinds(parser: argparse.ArgumentParser) -> dict[str, yaml_file.Kind]:
    found = {action.dest: _kind(action) for action in parser._actions if action.dest not in _OF_THE_CALL}
    return {
        **found, "packages": yaml_file.items, "env": yaml_file.variables, "requirements": yaml_file.file,
        "init_script": yaml_file.file, "code": _code, "command": _command, "engine_args": _engine_args,
        "retry_on": _retry_on, **dict.fromkeys(("on", "label", "after", "after_any"), yaml_file.items),
    }  # fmt: skip


def _kind(action: argparse.Action) -> yaml_file.Kind:
    if isinstance(action, argparse._AppendAction):
        return yaml_file.words
    return yaml_file.number if action.type is int else yaml_file.one


def _command(name: str, value: Any, path: Path) -> tuple[str, ...]:
    """A list is the command's words; a text is a script for sh."""
    if isinstance(value, str):
        return ("sh", "-c", value) if value.strip() else ()
    return yaml_file.words(name, value, path)


def _code(name: str, value: Any, path: Path) -> str:
    said = yaml_file.one(name, value, path)
    return "" if yaml_file.TRUTHS.get(said.lower()) is False else yaml_file.file(name, said, path)


def _engine_args(name: str, value: Any, path: Path) -> str:
    return shlex.join(yaml_file.words(name, value, path))


def _retry_on(name: str, value: Any, path: Path) -> str:
    return ",".join(yaml_file.items(name, value, path))
