"""Why a session did not come up: what a log is told as."""

from __future__ import annotations

from mlbox import errors
from mlbox.host import failure

UNREAD = "/usr/bin/python3: can't open file '/run/mlbox/mlbox-host.pyz': [Errno 13] Permission denied\n"


def test_a_container_that_is_somebody_else_to_the_host_is_told_apart() -> None:
    """Docker without root gives a user's number to somebody else."""
    found = failure.ended_at_once("docker", 2, UNREAD)
    assert isinstance(found, errors.HostUnready) and "--user root" in found.hint
    assert isinstance(failure.ended_at_once("docker", 2, UNREAD.replace("/run/mlbox/", "/")), errors.StartFailed)
