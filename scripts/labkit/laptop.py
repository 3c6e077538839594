"""The laptops of tests that run at the same time: programs of this machine with a network and a /tmp of their own.

Without that, two laptops on one machine fight for ports of 127.0.0.1 and for /tmp/mlbox-UID. A laptop is a host on its
copy's network. The rest of the machine, its processes too, is shared.
"""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from .inventory import BRIDGE, HERE, SUBNET, Copy
from .shell import run

_ADDRESS = f"{SUBNET}.3"
_IN_ITS_TMP = 'mount --bind "$0" /tmp && exec "$@"'


def ensure() -> None:
    """Have this copy's."""
    if _tmp(HERE).exists() and run(("ip", "-n", HERE.name, "route", "get", f"{SUBNET}.1"), check=False).returncode == 0:
        return
    remove(HERE)
    cable = HERE.device("l0")
    inside = ("ip", "-n", HERE.name)
    run(("ip", "netns", "add", HERE.name))
    run(("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", HERE.name))
    run(("ip", "link", "set", cable, "master", BRIDGE, "up"))
    run((*inside, "link", "set", "lo", "up"))
    run((*inside, "addr", "add", f"{_ADDRESS}/24", "dev", "eth0"))
    run((*inside, "link", "set", "eth0", "up"))
    run((*inside, "route", "add", "default", "via", f"{SUBNET}.1"))
    _tmp(HERE).mkdir(parents=True)
    _tmp(HERE).chmod(0o1777)


def _tmp(copy: Copy) -> Path:
    return copy.stores / "tmp"


def remove(copy: Copy) -> None:
    """Take it away, with all that still runs there."""
    for pid in run(("ip", "netns", "pids", copy.name), check=False).stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run(("ip", "link", "delete", copy.device("l0")), check=False)
    run(("ip", "netns", "delete", copy.name), check=False)
    shutil.rmtree(_tmp(copy), ignore_errors=True)


def command(copy: Copy) -> tuple[str, ...]:
    """What comes before a program and its arguments, so that it runs on this copy's laptop."""
    network = ("nsenter", f"--net=/run/netns/{copy.name}")
    folder = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", _IN_ITS_TMP, str(_tmp(copy)))
    return ("env", f"MLBOX_LAB_COPY={copy.number}", *network, *folder)
