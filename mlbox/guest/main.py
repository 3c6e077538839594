"""The guest: the first process of a session, inside its container or on the host itself.

    init        (this process) reaps orphans, passes SIGTERM on, ends when the guest proper ends
    guest       starts Jupyter, VS Code and sshd, each on a unix socket in <run>/s; asks each until it answers
    keeper.sock the guest tells the keeper of each service, and holds the GPU leases with it (guest/link.py)
    guest.sock  answers {"op": "ping"}: how a laptop knows that its tunnel reaches all the way

Assumes Python 3.9 and nothing installed. Runs as the user, or as root in a container when the user chose so.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mlbox.guest import control, services
from mlbox.guest.link import KeeperLink

Json = dict[str, Any]
_PR_SET_CHILD_SUBREAPER = 36


def main(config_file: str) -> int:
    config: Json = json.loads(Path(config_file).read_text())
    os.umask(0o077)
    _adopt_orphans()
    child = os.fork()
    if child:
        return _init(child)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 1
    try:
        code = _guest(config)
    except OSError as error:
        print(error, file=sys.stderr)
    except Exception:  # a bug, too: os._exit below prints nothing of it
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _adopt_orphans() -> None:
    """A kernel whose Jupyter died comes to us and is reaped; as a container's process 1 it would anyway."""
    with contextlib.suppress(AttributeError, OSError):  # macOS has none; there the keeper finds orphans by their mark
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _init(child: int) -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, frame: os.kill(child, signal.SIGTERM))
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return 1
        if pid == child:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _guest(config: Json) -> int:
    environment = _environment(config)
    link = KeeperLink(Path(config["run"]) / "s/keeper.sock", config["session"])
    running = services.start_all(config, environment, link.say)
    path, owner = Path(config["run"]) / "s/guest.sock", services.owner(config)
    control.serve(path, lambda: [s.name for s in running.ready], owner, config["key"])
    link.start()
    signal.signal(signal.SIGTERM, lambda received, frame: running.stop())
    return running.wait()


def _environment(config: Json) -> dict[str, str]:
    """The image's own environment, the layer's PATH, then what the user asked for, then the mark that finds it."""
    environment = dict(os.environ)
    environment.update(HOME=config["home"], SHELL=config["shell"])
    environment.setdefault("LANG", "C.UTF-8")
    if config["path"]:
        environment["PATH"] = config["path"]
    environment.update(config["env"], MLBOX_SESSION=config["session"])
    return environment
