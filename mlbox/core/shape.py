"""What came over the wire or from a disk, held to the shape of the field that it is for. Each raises Usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from mlbox.errors import Usage

T = TypeVar("T")


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Usage(f"{name} must map names to values")
    return value


def sequence(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise Usage(f"{name} must be a list")
    return list(value)


def texts(name: str, value: Any) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in sequence(name, value)):
        raise Usage(f"{name} must be a list of texts")
    return tuple(value)


def texts_by_name(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise Usage(f"{name} must map names to text")
    return dict(value)


def like(name: str, value: Any, default: T) -> T:
    """Of the default's very type: a truth value is no number here."""
    if type(value) is not type(default):
        raise Usage(f"{name} must be {'a number' if isinstance(default, int) else 'text'}")
    return value
