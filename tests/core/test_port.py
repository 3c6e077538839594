"""What a person writes for an extra port."""

from __future__ import annotations

import pytest

from mlbox.core.port import Port, parse
from mlbox.errors import Usage


@pytest.mark.parametrize(
    ("word", "port"),
    [
        ("6006", Port(6006, 6006)),
        ("1", Port(1, 1)),
        ("65535", Port(65535, 65535)),
        ("8000:80", Port(8000, 80)),
        ("06006", Port(6006, 6006)),
    ],
)
def test_a_port(word: str, port: Port) -> None:
    assert parse(word) == port


def test_it_is_shown_as_it_was_written() -> None:
    assert [str(parse(word)) for word in ("6006", "8000:80")] == ["6006", "8000:80"]


@pytest.mark.parametrize(
    "word", ["", "0", "65536", "999999999999", "-1", "http", "6006:", ":6006", "1:2:3", "6006/tcp", "٦٠", "22 ", "+22"]
)
def test_what_is_none(word: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(word)
    assert "LOCAL:REMOTE" in caught.value.hint
