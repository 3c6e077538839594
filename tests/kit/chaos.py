"""Chaos: many short jobs and a few sessions on three hosts to which everything happens, and the proof afterwards.

    plan     by a seed: what is submitted, and for each host which faults in which order (plans.py, faults.py)
    run      side by side: submissions, sessions, cancellations and retries from laptops; a lane of faults per host;
             on each host a tick every few seconds, as its cron would
    heal     all faults undone; until nothing waits and nothing runs
    prove    from what jobs recorded of themselves, from their logs, and from what is left on hosts (intervals.py)

`make chaos` is the long form, tests/lab/test_chaos.py the short one.
"""

from __future__ import annotations

import argparse
import glob
import random
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults
import intervals
from aftermath import traces
from intervals import Asked, Run, Violation
from labbox import SESSION_IMAGE, Laptop, as_root
from labkit import share
from labkit.gpus import read_gpus
from plans import HOSTS, Batch, Plan, long
from report import Report

from mlbox.core import ids, slots
from mlbox.host.files import read_json
from mlbox.host.slots import Log

Json = dict[str, Any]
_SUBMITTERS = 6
_PACE = 4.0  # s between a host's ticks, beside those that submissions and ends cause


class Chaos:
    def __init__(self, planned: Plan, home: Path) -> None:
        self.plan, self.home, self.report = planned, home, Report(planned)
        self.root = f"/share/chaos-{planned.seed}"
        self.machines = {host: faults.Machine(host) for host in HOSTS}
        self.acknowledged: dict[str, None] = {}  # jobs, the newest last
        self.cancelled: set[str] = set()
        self.seen: list[Run] = []  # sessions, as they were seen from outside
        self.before: dict[str, list[str]] = {}
        self.left = deque(planned.batches)
        self.submitted, self.over = threading.Event(), threading.Event()

    def laptop(self, name: str) -> Laptop:
        made = Laptop(self.home / name)
        config = made.home / ".config/mlbox/config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        hosts = ", ".join(f'"{host}"' for host in HOSTS)
        config.write_text(f'hosts = [{hosts}]\nroot = "{self.root}"\n')
        return made

    # ---- run ---------------------------------------------------------------------------------------------

    def run(self) -> Report:
        begin = time.monotonic()
        self._prepare()
        try:
            with ThreadPoolExecutor(32) as pool:
                self._all_at_once(pool)
            self._prove()
        finally:
            self._tidy()
        self.report.seconds = time.monotonic() - begin
        return self.report

    def _all_at_once(self, pool: ThreadPoolExecutor) -> None:
        try:
            ticks = [pool.submit(self._tick, host) for host in HOSTS]
            submitters = [pool.submit(self._submit, number) for number in range(_SUBMITTERS)]
            others = [pool.submit(act) for act in (self._hold_sessions, self._change_minds)]
            others += [pool.submit(self._lane, host) for host in HOSTS]
            for submitter in submitters:
                submitter.result()
            self.submitted.set()
            for other in others:
                other.result()
            self._await_the_end()
        finally:
            self.submitted.set()
            self.over.set()
        for tick in ticks:
            tick.result()

    def _prepare(self) -> None:
        as_root(HOSTS[0], "rm", "-rf", self.root)
        for host, machine in self.machines.items():
            machine.call("sh", "-c", "rm -rf ~/chaos && mkdir ~/chaos", user="ada")
            machine.fit_clock()
            machine.set_clock(self.plan.clocks[host])
            self.before[host] = traces(host)
        laptop = self.laptop("admin")
        for words in (("init", *HOSTS), ("cron", "install")):
            done = laptop.run(*words)
            assert done.code == 0, done.all

    def _submit(self, number: int) -> None:
        laptop = self.laptop(f"submit{number}")
        with suppress(IndexError):
            while True:
                self._put_in_line(laptop, self.left.popleft())

    def _put_in_line(self, laptop: Laptop, batch: Batch) -> None:
        """A host that does not answer may have taken it all the same."""
        for host in (batch.host, *HOSTS * 5):
            done = self._call(laptop, "submit", "--host", host, "--json", *batch.words)
            if done:
                self.acknowledged.update((job["id"], None) for job in done["jobs"])
                self.report.jobs += batch.count
                return
        self.report.violations.append(Violation("no host takes a job", " ".join(batch.words[:8])))

    def _call(self, laptop: Laptop, *words: str) -> Any:
        """The facts; None where the call failed, as it may."""
        done = laptop.run(*words, timeout=600)
        if "Traceback" in done.all or "a bug" in done.all:
            self.report.violations.append(Violation("a traceback", f"{words[:4]}: {done.all[-2000:]}"))
        return done.json() if done.code == 0 and "--json" in words else None

    def _hold_sessions(self) -> None:
        laptop, dice = self.laptop("sessions"), random.Random(f"{self.plan.seed} sessions")
        for number in range(self.plan.sessions):
            words = ("--name", f"s{number}", "--gpus", "1", "--image", SESSION_IMAGE, "--no-jupyter", "--no-vscode")
            found = self._call(laptop, "session", "--queue", "default", *words, "--detach", "--json")
            if not found:
                self.report.acts["sessions that did not come up"] += 1
                continue
            start = time.monotonic()
            time.sleep(dice.uniform(1, 5))
            gpus = tuple(found["gpus"])
            self.seen.append(Run(found["id"], 1, found["host"], gpus, 0, start, time.monotonic(), ended=False))
            self.report.acts["sessions held"] += 1
            self._call(laptop, "session", "shutdown", found["id"], "--host", found["host"])

    def _change_minds(self) -> None:
        laptop, dice = self.laptop("minds"), random.Random(f"{self.plan.seed} minds")
        while not self.submitted.wait(dice.uniform(2, 4)):
            known = list(self.acknowledged)
            if not known:
                continue
            if dice.random() < 0.5:
                job = dice.choice(known[-8:])  # one that has hardly ended
                self.cancelled.add(job)
                self._call(laptop, "cancel", job, "--host", dice.choice(HOSTS))
                self.report.acts["cancelled"] += 1
            else:  # refused where it has not ended
                job = dice.choice(known)
                again = self._call(laptop, "retry", job, "--host", dice.choice(HOSTS), "--json")
                if again:
                    self.acknowledged[again["id"]] = None
                    self.report.acts["retried"] += 1
                    self.report.jobs += 1

    def _lane(self, host: str) -> None:
        for fault in self.plan.lanes[host]:
            time.sleep(fault.pause)
            made = self.machines[host].make(fault.kind, fault.seconds, fault.number)
            self.report.faults[fault.kind if made else "without a victim"] += 1

    def _tick(self, host: str) -> None:
        """What the host's cron calls each minute; more often, and not while it is off or frozen."""
        script = f"exec python3 -I -S $(ls -t ~/.cache/mlbox/mlbox-*.pyz | head -1) tick --root {self.root}"
        while not self.over.wait(_PACE):
            call = ("env", "-i", "HOME=/home/ada", "LOGNAME=ada", "PATH=/usr/bin:/bin", "sh", "-c", script)
            done = self.machines[host].call(*call, user="ada", check=False)
            if "Traceback" in done.stderr:
                self.report.violations.append(Violation("a traceback", f"a tick on {host}: {done.stderr[-2000:]}"))

    # ---- heal --------------------------------------------------------------------------------------------

    @property
    def mine(self) -> Path:
        """The user's part of ROOT, as this machine's own mount shows it."""
        return share.SHARE / self.root.removeprefix("/share/") / "users/ada"

    def _await_the_end(self) -> None:
        """A session whose owner was not told that it came up is ended when it is seen."""
        laptop, deadline = self.laptop("last"), time.monotonic() + self.plan.patience
        while any(self._unfinished()) and time.monotonic() < deadline:
            for session in self._call(laptop, "session", "list", *HOSTS, "--json") or ():
                self._call(laptop, "session", "shutdown", str(session["id"]), "--host", str(session["host"]))
            time.sleep(1)

    def _unfinished(self) -> Iterator[Path]:
        """Hints of what waits and runs."""
        for pattern in ("ready/**/*", "on/*/live/*", "on/*/making/*"):
            # Not Path.glob, for which a folder that goes meanwhile is an error.
            found = map(Path, glob.iglob(str(self.mine / pattern), recursive=True))
            yield from (path for path in found if ids.is_ulid(path.name))

    # ---- prove -------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        runs = [*map(self._while_up, self.seen), *(run for host in HOSTS for run in self._runs(host))]
        # As a GPU's label rounds it: 24564 MiB are sold, and shared, as 24 GiB.
        memory = {gpu.uuid: round(gpu.memory / 1024) << 10 for host in HOSTS for gpu in read_gpus(host)}
        found = intervals.of_runs(runs, memory)
        logs = {path.parent.name: Log(path).read() for path in self.mine.glob("jobs/*/*/ev")}
        for job in sorted({*self.acknowledged, *logs}):
            if job not in logs:
                found.append(Violation("a job is lost", job))
                continue
            asked, its = self._asked(job), [run for run in runs if run.job == job]
            found += intervals.of_log(job, logs[job], asked, its)
            events = list(slots.fold(logs[job]).events.values())
            self.report.attempts += sum(event.get("event") == "claimed" for event in events)
            self.report.sessions += not asked.recorded
            self.report.ends[str(events[-1].get("event")) if events else "nowhere"] += 1
        found += [Violation("a hint is left", str(path)) for path in self._unfinished()]
        logs_of_keepers = ("find", self.root, "-name", "keeper.log", "-exec", "grep", "-l", "Traceback", "{}", "+")
        found += [Violation("a traceback", path) for path in as_root(HOSTS[0], *logs_of_keepers, check=False).split()]
        for host in HOSTS:
            new = [trace for trace in traces(host) if trace not in self.before[host]]
            found += [Violation("something is left", f"on {host}: {trace}") for trace in new]
        self.report.violations += found

    def _while_up(self, session: Run) -> Run:
        """It was there from its start to its owner's last word, or until its host was switched off."""
        begins = [still.begin for still in self.machines[session.host].stills if still.begin > session.start]
        return replace(session, last=min([session.last, *begins]))

    def _asked(self, job: str) -> Asked:
        """By its spec: also of one that was taken while its acknowledgement was lost."""
        spec = read_json(self.mine / "jobs" / ids.shard(job) / job / "spec.json") or {}
        if not spec.get("command"):
            return Asked(1, 0, frozenset(["finished", "failed", "cancelled"]), recorded=False)
        part, resources = int(spec["command"][-2]), spec["resources"]
        ends = {"failed"} if resources["time_limit"] else {"finished"}
        ends |= {"failed"} if spec["on_host_loss"] == "hold" else set()
        ends |= {"cancelled"} if job in self.cancelled else set()
        return Asked(1 if part else int(resources["gpus"]), part, frozenset(ends))

    def _runs(self, host: str) -> Iterator[Run]:
        script = 'cd ~/chaos && for f in *; do echo "file $f"; cat $f; done'
        text = self.machines[host].call("sh", "-c", script, user="ada").stdout
        for part in text.split("file ")[1:]:
            name, *lines = part.split("\n")
            words = [line.split() for line in lines if line]
            if not words:
                continue  # killed before its first word
            job, attempt = name.split(".")[:2]
            gpus = () if words[0][2] == "void" else tuple(words[0][2].split(","))
            times = [float(word[1]) for word in words]
            run = Run(job, int(attempt), host, gpus, int(words[0][3]), times[0], times[-1], words[-1][0] == "end")
            yield intervals.bounded(run, self.machines[host].stills)

    def _tidy(self) -> None:
        with suppress(AssertionError):
            self.laptop("admin").run("cron", "remove")
        for machine in self.machines.values():
            machine.unfit_clock()
            machine.call("rm", "-rf", "/home/ada/chaos")
        if not self.report.violations:
            as_root(HOSTS[0], "rm", "-rf", self.root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description="The long form of the chaos test, in a lab that is up.")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 16))
    arguments = parser.parse_args()
    print(f"chaos with seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as home:
        report = Chaos(long(arguments.seed, arguments.jobs), Path(home)).run()
    print(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
