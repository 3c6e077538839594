"""A file of settings that a person wrote: session.yaml, job.yaml.

What is typed is what is meant: `3.10` is no number, `yes` no truth value and `010` no 8, until a setting wants one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from mlbox import errors
from mlbox.client.words import split_list, split_words
from mlbox.core import text

Json = dict[str, Any]
Kind = Callable[[str, Any, Path], Any]  # of a setting: its name, what the file says, the file; raises Usage
_LARGEST = 1 << 20  # bytes
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read(path: Path, kinds: Mapping[str, Kind], example: str) -> Json:
    """Its settings by their names, those that say nothing left out. `example`: what shows all. Raises Usage."""
    hint = f"{example} shows every setting"
    document = _document(path, hint)
    found: Json = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            close = text.nearest(name, kinds)
            meant = f"did you mean {close}?" if close else hint
            raise errors.Usage(f"{path}: there is no setting {text.safe(str(key))[:80]!r}", meant)
        if value is not None:
            found[name] = kinds[name](name, value, path)
    return found


def named(
    error: errors.Usage, path: Path, said: Mapping[str, Any], alone: Callable[[str, Any], object]
) -> errors.Usage:
    """The error, with the file and the setting that it is of: the one which `alone`, all else left out, is refused by
    the same words."""
    for name, value in said.items():
        try:
            alone(name, value)
        except errors.Usage as same:
            if same.message == error.message:
                return errors.Usage(f"{path}: {name}: {error.message}", error.hint)
    return error


def _document(path: Path, hint: str) -> Json:
    import yaml

    class Typed(yaml.SafeLoader):
        """Only nothing (`image:`, null) and << are more than the words that were typed; ~ is somebody's home."""

        yaml_implicit_resolvers = {
            first: [one for one in resolvers if one[0].endswith((":null", ":merge"))]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
            if first != "~"
        }

    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise errors.Usage(f"{path} can't be read: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise errors.Usage(f"{path} is larger than {_LARGEST >> 20} MiB", hint)
    try:
        document = yaml.load(content.decode(), Typed)
    except RecursionError:
        raise errors.Usage(f"{path}: it is nested too deeply", hint) from None
    except (AttributeError, KeyError):  # PyYAML's own, for `!!bool abc`
        raise errors.Usage(f"{path}: a value is not of the type that its tag (!!…) says", hint) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that is none
        raise errors.Usage(f"{path}: {_problem(error)}", hint) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise errors.Usage(f"{path} must be `name: value` lines", hint)
    return document


def _problem(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line} is not UTF-8 text"
    mark = getattr(error, "problem_mark", None)
    problem = text.safe(str(getattr(error, "problem", None) or error))
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


# ---- kinds of settings -----------------------------------------------------------------------------------


def one(name: str, value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise errors.Usage(f"{path}: {name} is one value")
    return value


def flag(name: str, value: Any, path: Path) -> bool:
    if not isinstance(value, str) or value.lower() not in TRUTHS:
        raise errors.Usage(f"{path}: {name} is true or false")
    return TRUTHS[value.lower()]


def number(name: str, value: Any, path: Path) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise errors.Usage(f"{path}: {name} is a whole number")
    return int(value)


def seconds(name: str, value: Any, path: Path) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,18}", value):
        raise errors.Usage(f"{path}: {name} is a number of seconds")
    return int(value)


def words(name: str, value: Any, path: Path) -> tuple[str, ...]:
    """A list, or a text with words as a shell would read them."""
    items = split_words(value, f"{path}: {name}") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise errors.Usage(f"{path}: {name} is a list of texts (quote null)")
    return tuple(items)


def items(name: str, value: Any, path: Path) -> tuple[str, ...]:
    """As `words`, and in a text commas part them too."""
    found = words(name, value, path)
    return tuple(item for word in found for item in split_list(word)) if isinstance(value, str) else found


def extensions(name: str, value: Any, path: Path) -> tuple[str, ...]:
    found = items(name, value, path)
    return tuple(file(name, item, path) if item.endswith(".vsix") else item for item in found)


def variables(name: str, value: Any, path: Path) -> tuple[str, ...]:
    """`NAME: value` lines, or a list of NAME=value; without a value it is the one here."""
    if not isinstance(value, dict):
        return words(name, value, path)
    if not all(isinstance(key, str) and isinstance(said, (str, type(None))) for key, said in value.items()):
        raise errors.Usage(f"{path}: {name} is `NAME: value` lines, or a list of NAME=value")
    return tuple(key if said is None else f"{key}={said}" for key, said in value.items())


def file(name: str, value: Any, path: Path) -> str:
    """Relative to the folder of the file that names it."""
    return str(path.parent / os.path.expanduser(one(name, value, path)))
