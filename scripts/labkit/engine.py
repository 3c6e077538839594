"""The outer Docker engine: a running one if there is one, else a dockerd of the lab's own.

The lab's own dockerd listens on a socket in the runtime folder, keeps its data in the cache and has
no default bridge, so that it shares nothing with an engine that somebody starts later. What it
changes on the machine (iptables chains, ip_forward) is noted before and undone by `stop`.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from .footprint import Footprint
from .inventory import CACHE, CGROUP, LAB, LAB_RUN
from .shell import LabError, run, say, wait_for, write

STATE = LAB_RUN / "state.json"


@dataclass(frozen=True)
class Engine:
    """`socket` is None for the machine's own engine; `pid` is that of the lab's dockerd."""

    socket: Optional[str]
    pid: Optional[int] = None
    undo: Optional[Footprint] = None

    @property
    def env(self) -> "dict[str, str]":
        return {"DOCKER_HOST": f"unix://{self.socket}"} if self.socket else {}

    @property
    def started_by_lab(self) -> bool:
        return self.pid is not None

    def docker(self, *args: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return run(("docker", *args), check=check, env=self.env)

    def answers(self) -> bool:
        return self.docker("version", "--format", "{{.Server.Version}}", check=False).returncode == 0

    def image_id(self, tag: str) -> str:
        """The image's id, or "" where it is not here."""
        done = self.docker("image", "inspect", "-f", "{{.Id}}", tag, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def containers(self, *filters: str) -> list[str]:
        """Names of the containers of all copies of the lab, running or not."""
        args = [part for item in filters for part in ("--filter", item)]
        done = self.docker("ps", "-a", "--filter", f"label={LAB}", *args, "--format", "{{.Names}}")
        return done.stdout.split()


def known() -> Optional[Engine]:
    """The engine that the lab runs on now, None when it is down or its dockerd died."""
    try:
        state = json.loads(STATE.read_text())["engine"]
    except (OSError, ValueError, KeyError):
        return None
    undo = Footprint(**state["undo"]) if state["undo"] else None
    engine = Engine(state["socket"], state["pid"], undo)
    if engine.pid is not None and not _is_dockerd(engine.pid):
        return None
    return engine if engine.answers() else None


def remember(engine: Engine) -> None:
    write(STATE, json.dumps({"engine": asdict(engine)}, indent=2) + "\n", 0o600)


def ensure() -> Engine:
    """The engine to use, started if need be. Raises LabError when this machine can't run Docker."""
    engine = known()
    if engine:
        return engine
    bury()
    machine = Engine(None)
    if shutil.which("docker") and machine.answers():
        say("using the Docker engine that runs already")
        remember(machine)
        return machine
    return _start(Footprint.before())


def _start(undo: Footprint) -> Engine:
    if os.geteuid() != 0:
        raise LabError("the lab needs root to start its own Docker engine; there is none running")
    if not shutil.which("dockerd") or not shutil.which("docker"):
        raise LabError("the lab needs Docker; dockerd is not installed")
    folder = LAB_RUN / "engine"
    # A containerd.pid from an earlier life would make dockerd wait for a containerd that is gone.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "dockerd.log"
    argv = ["dockerd", "--host", f"unix://{folder}/docker.sock", "--data-root", str(CACHE / "engine")]
    argv += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "docker.pid")]
    argv += ["--bridge", "none", "--cgroup-parent", f"/{CGROUP}"]
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    engine = Engine(f"{folder}/docker.sock", process.pid, undo)
    remember(engine)
    try:
        wait_for("the outer dockerd", lambda: engine.answers() or process.poll() is not None, 60)
    except LabError:
        stop(engine)
        raise
    if process.poll() is not None:
        last = [line for line in log.read_text(errors="replace").splitlines() if line][-1:]
        stop(engine)
        raise LabError(f"this machine can't run Docker: {last[0] if last else 'dockerd ended'}")
    say(f"started dockerd (pid {process.pid}), data in {CACHE / 'engine'}")
    return engine


def stop(engine: Engine) -> None:
    """Stop the lab's own dockerd and undo what it did to the machine; leave any other alone."""
    if engine.pid is None:
        return
    if _is_dockerd(engine.pid):
        os.kill(engine.pid, signal.SIGTERM)
        end = time.monotonic() + 30
        while _is_dockerd(engine.pid) and time.monotonic() < end:
            time.sleep(0.1)
        if _is_dockerd(engine.pid):
            os.kill(engine.pid, signal.SIGKILL)
    if engine.undo:
        _undo(engine.undo)


def _undo(undo: Footprint) -> None:
    """Another lab that is up on this machine inherits what is left to undo: the first one saw the machine as it was."""
    heir = next(_other_labs(), None)
    if heir and not undo.docker:
        state = json.loads(heir.read_text())
        state["engine"]["undo"] = asdict(undo)
        write(heir, json.dumps(state, indent=2) + "\n", 0o600)
    undo.undo(alone=heir is None)


def _other_labs() -> Iterator[Path]:
    """The notes of those whose dockerd runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            argv = path.read_bytes().split(b"\0")
            if Path(os.fsdecode(argv[0])).name == "dockerd" and b"--exec-root" in argv:
                state = Path(os.fsdecode(argv[argv.index(b"--exec-root") + 1])).parents[1] / STATE.name
                if state != STATE and state.exists():
                    yield state


def bury() -> None:
    """After a dockerd of the lab's own died: end what it left running, and undo what it did."""
    undo = _unfinished_undo()
    if undo:
        _end_orphans()
        unmount(LAB_RUN / "engine")
        _undo(undo)


def unmount(folder: Path) -> None:
    """Unmount all that is mounted below `folder`, the last mounted first."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split()[4]
        if target.startswith(f"{folder}/"):
            run(("umount", "--lazy", target), check=False)


def _end_orphans() -> None:
    """Kill containerd, its shims, and all in the lab's control groups."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        orphans = set(_orphans())
        if not orphans:
            return
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _orphans() -> Iterator[int]:
    folder = f"{LAB_RUN / 'engine'}/".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            argv = path.read_bytes()
            if b"containerd" in argv.split(b"\0")[0] and folder in argv:
                yield int(path.parent.name)
    root = Path("/sys/fs/cgroup")
    for top in (root / CGROUP, *root.glob(f"*/{CGROUP}")):
        for procs in top.rglob("cgroup.procs"):
            with suppress(OSError):
                yield from (int(pid) for pid in procs.read_text().split() if _alive(int(pid)))


def _alive(pid: int) -> bool:
    """False for a zombie, which stays in its control group until its parent has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def _unfinished_undo() -> Optional[Footprint]:
    try:
        undo = json.loads(STATE.read_text())["engine"]["undo"]
    except (OSError, ValueError, KeyError):
        return None
    return Footprint(**undo) if undo else None


def _is_dockerd(pid: int) -> bool:
    """Whether `pid` is our dockerd and alive (a zombie has no command line)."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return argv[0].endswith(b"dockerd") and str(CACHE / "engine").encode() in argv
