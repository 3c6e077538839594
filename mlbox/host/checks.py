"""Checks of one thing each: every one is made, and all that they find wrong is said at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

from mlbox import errors

Check = Callable[[], Any]


def one_by_one(checks: Iterable[Check]) -> list[Any]:
    """What each returns. Raises MlboxError."""
    return _good(map(_tried, checks))


def side_by_side(checks: Sequence[Check]) -> list[Any]:
    """The same, of those that may take a while."""
    with ThreadPoolExecutor(len(checks)) as pool:
        return _good(pool.map(_tried, checks))


def _tried(check: Check) -> Any:
    try:
        return check()
    except errors.MlboxError as error:
        return error


def _good(results: Iterable[Any]) -> list[Any]:
    found = list(results)
    problems = [result for result in found if isinstance(result, errors.MlboxError)]
    if problems:
        raise together(problems)
    return found


def together(problems: Iterable[errors.MlboxError]) -> errors.MlboxError:
    """As one, of the first one's kind."""
    problems = list({problem.message: problem for problem in problems}.values())
    if len(problems) == 1:
        return problems[0]
    lines = [f"- {p.message}" + (f"\n    {p.hint}" if p.hint else "") for p in problems]
    return type(problems[0])(f"{len(problems)} things are in the way:\n  " + "\n  ".join(lines))
