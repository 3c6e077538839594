"""Where a session's settings come from: the last answers, then config.toml, then a YAML file, then flags.

Values stay `None` until somebody says something, so that a later source overrides only what it names.
Files that a setting names (requirements, scripts, extensions) are read here, on the laptop.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import port, session, text
from mlbox.core.port import Port
from mlbox.core.session import Spec

Json = dict[str, Any]
LARGEST_FILE = 32 * 1024 * 1024  # bytes


@dataclass(frozen=True)
class Answers:
    """One source's words. The names are those of the YAML file; a flag is the name with dashes."""

    host: str | None = None
    name: str | None = None
    gpus: str | None = None
    image: str | None = None
    runtime: str | None = None
    user: str | None = None
    user_folder: str | None = None
    packages: tuple[str, ...] | None = None
    requirements: str | None = None
    init_script: str | None = None
    vscode_extensions: tuple[str, ...] | None = None
    jupyter: bool | None = None
    vscode: bool | None = None
    env: tuple[str, ...] | None = None
    mount: tuple[str, ...] | None = None
    engine_args: tuple[str, ...] | None = None
    jupyter_version: str | None = None
    vscode_version: str | None = None
    sources: str | None = None
    tunnel: str | None = None
    start_timeout: int | None = None
    port: tuple[str, ...] | None = None

    def beyond(self, said: Answers) -> list[str]:
        """The settings that these answers add to what was said, as flags."""
        added = {f.name: getattr(self, f.name) for f in fields(self) if getattr(said, f.name) is None}
        return [_as_flag(name, value) for name, value in added.items() if value is not None]

    def over(self, weaker: Answers) -> Answers:
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(weaker, **said)


def _as_flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} " + text.without_credentials(
        " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    )


_FILES = ("requirements", "init_script")
_LISTS = ("packages", "vscode_extensions", "env", "mount", "engine_args", "port")
_FLAGS = ("jupyter", "vscode")
_FORGOTTEN = ("host", "name", "env")  # not next time's defaults: another session, and perhaps secrets


_NEXT_ITEM = re.compile(r",(?![^\[]*\])\s*(?=[\w./~]|$)")


def split_list(value: str) -> list[str]:
    """Items between commas; a comma inside brackets or before a version (`numpy>=2,<3`) is the item's own."""
    return [item for item in (part.strip() for part in _NEXT_ITEM.split(value)) if item]


def split_words(value: str, what: str) -> list[str]:
    """Words as a shell would read them; raises Usage where a quote stays open."""
    try:
        return shlex.split(value)
    except ValueError as error:
        raise errors.Usage(f"{what} can't be read: {error}") from None


def from_yaml(path: Path) -> Answers:
    """A session.yaml; raises Usage with line and column. Paths in it are relative to its folder."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.Usage(f"{path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that is none
        raise errors.Usage(f"{path}: {_yaml_problem(error)}", "conf/session.yaml shows every setting") from None
    if document is None:
        return Answers()
    if not isinstance(document, dict):
        raise errors.Usage(f"{path} must be `name: value` lines", "conf/session.yaml shows every setting")
    return Answers(**_checked(document, path))


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)


def _checked(document: Json, path: Path) -> Json:
    known = {f.name for f in fields(Answers)}
    checked: Json = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = text.nearest(name, known)
            raise errors.Usage(
                f"{path}: there is no setting {text.safe(str(key))!r}", f"did you mean {close}?" if close else ""
            )
        checked[name] = _value(name, value, path)
    return checked


def _value(name: str, value: Any, path: Path) -> Any:
    if value is None:
        return None
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise errors.Usage(f"{path}: {name} is true or false")
        return value
    if name == "start_timeout":
        if not isinstance(value, int) or isinstance(value, bool):
            raise errors.Usage(f"{path}: {name} is a number of seconds")
        return value
    if name == "env" and isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    if name in _LISTS:
        items = [value] if name == "port" and isinstance(value, int) else value
        if isinstance(value, str):
            items = split_words(value, f"{path}: {name}")
            if name in ("packages", "vscode_extensions"):
                items = [item for word in items for item in split_list(word)]
        if not isinstance(items, list) or not all(isinstance(i, (str, int, float)) for i in items):
            raise errors.Usage(f"{path}: {name} is a list")
        return tuple(_relative(str(i), path) if str(i).endswith(".vsix") else str(i) for i in items)
    if isinstance(value, (dict, list, bool)):
        raise errors.Usage(f"{path}: {name} is one value")
    return _relative(str(value), path) if name in _FILES else str(value)


def _relative(name: str, path: Path) -> str:
    return str(path.parent / os.path.expanduser(name))


def remembered(found: Json) -> Answers:
    """Last time's answers; what an older version stored and this one does not know is passed over."""
    known = {f.name for f in fields(Answers)} - set(_FORGOTTEN)
    kept: Json = {
        key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if key in known
    }
    return Answers(**kept)


