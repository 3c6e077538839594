"""A request, before any handler has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlbox.core import wire
from mlbox.errors import Usage
from mlbox.host.serve import Call


def root(value: Any) -> Path | None:
    return Call(wire.Request("jobs", {"root": value})).root


def test_a_root_is_the_same_wherever_it_is_named(home: Path) -> None:
    """A keeper's own folder is another than the call's: of a relative ROOT it saw nothing, and the job was lost."""
    assert [root("/share/my lab"), root("~/lab"), root(""), root(None)] == [
        Path("/share/my lab"), home / "lab", None, None,
    ]  # fmt: skip
    for wrong in ("lab", "./lab", "~nobody-of-that-name/lab"):
        with pytest.raises(Usage, match="no folder of every host's"):
            root(wrong)
