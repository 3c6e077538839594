"""A question to an engine that is asked for one job after the other, by a tick that others wait for: one that did not
answer is not asked again for a while."""

from __future__ import annotations

import time
from typing import Callable

from mlbox.host.run import NO_ANSWER

Answer = tuple[int, str, str]  # as of run.capture
_LEFT_ALONE = 60.0  # s
_silent: dict[str, tuple[float, Answer]] = {}  # by program: until when, and what is said meanwhile


def once_in_a_while(program: str, ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns, or did when the engine was silent."""
    until, answer = _silent.get(program, (0.0, (0, "", "")))
    if time.monotonic() < until:
        return answer
    answer = ask()
    if answer[0] == NO_ANSWER:
        _silent[program] = (time.monotonic() + _LEFT_ALONE, answer)
    return answer
