"""A question to an engine's command line. One that did not answer is not asked again for a while: whoever asks for one
job after the other would wait for each, and others for a tick that does."""

from __future__ import annotations

import time

from mlbox.host.run import NO_ANSWER, capture

Answer = tuple[int, str, str]  # as of run.capture
_LEFT_ALONE = 60.0  # s
_silent: dict[str, tuple[float, Answer]] = {}  # by program: until when, and what is said meanwhile


def ask(program: str, arguments: tuple[str, ...], timeout: float) -> Answer:
    """Raises FileNotFoundError where there is no such program."""
    until, answer = _silent.get(program, (0.0, (0, "", "")))
    if time.monotonic() < until:
        return answer
    answer = capture((program, *arguments), timeout)
    if answer[0] == NO_ANSWER:
        _silent[program] = (time.monotonic() + _LEFT_ALONE, answer)
    return answer
