"""What several hosts replied, as --json has it, and the exit code that they make."""

from __future__ import annotations

from typing import Any

import pytest

from mlbox import errors
from mlbox.client.hosts import exit_code, facts, told, why

AWAY, UNREADY = errors.Unreachable("gpu1: no route"), errors.HostUnready("no engine")


def test_who_did_not_reply_is_told_too() -> None:
    assert facts("gpu1", {"host": "its-own-name", "gpus": []}) == {"host": "gpu1", "gpus": []}
    assert facts("gpu1", AWAY) == {"host": "gpu1", "error": {"kind": "unreachable", "message": "gpu1: no route"}}


def test_a_line_names_its_host_once() -> None:
    assert [told("gpu1", error) for error in (AWAY, UNREADY)] == ["gpu1: no route", "gpu1: no engine"]
    assert [why("gpu1", error) for error in (AWAY, UNREADY)] == ["no route", "no engine"]


@pytest.mark.parametrize(
    ("replies", "code"), [([], 0), ([{}], 0), ([AWAY], 4), ([AWAY, {}], 0), ([UNREADY, AWAY], 5)], ids=str
)
def test_one_reply_is_enough(replies: list[Any], code: int) -> None:
    assert exit_code({str(number): reply for number, reply in enumerate(replies)}) == code
