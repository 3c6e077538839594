"""No test fails because the machine is busy with something else, for how the tests were started, or for what an earlier
run left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import homes
import pytest
from hypothesis import HealthCheck, settings

# nohup, and a shell's &, start with these ignored: so would be the programs that tests start, and interrupt.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, lambda *_: None),  # of no effect here still
    (signal.SIGHUP, lambda *_: None),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# What somebody's login has of these is not what is tested.
os.umask(0o022)
os.environ["SHELL"] = "/bin/sh"
for name in ("LOGNAME", "USER", "COLUMNS"):
    os.environ.pop(name, None)

settings.register_profile("mlbox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mlbox")

_own = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """No path comes twice: what a host knows of a ROOT stands in its per-boot folder under the ROOT's path, and would
    be found there by a later run. And none is too long for a socket in it."""
    if not config.option.basetemp and not hasattr(config, "workerinput"):
        config.stash[_own] = Path(tempfile.mkdtemp(prefix="mlbox-tests-", dir="/tmp"))
        config.option.basetemp = str(config.stash[_own])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The files of a run in which all passed go, those of another stay to be looked at."""
    own = session.config.stash.get(_own, None)
    if own is None:
        return
    homes.forget(own)
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(own, ignore_errors=True)
