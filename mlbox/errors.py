"""Every failure a user can meet: what happened, to what, and what to try.

The exit codes are part of the command line's contract (README, "Exit codes").
"""

from __future__ import annotations

from typing import ClassVar


class MlboxError(Exception):
    """An expected failure. `message` says what happened to what; `hint` what to try."""

    kind: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Usage(MlboxError):
    """The command line, a YAML file or a setting is wrong."""

    kind = "usage"
    exit_code = 2


class Refused(MlboxError):
    """The host is fine, but what was asked for cannot be had there (GPUs, image, space, mounts)."""

    kind = "refused"
    exit_code = 3


class Unreachable(MlboxError):
    """No connection: name, network, host key, login."""

    kind = "unreachable"
    exit_code = 4


class NotConnected(Unreachable):
    """Not even a connection came about: nothing of what was asked can have been done."""


class NotLetIn(Unreachable):
    """The host key or the login stood in the way: nothing of what was asked can have been done either."""


class HostUnready(MlboxError):
    """Connected, but the host lacks something mlbox needs (Python, an engine, a right)."""

    kind = "unready"
    exit_code = 5


class NotFound(MlboxError):
    """No such session, job, queue or host."""

    kind = "not-found"
    exit_code = 6


class Several(NotFound):
    """It was not said which of them."""

    kind = "several"


class Ended(NotFound):
    """That session is over, by its log. One that is only not found may wait in line, or run elsewhere."""

    kind = "ended"


class StartFailed(MlboxError):
    """It was started and did not come up (packages, image layer, a service that never answers)."""

    kind = "start-failed"
    exit_code = 7


class Bug(MlboxError):
    """mlbox itself went wrong, where only words of it can be sent. `hint`: where, as a traceback."""

    kind = "bug"
    exit_code = 70


_KINDS = (MlboxError, Usage, Refused, Unreachable, HostUnready, NotFound, Several, Ended, StartFailed, Bug)
_BY_KIND = {c.kind: c for c in _KINDS}


def from_kind(kind: str, message: str, hint: str = "") -> MlboxError:
    """The error that a reply on the wire names; an unknown kind (a newer host) is a plain failure."""
    return _BY_KIND.get(kind, MlboxError)(message, hint)
