"""Where a session's settings come from: the last answers, then config.toml, then a YAML file, then flags.

Values stay `None` until somebody says something, so that a later source overrides only what it names.
Files that a setting names (requirements, scripts, extensions) are read here, on the laptop.
"""

from __future__ import annotations

import base64
import os
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
    queue: str | None = None  # to wait in; what follows is for who waits
    priority: int | None = None
    gpu_memory: str | None = None
    gpu_share: str | None = None
    cpus: int | None = None
    memory: str | None = None
    time_limit: str | None = None
    on: tuple[str, ...] | None = None
    label: tuple[str, ...] | None = None

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
_FORGOTTEN = ("host", "name", "env")  # not next time's defaults: another session, and perhaps secrets


def from_yaml(path: Path) -> Answers:
    """A session.yaml; raises Usage with line and column. Paths in it are relative to its folder."""
    from mlbox.client import yaml_file

    kinds = {
        **dict.fromkeys((f.name for f in fields(Answers)), yaml_file.one), **dict.fromkeys(_FILES, yaml_file.file),
        **dict.fromkeys(("jupyter", "vscode"), yaml_file.flag),
        **dict.fromkeys(("mount", "engine_args", "port"), yaml_file.words),
        **dict.fromkeys(("on", "label", "packages"), yaml_file.items),
        **dict.fromkeys(("cpus", "priority"), yaml_file.number),
        "vscode_extensions": yaml_file.extensions, "env": yaml_file.variables, "start_timeout": yaml_file.seconds,
    }  # fmt: skip
    return Answers(**yaml_file.read(path, kinds, "mlbox session --help"))


def named(error: errors.Usage, file: str | None, said: Answers) -> errors.Usage:
    """The error, with the name of the file where it is about what that `said`."""
    from mlbox.client import options, yaml_file

    def alone(name: str, value: Any) -> None:
        answers = Answers(**{name: value})
        to_spec(answers, ())
        ports_of(answers)
        options.resources(answers)

    settings = {f.name: getattr(said, f.name) for f in fields(said) if getattr(said, f.name) is not None}
    return yaml_file.named(error, Path(file or ""), settings, alone)


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
    env = dict(_variable(item) for item in answers.env or ())
    session.check_env(env)
    return Spec(
        **plain,
        requirements=_read(answers.requirements).decode(errors="replace") if answers.requirements else "",
        init_script=_read(answers.init_script).decode(errors="replace") if answers.init_script else "",
        vscode_extensions=ids,
        extension_files=_extension_files(vsix),
        jupyter=_wanted(answers.jupyter),
        vscode=_wanted(answers.vscode),
        env=env,
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
