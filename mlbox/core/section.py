"""A part of a file that people edit, as its parser returned it: its values by their kind. Each error names its key.

Absent numbers are 0, absent texts empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from mlbox.core import resources, text
from mlbox.errors import Usage

Place = Callable[[Sequence[object]], str]
_MOST_MEBIBYTES = 1024 * 1024


def nearest(word: str, known: Collection[str]) -> str:
    near = text.nearest(word, known)
    return f"; did you mean {near}?" if near else ""


class Section:
    """A mapping of the document, and its path in it; an empty section is one without keys."""

    def __init__(self, where: str, place: Place, path: tuple[object, ...], data: object) -> None:
        self.where, self.place, self.path, self.name = where, place, path, str(path[-1]) if path else ""
        if data is not None and not isinstance(data, dict):
            raise self._wrong(path, "must map names to values", "see conf/lab.yaml for an example")
        self.data: dict[Any, Any] = data or {}

    def wrong(self, key: object, problem: str) -> Usage:
        return self._wrong((*self.path, key), problem)

    def _wrong(self, path: tuple[object, ...], problem: str, hint: str = "") -> Usage:
        name = text.safe(".".join(map(str, path))) or "the file"
        return Usage(f"{self.where}: {self.place(path)}{name} {problem}", hint)

    def knows(self, *keys: str) -> None:
        for key in self.data:
            if key not in keys:
                raise self.wrong(key, "is unknown" + (nearest(str(key), keys) or f"; there are: {', '.join(keys)}"))

    def part(self, key: str) -> Section:
        return Section(self.where, self.place, (*self.path, key), self.data.get(key))

    def parts(self, is_name: Callable[[str], bool]) -> list[Section]:
        for key in self.data:
            if not isinstance(key, str) or not is_name(key):
                raise self.wrong(key, "can't be a name here; quote it if it is a number or a word of YAML's")
        return [Section(self.where, self.place, (*self.path, key), value) for key, value in self.data.items()]

    def number(self, key: str, least: int = 1, most: int = 10**6) -> int:
        value = self.data.get(key)
        if value is None:
            return 0
        if type(value) is not int:
            raise self.wrong(key, "must be a number")
        if not least <= value <= most:
            none = "; leave it out for no limit" if value == 0 else ""
            raise self.wrong(key, f"must be a number from {least} to {most}{none}")
        return value

    def seconds(self, key: str) -> int:
        value = self.data.get(key)
        if value is None:
            return 0
        try:
            return resources.parse_duration(value)
        except Usage as error:
            raise self.wrong(key, f"must be a duration: {error.hint}") from None

    def mebibytes(self, key: str) -> int:
        value = self.data.get(key)
        if value is None:
            return 0
        try:
            found = resources.parse_memory(value)
        except Usage as error:
            raise self.wrong(key, f"must be a size: {error.hint}") from None
        if not 1 <= found <= _MOST_MEBIBYTES:
            raise self.wrong(key, f"must be a size from 1M to {text.mebibytes(_MOST_MEBIBYTES)}")
        return found

    def text(self, key: str) -> str:
        value = self.data.get(key, "")
        if not isinstance(value, str):
            raise self.wrong(key, "must be text")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.data.get(key, allowed[0])
        if value not in allowed:
            raise self.wrong(key, f"must be one of: {', '.join(allowed)}")
        return str(value)

    def words(self, key: str, is_good: Callable[[str], bool], hint: str) -> tuple[str, ...]:
        values = self.data.get(key)
        if values is None:
            return ()
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise self.wrong(key, "must be a list of words, such as [a, b]")
        for value in values:
            if not is_good(value):
                raise self.wrong(key, f"can't have {text.safe(value)!r}: {hint}")
        if len(set(values)) != len(values):
            raise self.wrong(key, "has a word twice")
        return tuple(values)
