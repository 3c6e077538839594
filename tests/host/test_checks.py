"""What several checks find wrong is said at once, also where they are made side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import pytest

from mlbox import errors
from mlbox.host import checks


def wrong(error: errors.MlboxError) -> checks.Check:
    def check() -> None:
        raise error

    return check


@pytest.mark.parametrize("make", [checks.one_by_one, checks.side_by_side])
def test_every_check_is_made(make: Callable[[Sequence[checks.Check]], list[Any]]) -> None:
    assert make([lambda: 1, lambda: "two"]) == [1, "two"]
    with pytest.raises(errors.Refused) as caught:
        make([lambda: 1, wrong(errors.Refused("no GPU", "wait")), wrong(errors.HostUnready("no docker"))])
    assert caught.value.message == "2 things are in the way:\n  - no GPU\n    wait\n  - no docker"


def test_one_is_itself_and_is_said_once() -> None:
    alone = errors.NotFound("x")
    assert checks.together([alone]) is alone
    assert checks.together([errors.NotFound("x"), errors.NotFound("x")]).message == "x"


def test_a_bug_is_no_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        checks.side_by_side([lambda: 1 // 0])
