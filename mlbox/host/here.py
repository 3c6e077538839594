"""This machine, this user and this process, by the names under which others know them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from mlbox.core.slots import Writer
from mlbox.host import processes

umask = -1  # this user's own, for what jobs make; -1: it is in force


def be_readable() -> None:
    """What this process makes others may read, who reckon with it, and never write to, whatever the user's umask. What
    is secret has a mode of its own."""
    global umask
    umask = os.umask(0o022)


def user_name() -> str:
    return os.environ.get("LOGNAME") or os.environ.get("USER") or pwd.getpwuid(os.getuid()).pw_name


def host_name() -> str:
    return os.uname().nodename.split(".")[0] or "localhost"


def boot_folder() -> Path:
    """This user's folder of this boot, made or not (host/idle.py spells it, too, for it does without this module)."""
    return Path(f"/tmp/mlbox-{os.getuid()}")


def data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mlbox"


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlbox"


def this_writer() -> Writer:
    """This process, as a log's slots name it."""
    return Writer(host_name(), processes.boot_id(), os.getpid(), processes.started(os.getpid()))


def is_dead(writer: Writer) -> bool:
    """Whether a process of this host is gone. Of other hosts' nothing is known here."""
    if writer.host != host_name():
        return False
    return writer.boot != processes.boot_id() or processes.started(writer.pid) != writer.started