def to_remember(answers: Answers) -> Json:
    said = {f.name: getattr(answers, f.name) for f in fields(answers) if f.name not in _FORGOTTEN}
    for name in _FILES:
        if said.get(name):
            said[name] = _absolute(said[name])
    if said.get("vscode_extensions"):
        said["vscode_extensions"] = [_absolute(e) if e.endswith(".vsix") else e for e in said["vscode_extensions"]]
    if said.get("packages"):  # one with a password in its URL is a secret, and useless without it
        said["packages"] = [p for p in said["packages"] if p == text.without_credentials(p)]
    return {name: value for name, value in said.items() if value is not None}


def _absolute(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))


def ports_of(answers: Answers) -> tuple[Port, ...]:
    """The extra ports asked for. Raises Usage."""
    return tuple(port.parse(word) for word in answers.port or ())


def to_spec(answers: Answers, authorized_keys: tuple[str, ...]) -> Spec:
    """The session asked for, its files read. Raises Usage."""
    ids = tuple(e for e in answers.vscode_extensions or () if not e.endswith(".vsix"))
    vsix = [e for e in answers.vscode_extensions or () if e.endswith(".vsix")]
    plain = {
        name: getattr(answers, name)
        for name in ("name", "gpus", "image", "runtime", "user", "user_folder", "packages", "engine_args",
                     "jupyter_version", "vscode_version", "sources", "tunnel", "start_timeout")
        if getattr(answers, name) is not None
    }  # fmt: skip
    return Spec(
        **plain,
        requirements=_read(answers.requirements).decode(errors="replace") if answers.requirements else "",
        init_script=_read(answers.init_script).decode(errors="replace") if answers.init_script else "",
        vscode_extensions=ids,
        extension_files=_extension_files(vsix),
        jupyter=_wanted(answers.jupyter),
        vscode=_wanted(answers.vscode),
        env=dict(_variable(item) for item in answers.env or ()),
        mounts=tuple(session.parse_mount(item) for item in answers.mount or ()),
        authorized_keys=authorized_keys,
    )


def _extension_files(names: Sequence[str]) -> dict[str, str]:
    """They travel inside the request."""
    contents = {os.path.basename(name): _read(name) for name in names}
    total = sum(map(len, contents.values()))
    if total > LARGEST_FILE:
        raise errors.Usage(
            f"the .vsix files are larger than {LARGEST_FILE >> 20} MiB together: {', '.join(contents)}",
            "name those that a registry has as publisher.name, or put them into the image",
        )
    return {name: base64.b64encode(content).decode() for name, content in contents.items()}


def _wanted(said: bool | None) -> str:
    return "auto" if said is None else "yes" if said else "no"


def _read(name: str) -> bytes:
    path = Path(os.path.expanduser(name))
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise errors.Usage(f"{path} can't be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise errors.Usage(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
    return content


def _variable(item: str) -> tuple[str, str]:
    """`NAME=value`, or `NAME` alone: its value here."""
    name, equals, value = item.partition("=")
    if not equals:
        if name not in os.environ:
            raise errors.Usage(f"--env {text.safe(name)}: there is no such variable here", "write --env NAME=value")
        value = os.environ[name]
    return name, value
