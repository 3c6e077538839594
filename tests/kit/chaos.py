"""Chaos: two people's many short jobs and a few sessions on three hosts to which everything happens, and the proof.

    plan     by a seed: what is submitted, and for each host which faults in which order (plans.py, faults.py)
    run      side by side: submissions, sessions, cancellations and retries from laptops; a lane of faults per host;
             on each host a tick of each person's every few seconds, as their crons would
    heal     all faults undone; until nothing waits and nothing runs
    prove    from what jobs recorded of themselves, from their logs, and from what is left on hosts (evidence.py,
             intervals.py)

`make chaos` is the long form, tests/lab/test_chaos.py the short one.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence
import faults
import intervals
from aftermath import traces
from intervals import Fenced, Run, Violation
from labbox import SESSION_IMAGE, Laptop, as_root, remove_root
from labkit import share
from plans import HOSTS, PEOPLE, SUBMITTERS, Batch, Fault, Plan, long, only_on
from report import Report

from mlbox.core import slots

_PACE = 4.0  # s between a host's ticks, beside those that submissions and ends cause


class Chaos:
    def __init__(self, planned: Plan, home: Path) -> None:
        self.plan, self.home, self.report = planned, home, Report(planned)
        # Never one that was there: hosts would see what is gone for a moment more.
        self.root = f"/share/chaos-{planned.seed}-{os.urandom(3).hex()}"
        self.machines = {host: faults.Machine(host) for host in HOSTS}
        self.acknowledged: dict[str, str] = {}  # whose each job is, the newest last
        self.cancelled: set[str] = set()
        self.seen: list[Run] = []  # sessions, as they were seen from outside
        self.fenced: list[Fenced] = []
        self.before: dict[str, list[str]] = {}
        self.left = deque(planned.batches)
        self.submitted, self.over = threading.Event(), threading.Event()

    def laptop(self, name: str, user: str = "ada") -> Laptop:
        made = Laptop(self.home / f"{name}-{user}", user=user)
        config = made.home / ".config/mlbox/config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        hosts = ", ".join(f'"{host}"' for host in HOSTS)
        config.write_text(f'hosts = [{hosts}]\nroot = "{self.root}"\n')
        return made

    # ---- run ---------------------------------------------------------------------------------------------

    def run(self) -> Report:
        begin = time.monotonic()
        try:
            self._prepare()
            with ThreadPoolExecutor(32) as pool:
                self._all_at_once(pool)
            self._prove()
        finally:
            self._tidy()
        self.report.seconds = time.monotonic() - begin
        return self.report

    def _all_at_once(self, pool: ThreadPoolExecutor) -> None:
        try:
            ticks = [pool.submit(self._ticks, host, user) for host in HOSTS for user in PEOPLE]
            submitters = [pool.submit(self._submit, number) for number in range(SUBMITTERS)]
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
        as_root(HOSTS[0], "install", "-d", "-m", "1777", "-o", PEOPLE[0], self.root)
        for host, machine in self.machines.items():
            for user in PEOPLE:
                machine.call("sh", "-c", "rm -rf ~/chaos && mkdir ~/chaos", user=user)
            machine.fit_clock()
            machine.set_clock(self.plan.clocks[host])
            self.before[host] = traces(host)
        for user, words in ((PEOPLE[0], ("init", *HOSTS)), *((user, ("cron", "install")) for user in PEOPLE)):
            done = self.laptop("admin", user).run(*words)
            assert done.code == 0, done.all

    def _submit(self, number: int) -> None:
        laptops = {user: self.laptop(f"submit{number}", user) for user in PEOPLE}
        with suppress(IndexError):
            while True:
                batch = self.left.popleft()
                time.sleep(batch.pause)
                self._put_in_line(laptops[batch.user], batch)

    def _put_in_line(self, laptop: Laptop, batch: Batch) -> None:
        """A host that does not answer may have taken it all the same."""
        for host in (batch.host, *HOSTS * 5):
            done = self._call(laptop, "submit", "--host", host, "--json", *batch.words)
            if done:
                self.acknowledged.update((job["id"], batch.user) for job in done["jobs"])
                self.report.jobs += batch.count
                return
        self.report.violations.append(Violation("no host takes a job", " ".join(batch.words[:8])))

    def _call(self, laptop: Laptop, *words: str) -> Any:
        """The facts; None where the call failed, as it may."""
        try:
            done = laptop.run(*words, timeout=600)
        except subprocess.TimeoutExpired:
            self.report.violations.append(Violation("a command did not end", str(words[:4])))
            return None
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
        laptops, dice = {user: self.laptop("minds", user) for user in PEOPLE}, random.Random(f"{self.plan.seed} minds")
        while not self.submitted.wait(dice.uniform(2, 4)):
            known = list(self.acknowledged)
            if not known:
                continue
            if dice.random() < 0.5:
                job = dice.choice(known[-8:])  # one that has hardly ended
                self.cancelled.add(job)
                self._call(laptops[self.acknowledged[job]], "cancel", job, "--host", dice.choice(HOSTS))
                self.report.acts["cancelled"] += 1
            else:  # refused where it has not ended
                job = dice.choice(known)
                user = self.acknowledged[job]
                again = self._call(laptops[user], "retry", job, "--host", dice.choice(HOSTS), "--json")
                if again:
                    self.acknowledged[again["id"]] = user
                    self.report.acts["retried"] += 1
                    self.report.jobs += 1

    def _lane(self, host: str) -> None:
        for fault in self.plan.lanes[host]:
            time.sleep(fault.pause)
            if fault.kind == "fenced":
                made = self._fence(host, fault)
            else:
                made = self.machines[host].make(fault.kind, fault.seconds, fault.number)
            self.report.faults[fault.kind if made else f"{fault.kind} in vain"] += 1

    def _fence(self, host: str, fault: Fault) -> bool:
        """All see that it is off, and say so, each of their own jobs; False where no other host could be told.

        One more job waits for it meanwhile."""
        machine, others = self.machines[host], [other for other in HOSTS if other != host]
        machine.switch_off(fault.seconds)
        try:
            told = [self._say(user, "fence", host, others * 2) for user in PEOPLE]
            begin, waits = time.monotonic(), only_on(host, PEOPLE[fault.number % len(PEOPLE)])
            if any(told):
                self._put_in_line(self.laptop(f"waits-{host}", waits.user), waits)
        finally:
            machine.boot()
        for user in PEOPLE:
            self._tick(host, user)
        if any(told):
            self.fenced.append(Fenced(host, begin, time.monotonic()))
        if not self._say(PEOPLE[0], "resume", host, [host, *others] * 5):
            self.report.violations.append(Violation("a fenced host can't be taken back", host))
        return any(told)

    def _say(self, user: str, what: str, host: str, asked: list[str]) -> bool:
        laptop = self.laptop(f"person-{host}", user)
        words = ("host", what, host, *(("-y",) if what == "fence" else ()), "--json")
        return any(self._call(laptop, *words, "--host", other) for other in asked)

    def _ticks(self, host: str, user: str) -> None:
        while not self.over.wait(_PACE):
            self._tick(host, user)

    def _tick(self, host: str, user: str) -> None:
        """What a cron there calls each minute; more often, and not while the host is off or frozen."""
        script = f"exec python3 -I -S $(ls -t ~/.cache/mlbox/mlbox-*.pyz | head -1) tick --root {self.root}"
        call = ("env", "-i", f"HOME=/home/{user}", f"LOGNAME={user}", "PATH=/usr/bin:/bin", "sh", "-c", script)
        done = self.machines[host].call(*call, user=user, check=False)
        if "Traceback" in done.stderr:
            self.report.violations.append(Violation("a traceback", f"a tick on {host}: {done.stderr[-2000:]}"))

    # ---- heal --------------------------------------------------------------------------------------------

    @property
    def users(self) -> Path:
        """As this machine's own mount shows them."""
        return share.SHARE / self.root.removeprefix("/share/") / "users"

    def _await_the_end(self) -> None:
        """A session whose owner was not told that it came up is ended when it is seen."""
        laptop, deadline = self.laptop("last"), time.monotonic() + self.plan.patience
        while any(evidence.unfinished(self.users)) and time.monotonic() < deadline:
            listed = self._call(laptop, "session", "list", *HOSTS, "--json") or ()
            for session in (one for one in listed if "error" not in one):
                self._call(laptop, "session", "shutdown", str(session["id"]), "--host", str(session["host"]))
            time.sleep(1)

    # ---- prove -------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        recorded = [run for machine in self.machines.values() for run in evidence.recorded(machine)]
        logs = evidence.logs(self.users)
        seen = [self._numbered(session, logs[session.job][1]) for session in self.seen if session.job in logs]
        runs = [*map(self._while_up, seen), *recorded]
        found = [*intervals.of_runs(runs, evidence.memory()), *intervals.of_fenced(recorded, self.fenced)]
        for job in sorted({*self.acknowledged, *logs, *(session.job for session in self.seen)}):
            if job not in logs:
                found.append(Violation("a job is lost", job))
                continue
            folder, reading = logs[job]
            asked, its = evidence.asked(folder, job in self.cancelled), [run for run in runs if run.job == job]
            found += intervals.of_log(job, reading, asked, its)
            events = list(slots.fold(reading).events.values())
            self.report.attempts += sum(event.get("event") == "claimed" for event in events)
            self.report.sessions += not asked.recorded
            self.report.ends[str(events[-1].get("event")) if events else "nowhere"] += 1
        found += [Violation("a hint is left", str(path)) for path in evidence.unfinished(self.users)]
        logs_of_keepers = ("find", self.root, "-name", "keeper.log", "-exec", "grep", "-l", "Traceback", "{}", "+")
        found += [Violation("a traceback", path) for path in as_root(HOSTS[0], *logs_of_keepers, check=False).split()]
        for host in HOSTS:
            # Docker makes what an image declares before the container: one that was switched off in between keeps it.
            nobodys = as_root(host, "docker", "volume", "ls", "-qf", "dangling=true", check=False).split()
            new = [trace for trace in traces(host) if trace not in (*self.before[host], *nobodys)]
            found += [Violation("something is left", f"on {host}: {trace}") for trace in new]
        self.report.violations += found

    def _numbered(self, session: Run, reading: slots.Reading) -> Run:
        """With its attempt, which nobody was told: another may have been lost with its host before it was up."""
        events = slots.fold(reading).events.values()
        there = [e["attempt"] for e in events if e.get("event") == "claimed" and e.get("host") == session.host]
        return replace(session, attempt=there[-1]) if there else session

    def _while_up(self, session: Run) -> Run:
        """It was there from its start to its owner's last word, or until its host was switched off."""
        begins = [still.begin for still in self.machines[session.host].stills if still.begin > session.start]
        return replace(session, last=min([session.last, *begins]))

    def _tidy(self) -> None:
        for user in PEOPLE:
            self.laptop("admin", user).run("cron", "remove")
        for machine in self.machines.values():
            machine.unfit_clock()
            machine.call("rm", "-rf", *(f"/home/{user}/chaos" for user in PEOPLE))
        if not self.report.violations:
            remove_root(HOSTS[0], self.root)


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
