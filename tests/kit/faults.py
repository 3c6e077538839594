"""What happens to a lab's hosts on bad days: each kind of fault, made and undone, from outside of the host.

off       killed with all that is on it, off for a while, and booted: a new boot id, the share mounted anew
fenced    off, and while it is a person says that it is gone; when it is back, a person's word takes it in (chaos.py)
frozen    nothing of it runs for a while; it knows nothing of that
no share, no laptop, no network    every packet from and to there is lost for a while, and nobody is told
keeper, runner, both, tick         SIGKILL to one of those that are there, or to both of one job
clock     its wall clock is set, by up to 30 days
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from intervals import Still
from labkit import engine as engines
from labkit import hosts as machines
from labkit.gpus import gpus_file
from labkit.inventory import HOSTS, STORE_ADDRESS, SUBNET
from labkit.shell import LabError

LASTING = ("off", "fenced", "frozen", "no share", "no laptop", "no network")
VICTIMS = ("keeper", "runner", "both", "tick")
KINDS = (*LASTING, *VICTIMS, "clock")

_CUT_FROM = {"no share": ("-s", STORE_ADDRESS), "no laptop": ("-s", f"{SUBNET}.0/29"), "no network": ("-i", "eth0")}
_MOUNT = "mountpoint -q /share || mount -t glusterfs $LAB_SHARE /share; mountpoint -q /share"
# Of the processes that are there within 15 s, one by the number that is given. A keeper or runner that has not signed
# yet is one of the calls that start them: those are ticks here.
_KILL = """
import glob, json, os, signal, sys, time
def argv(pid):
    try:
        return open(f"/proc/{pid}/cmdline").read().split("\\0")
    except OSError:
        return []
def victims(what):
    all_ = {int(p): argv(p) for p in os.listdir("/proc") if p.isdigit()}
    def signed(name):
        found = {}
        for path in glob.glob("/tmp/mlbox-*/*/" + name):
            try:
                pid = json.load(open(path))["pid"]
            except (OSError, ValueError):
                continue
            if any(".pyz" in word for word in all_.get(pid, ())):
                found[os.path.dirname(path)] = pid
        return found
    keepers, runners = signed("keeper.pid"), signed("attempt.pid")
    if what == "both":
        return sorted((keepers[folder], runners[folder]) for folder in keepers.keys() & runners.keys())
    if what != "tick":
        return sorted((pid,) for pid in (keepers if what == "keeper" else runners).values())
    busy = {p for p, a in all_.items() if a[3:4] and a[3].endswith(".pyz") and a[4] in ("tick", "host", "again")}
    return sorted((pid,) for pid in busy - set(keepers.values()) - set(runners.values()))
deadline = time.monotonic() + 15
while time.monotonic() < deadline:
    found = victims(sys.argv[1])
    if found:
        for pid in found[int(sys.argv[2]) % len(found)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        sys.exit(0)
    time.sleep(0.02)
sys.exit(1)
"""


class Machine:
    """A host of the lab, and the hand on its switch."""

    def __init__(self, name: str) -> None:
        self.host, self.stills = HOSTS[name], list[Still]()
        found = engines.known()
        assert found is not None, "the lab is not up: scripts/lab up"
        self._engine = found
        self._folder = gpus_file(name).parent  # /etc/mlbox-lab on the host

    def call(self, *command: str, user: str = "root", check: bool = True) -> subprocess.CompletedProcess[str]:
        words = ("exec", "--user", user, self.host.container, *command)
        return self._engine.docker(*words, check=check)

    def make(self, kind: str, seconds: float, number: int) -> bool:
        """One fault, from its beginning to its end; False where there was nobody to kill."""
        if kind == "off":
            self.switch_off(seconds)
            self.boot()
        elif kind == "frozen":
            self._freeze(seconds)
        elif kind in _CUT_FROM:
            with self._cut(*_CUT_FROM[kind]):
                time.sleep(seconds)
        elif kind == "clock":
            self.set_clock(number)
        else:
            return self.call("python3", "-c", _KILL, kind, str(number), check=False).returncode == 0
        return True

    def switch_off(self, seconds: float) -> None:
        """For so long nobody hears of it."""
        begin = time.monotonic()
        self._engine.docker("kill", self.host.container)
        time.sleep(seconds)
        self.stills.append(Still(self.host.name, begin, time.monotonic()))

    def boot(self) -> None:
        self._engine.docker("start", self.host.container)
        for _ in range(3):  # longer than for `up`: here nothing waits for it
            with suppress(LabError):
                machines.wait_ready(self._engine, self.host)
                break
        self.call("sh", "-c", _MOUNT)

    def _freeze(self, seconds: float) -> None:
        """By the kernel and not by `docker pause`, which gives up on a process that waits for the frozen share's
        client. It waits all the same."""
        begin, switches = time.monotonic(), list(self._switches())
        try:
            for switch in switches:
                switch.write_text("FROZEN" if switch.name == "freezer.state" else "1")
            time.sleep(seconds)
        finally:
            self.stills.append(Still(self.host.name, begin, time.monotonic()))
            for switch in switches:
                switch.write_text("THAWED" if switch.name == "freezer.state" else "0")

    def _switches(self) -> Iterator[Path]:
        """Of the containers that its own engine runs, and of all else: two control groups side by side."""
        form = ("inspect", "-f", "{{.State.Pid}}", self.host.container)
        groups = Path(f"/proc/{self._engine.docker(*form).stdout.strip()}/cgroup").read_text().splitlines()
        paths = {line.split(":")[1]: line.split(":", 2)[2] for line in groups}
        top, name = Path("/sys/fs/cgroup"), "cgroup.freeze"
        if "freezer" in paths:
            top, name = top / "freezer", "freezer.state"
        for path in (self.host.cgroup, paths.get("freezer", paths.get(""))):
            folder = top / str(path).lstrip("/")
            if folder.is_dir():
                yield folder / name

    @contextmanager
    def _cut(self, *which: str) -> Iterator[None]:
        """Both ways: an answer is lost as well as a question."""
        other = {"-s": "-d", "-i": "-o"}[which[0]]
        rules = (("INPUT", *which), ("OUTPUT", other, which[1]))
        try:
            for rule in rules:
                self.call("iptables", "-w", "-I", *rule, "-j", "DROP")
            yield
        finally:
            for rule in rules:
                self.call("iptables", "-w", "-D", *rule, "-j", "DROP", check=False)

    # ---- its clock

    def fit_clock(self) -> None:
        """From now on its new processes' clock is one that can be set."""
        source, library = Path(__file__).with_name("clock.c"), self._folder / "clock.so"
        subprocess.run(("gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)), check=True)
        self.set_clock(0)
        self.call("sh", "-c", "echo /etc/mlbox-lab/clock.so >/etc/ld.so.preload")

    def set_clock(self, seconds: int) -> None:
        """By so many seconds off."""
        partial = self._folder / ".clock"
        partial.write_text(f"{seconds}\n")
        partial.replace(self._folder / "clock")

    def unfit_clock(self) -> None:
        self.call("rm", "-f", "/etc/ld.so.preload")
        for name in ("clock", "clock.so"):  # the library stays mapped in whatever runs
            (self._folder / name).unlink(missing_ok=True)
