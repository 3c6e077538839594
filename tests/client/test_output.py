"""Tables: a row is a line on a pipe, and readable on a terminal that is too narrow for it."""

from __future__ import annotations

import pytest

from mlbox.client import output

HEAD, ROW = ("ID", "STATE", "WHY"), ("01K", "failed", "image torch is not on this host and can't be pulled")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (0, "01K  failed  image torch is not on this host and can't be pulled"),
        (80, "01K  failed  image torch is not on this host and can't be pulled"),
        (45, "01K  failed  image torch is not on this host\n             and can't be pulled"),
        (32, "01K  failed\n    image torch is not on this\n    host and can't be pulled"),
        (10, "01K  failed\n    image torch is not on\n    this host and can't be\n    pulled"),
    ],
)
def test_a_row_that_is_too_long(columns: int, shown: str) -> None:
    assert output._row(ROW, (3, 6, 51), columns) == shown


def test_on_a_pipe_a_row_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(HEAD, [ROW, ("01L", "running", "")])
    assert capsys.readouterr().out.splitlines() == [
        "ID   STATE    WHY",
        "01K  failed   image torch is not on this host and can't be pulled",
        "01L  running",
    ]
