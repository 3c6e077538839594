"""A queue on real hosts: a ROOT on their share, and the people who use it, each with a laptop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labbox import Laptop, Result, as_root, left_behind, remove_root, ssh
from labkit import gpus as false_gpus
from outage import await_share

Json = dict[str, Any]
HOSTS_OF_LAB = ("gpu1", "gpu2")
_TRAIN = """
import ctypes, os
nvml = ctypes.CDLL("libnvidia-ml.so.1"); nvml.nvmlInit_v2()
count = ctypes.c_uint(); nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
for i in range(count.value):
    d, n = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(d)); nvml.nvmlDeviceGetUUID(d, n, 96)
    print("GPU", n.value.decode(), flush=True)
print("from", os.uname().nodename, os.getcwd())
"""


class Lab:
    """One person's view of a lab: a laptop that knows its ROOT and its hosts, as that person reaches them."""

    def __init__(self, laptop: Laptop, root: str, hosts: tuple[str, ...] = HOSTS_OF_LAB, user: str = "ada") -> None:
        self.laptop, self.root, self.hosts, self.user = laptop, root, hosts, user
        self.others: list[Lab] = []
        self.asks(*hosts)
        self.code = laptop.home / "project"
        self.code.mkdir(exist_ok=True)
        (self.code / "train.py").write_text(_TRAIN)

    def another_laptop(self, user: str = "ada") -> Lab:
        """One more that knows this ROOT: the same person's, or a colleague's, to whom the same names of hosts lead."""
        laptop = Laptop(self.laptop.home.with_name(f"laptop{len(self.others)}"), user=user if user != self.user else "")
        if user != self.user:
            self.ssh(self.hosts[0], f"chmod 1777 {self.root}")
            self.run("init", *self.hosts)
        self.others.append(Lab(laptop, self.root, self.hosts, user))
        return self.others[-1]

    def asks(self, *hosts: str) -> None:
        """Its laptop's config.toml, from now on."""
        config = self.laptop.home / ".config/mlbox/config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(f"hosts = {json.dumps(hosts)}\nroot = {json.dumps(self.root)}\n")

    def ssh(self, host: str, command: str) -> str:
        return ssh(f"{host}-{self.user}", command)

    def rules(self, text: str) -> None:
        """lab.yaml, from now on."""
        self.ssh(self.hosts[0], f"cat >{self.root}/lab.yaml <<'EOF'\n{text}\nEOF")

    def resume_silently(self) -> None:
        """The default queue, with no host told: what waits there is cron's, or whoever looks next."""
        self.ssh(self.hosts[0], f"rm {self.root}/paused/default")

    def run(self, *words: str, code: int = 0, **kind: Any) -> Result:
        done = self.laptop.run(*words, **kind)
        assert done.code == code, done.all
        return done

    def submit(self, *words: str) -> list[Json]:
        done = self.run("submit", "--json", "--code", str(self.code), *words)
        reply = done.json()
        assert isinstance(reply, dict)
        return list(reply["jobs"])

    def one(self, *words: str) -> str:
        return str(self.submit(*words)[0]["id"])

    def show(self, job: str) -> Json:
        found = self.run("show", job, "--json").json()
        assert isinstance(found, dict)
        return found

    def state(self, job: str) -> str:
        return str(self.show(job)["job"]["state"])

    def until(self, job: str, *states: str, timeout: float = 90) -> Json:
        """Its summary, once it is in one of these states."""
        found: Json = awaited(lambda: next((j for j in [self.show(job)["job"]] if j["state"] in states), None), timeout)
        return found

    def output(self, job: str) -> str:
        return self.run("logs", job).out

    def jobs(self, *words: str) -> list[Json]:
        found = self.run("jobs", "--json", *words).json()
        assert isinstance(found, list)
        return found

    def running(self) -> list[Json]:
        return [job for job in self.jobs() if job["state"] == "started"]

    def leave(self) -> None:
        """This person's jobs and sessions end, and nothing of them is left on any host."""
        try:
            for session in self.laptop.sessions(*self.hosts):
                self.run("session", "shutdown", str(session["id"]))
            live = [job["id"] for job in self.jobs("-n", "0")]
            if live:
                self.run("cancel", *live)
                awaited(lambda: self.jobs("-n", "0") == [])
            for host in self.hosts:  # a keeper's last act is a tick; its folder goes before
                awaited(lambda h=host: left_behind(f"{h}-{self.user}") == [])  # type: ignore[misc]
        finally:
            self.laptop.close()


def awaited(look: Callable[[], Any], timeout: float = 90) -> Any:
    """What `look` finds in the end. Another host's work has no event here, so it is looked for."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.2)


@contextmanager
def opened(home: Path, root: str, hosts: tuple[str, ...] = HOSTS_OF_LAB) -> Iterator[Lab]:
    """A new lab; afterwards its hosts are as they were."""
    for host in hosts:
        await_share(host)
    as_root(hosts[0], "rm", "-rf", root)
    made = Lab(Laptop(home), root, hosts)
    made.run("init", *hosts)
    yield made
    try:
        for host in hosts:
            false_gpus.set_gpus(host, false_gpus.default_gpus(host))
            for user in {person.user for person in (made, *made.others)}:
                ssh(f"{host}-{user}", "crontab -r 2>/dev/null; true")
        for person in (*made.others, made):
            person.leave()
    finally:
        remove_root(hosts[0], root)
