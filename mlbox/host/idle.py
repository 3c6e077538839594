"""Whether a tick has anything to do, by a few look-ups and hardly an import: what cron's minute costs on an idle lab.

Nothing of this user's waits or runs on this host, and what others know of the host is young enough, and younger than
lab.yaml: a mistake in that is told also where nothing waits.
"""

from __future__ import annotations

import os
import time

from mlbox.host import watchdog

FRESH = 600.0  # s that an inventory is good for where nothing happens
HEARD = "cron.heard"  # in the per-boot folder: when cron called last, for any ROOT


def idle(root: str, user: str, host: str) -> bool:
    """False also where something can't be read: the tick itself says what is wrong."""
    own = f"{root}/users/{user}"
    try:
        os.stat(f"{root}/mlbox.json")
        if os.lstat(own).st_uid != os.getuid():
            return False
        told = os.stat(f"{own}/on/{host}/host.json").st_mtime
        here = f"{own}/on/{host}"
        if os.path.exists(f"{here}/reverse.json"):  # a host that nobody can ask: others see by it that it is there
            os.utime(f"{here}/reverse.json")
        if _changed(f"{root}/lab.yaml") >= told:
            return False
        if not 0 <= time.time() - told < FRESH or os.listdir(f"{here}/live") or os.listdir(f"{here}/making"):
            return False
        starting = [name for name in os.listdir(f"/tmp/mlbox-{os.getuid()}") if ".starting." in name]
        if starting and any(name.startswith(name_of_ticks(root)) for name in starting):  # a start was cut short
            return False
        return not any(os.listdir(f"{own}/ready/{queue}") for queue in os.listdir(f"{own}/ready"))
    except OSError:
        return False


def name_of_ticks(root: str) -> str:
    """Of what ticks of this user in this ROOT have in the per-boot folder."""
    import hashlib  # which an idle tick does without

    return f"tick-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def _changed(path: str) -> float:
    """Also by a move or a change of rights, which leave the time of its content as it is. 0: there is none."""
    try:
        return os.stat(path).st_ctime
    except FileNotFoundError:
        return 0.0


def guard(root: str) -> None:
    """A tick ends, with a line in its log, where ROOT hangs: cron calls the next one in a minute."""

    def said(message: str) -> None:  # it may hang in the midst of a print
        os.write(2, f"{time.strftime('%Y-%m-%d %H:%M:%S')} mlbox: {message}\n".encode())

    watchdog.watch((root, watchdog.own_folder()), said)


def may_pass(arguments: list[str]) -> bool:
    """Of `tick --root ROOT`, as cron calls it. From here on it is guarded."""
    import pwd

    if len(arguments) != 2 or arguments[0] != "--root":
        return False
    guard(arguments[1])
    try:
        os.utime(f"/tmp/mlbox-{os.getuid()}/{HEARD}")
    except OSError:  # the first one of this boot makes it (host/cron.py)
        return False
    user = os.environ.get("LOGNAME") or os.environ.get("USER") or pwd.getpwuid(os.getuid()).pw_name
    return idle(arguments[1], user, os.uname().nodename.split(".")[0])
