"""The hosts' shared folder: a GlusterFS volume distributed over two bricks, served by a container of its own.

Every host mounts it through a client of its own (init.sh), and this machine does at RUN/share, so each has
its own cache and its own opinion. The bricks are in a volume of the container's: `down` removes all three.
"""

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .catalog import sources, tag_of
from .engine import Engine
from .engine import unmount as unmount_below
from .inventory import BRICKS, DATA, LAB, NETWORK, RUN, STORE, STORE_ADDRESS, STORE_IMAGE, VOLUME
from .shell import LabError, run, say, wait_for, write

SHARE = RUN / "share"
SOURCES = SHARE / "sources"
_SCRIPT = RUN / "store" / "store.sh"
_SERVED = "store/mounted"  # beside the mount: the id of the container whose volume is mounted


def ensure(engine: Engine) -> str:
    """Have the volume served, and mounted here; the id of the container that serves it."""
    served = _serve(engine)
    _mount(served)
    _show_sources()
    return served


def _serve(engine: Engine) -> str:
    _SCRIPT.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / "store.sh", _SCRIPT)
    argv = ["--name", STORE, "--hostname", "store", "--network", NETWORK, "--ip", STORE_ADDRESS]
    argv += ["--cap-add", "SYS_ADMIN"]  # the bricks' trusted.* attributes
    argv += ["-v", "/bricks", "-v", f"{_SCRIPT.parent}:/lab:ro"]
    argv += ["-e", f"LAB_ADDRESS={STORE_ADDRESS}", "-e", f"LAB_VOLUME={VOLUME}", "-e", f"LAB_BRICKS={BRICKS}"]
    argv += [tag_of(STORE_IMAGE), "/bin/bash", "/lab/store.sh"]
    mark = hashlib.sha256(repr((argv, _SCRIPT.read_text())).encode()).hexdigest()[:16]
    form = '{{.State.Running}} {{index .Config.Labels "' + LAB + '"}} {{.Id}}'
    seen = engine.docker("inspect", "-f", form, STORE, check=False).stdout.split()
    if seen[:2] != ["true", mark]:
        engine.docker("rm", "-f", "-v", STORE, check=False)
        seen = engine.docker("run", "--detach", "--label", f"{LAB}={mark}", *argv).stdout.split()

    def ready() -> bool:
        return engine.docker("exec", STORE, "test", "-e", "/run/ready", check=False).returncode == 0

    wait_for("the share's server", ready, 60)
    return seen[-1]


def _mount(served: str) -> None:
    if _is_mounted() and _served() == served:
        return
    unmount()
    SHARE.mkdir(parents=True, exist_ok=True)
    log = RUN / "logs" / "share.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    run(("mount", "-t", "glusterfs", "-o", f"log-file={log}", f"{STORE_ADDRESS}:/{VOLUME}", str(SHARE)))
    SHARE.chmod(0o1777)
    write(RUN / _SERVED, served)


def _served() -> str:
    path = RUN / _SERVED
    return path.read_text() if path.exists() else ""


def _is_mounted() -> bool:
    """Whether there is a mount that answers; without its server one would hang."""
    return run(("timeout", "10", "mountpoint", "-q", str(SHARE)), check=False).returncode == 0


def _show_sources() -> None:
    """The cache's sources at RUN/share/sources, read-only. The hosts do the same with theirs."""
    if not sources().is_dir():
        return
    SOURCES.mkdir(exist_ok=True)
    if SOURCES.samefile(sources()):
        return
    if SOURCES.is_mount():
        run(("umount", "--lazy", str(SOURCES)))
    run(("mount", "--bind", str(sources()), str(SOURCES)))
    run(("mount", "-o", "remount,bind,ro", str(SOURCES)))


def unmount(share: Path = SHARE) -> None:
    """Take this machine's mount away, busy or dead as it may be, and wait for its client to end."""
    unmount_below(share)
    run(("umount", "--force", "--lazy", str(share)), check=False)
    with suppress(LabError):
        wait_for("the share's client on this machine", lambda: not any(_clients(share)), 5)
    for pid in _clients(share):
        say(f"killing a client of the share that goes on (pid {pid})")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    (share.parent / _SERVED).unlink(missing_ok=True)


def _clients(share: Path) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            argv = path.read_bytes().split(b"\0")
            if argv[0].endswith(b"/glusterfs") and str(share).encode() in argv:
                yield int(path.parent.name)
