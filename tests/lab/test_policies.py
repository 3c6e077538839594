"""Who runs when, on real hosts: shares, preemption, fair share, limits, order, back-fill, and GPUs that fail.

Where a limit of the whole lab is looked at, jobs start from one host's tick at a time: two ticks that read at the same
moment may both find the last place free.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from labbox import LAB, PYTHON_IMAGE, as_root, ssh
from labkit import gpus as false_gpus
from labkit.inventory import HOSTS
from queuelab import Lab, awaited

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

Json = dict[str, Any]
A100 = ("--gpus", "A100", "--on", "gpu1")  # the lab has one
FOR_EVER = ("--", "sleep", "1000")


def started(lab: Lab, job: str) -> float:
    """When its last attempt was claimed, by the one clock that these hosts share."""
    return float([event["at"] for event in lab.show(job)["events"] if event["event"] == "claimed"][-1])


def why(lab: Lab, job: str) -> str:
    return " ".join(lab.show(job)["waits"].values())


def says(lab: Lab, job: str, words: str) -> None:
    """In the end: one host sees a second later what another one says of it."""
    awaited(lambda: words in why(lab, job))


def test_shares_of_one_gpu(lab: Lab) -> None:
    first, second, third = (lab.one(*A100, "--gpu-share", "32G", *FOR_EVER) for _ in range(3))
    whole = lab.one(*A100, *FOR_EVER)
    gpus = [lab.until(job, "started")["gpus"] for job in (first, second)]
    assert gpus == [[HOSTS["gpu1"].gpu_uuid(3)]] * 2
    assert "no GPU has so much left" in why(lab, third) and "GPU 3 held by ada's job" in why(lab, third)
    assert "asks for 1 A100 GPU, 0 are free" in why(lab, whole)
    lab.run("cancel", first)
    lab.until(third, "started")
    lab.run("cancel", second)
    lab.until(second, "cancelled")
    assert lab.state(whole) == "submitted"  # one share is left on it
    lab.run("cancel", third)
    lab.until(whole, "started")


PREEMPTION = """
queues:
  default: {preemptible: true}
  urgent: {priority: 10, preempts: true}
"""
STUBBORN = "trap 'echo saw TERM' TERM; echo up; while [ $MLBOX_ATTEMPT = 1 ]; do sleep 0.1; done"


def test_preemption(lab: Lab) -> None:
    """SIGTERM, the grace time, SIGKILL; the other one runs; the victim runs again by itself."""
    lab.rules(PREEMPTION)
    victim = lab.one(*A100, "--image", PYTHON_IMAGE, "--grace", "2s", "--", "sh", "-c", STUBBORN)
    awaited(lambda: "up" in lab.output(victim))
    said = lab.run("submit", "--no-code", "--queue", "urgent", *A100, "--", "sh", "-c", "sleep 1")
    assert "starts when room is made by the end of ada's job" in said.out
    urgent = re.findall("01[0-9A-Z]{24}", said.out)[0]
    lab.until(urgent, "finished")
    lab.until(victim, "finished")
    events = lab.show(victim)["events"]
    assert [event["event"] for event in events] == [
        "submitted", "claimed", "started", "preempt_requested", "preempted", "claimed", "started", "finished",
    ]  # fmt: skip
    asked, gone, again = (events[n]["at"] for n in (3, 4, 5))
    assert gone - asked >= 2 and gone <= started(lab, urgent) < again
    assert lab.run("logs", victim, "--attempt", "1").out.splitlines() == ["up", "saw TERM"]


def test_fair_share_between_two_people(lab: Lab) -> None:
    """Who used less, of what still counts, goes first; the other's tick leaves the GPU to the owner's own."""
    bob = lab.another_laptop("bob")
    lab.rules("fair_share: {half_life: 1d}")
    bob.run("queue", "process")
    hours = {lab: (100, 10 * 86400), bob: (1, 0)}  # GPU-hours used, and how many seconds ago: 0.1 hours of ada's count
    for person, (used, ago) in hours.items():
        usage = json.dumps({"seconds": used * 3600, "at": time.time() - ago})
        person.ssh("gpu1", f"echo '{usage}' >{lab.root}/users/{person.user}/on/gpu1/usage.json")
    first = lab.one(*A100, *FOR_EVER)
    theirs = bob.one(*A100, *FOR_EVER)
    mine = lab.one(*A100, *FOR_EVER)
    lab.until(first, "started")
    lab.run("cancel", first)
    lab.until(mine, "started")  # although bob's waits longer
    usage = json.dumps({"seconds": 3600 * 3, "at": time.time()})
    lab.ssh("gpu1", f"echo '{usage}' >{lab.root}/users/ada/on/gpu1/usage.json")
    last = lab.one(*A100, *FOR_EVER)
    lab.run("cancel", mine)
    lab.until(mine, "cancelled")
    lab.run("queue", "process", "--host", "gpu1")
    assert lab.state(last) == "submitted" and "kept for bob's job" in why(lab, last)
    bob.run("queue", "process", "--host", "gpu1")
    bob.until(theirs, "started")


LIMITS = """
queues:
  default: {max_running_per_user: 2}
  narrow: {max_running: 2}
  free: {}
users:
  ada: {max_gpus: 3}
"""


def test_limits_per_user_and_per_queue_hold_across_hosts(lab: Lab) -> None:
    bob = lab.another_laptop("bob")
    lab.rules(LIMITS)
    bob.run("queue", "process")
    none = ("--gpus", "0", "--cpus", "0")
    for host in ("gpu1", "gpu2"):
        lab.until(lab.one(*none, "--on", host, *FOR_EVER), "started")
    third = lab.one(*none, *FOR_EVER)
    assert "your limit in queue default: 2 running" in why(lab, third)
    bob.until(bob.one(*none, *FOR_EVER), "started")  # it is ada's limit

    lab.until(lab.one(*none, "--queue", "narrow", "--on", "gpu1", *FOR_EVER), "started")
    bob.until(bob.one(*none, "--queue", "narrow", "--on", "gpu2", *FOR_EVER), "started")
    full = lab.one(*none, "--queue", "narrow", *FOR_EVER)
    assert "queue narrow is full: 2 of 2 running" in why(lab, full)

    many = ("--queue", "free", "--cpus", "0")
    lab.until(lab.one(*many, "--gpus", "2", "--on", "gpu2", *FOR_EVER), "started")
    greedy = lab.one(*many, "--gpus", "2", "--on", "gpu1", *FOR_EVER)
    assert "3 GPUs, you hold 2 and this asks for 2" in why(lab, greedy)
    lab.until(lab.one(*many, "--gpus", "1", "--on", "gpu1", *FOR_EVER), "started")
    assert {lab.state(job) for job in (third, full, greedy)} == {"submitted"}


def test_priority_and_queues_in_their_order_on_each_host(lab: Lab) -> None:
    lab.rules("""
queues: {default: {}, night: {}}
hosts:
  gpu1: {queues: [night, default]}
  gpu2: {queues: [default]}
""")
    lab.run("host", "drain", "gpu1")
    plain = lab.one(*A100, "--", "true")
    prior = lab.one(*A100, "--priority", "5", "--", "true")
    night = lab.one(*A100, "--queue", "night", "--", "true")
    nowhere = lab.run("submit", "--no-code", "--queue", "night", "--gpus", "H100", "--", "true", code=3)
    assert "what would fit" in nowhere.err  # gpu2, which has them, serves no night
    lab.run("host", "resume", "gpu1")
    lab.run("queue", "process", "--host", "gpu1")
    for job in (night, prior, plain):
        lab.until(job, "finished")
    assert started(lab, night) < started(lab, prior) < started(lab, plain)


def test_back_fill_never_delays_the_first_in_line(lab: Lab) -> None:
    two = ("--on", "gpu2", "--cpus", "0")  # it has two GPUs
    running = lab.one(*two, "--gpus", "1", "--time-limit", "1h", *FOR_EVER)
    lab.until(running, "started")
    big = lab.one(*two, "--gpus", "2", *FOR_EVER)
    endless = lab.one(*two, "--gpus", "1", *FOR_EVER)
    short = lab.one(*two, "--gpus", "1", "--time-limit", "10m", *FOR_EVER)
    lab.until(short, "started")
    assert "asks for 2 GPUs" in why(lab, big) and "room is expected in" in why(lab, big)
    lab.run("cancel", short)
    lab.until(short, "cancelled")
    lab.run("queue", "process", "--host", "gpu2")
    assert "kept for ada's job" in why(lab, endless) and "could go first" in why(lab, endless)
    lab.run("cancel", running)
    lab.until(big, "started")
    assert lab.state(endless) == "submitted"


def test_a_gpu_that_is_lost_is_taken_out_and_said(lab: Lab) -> None:
    """Of the jobs that run, those elsewhere go on; nobody else is put on it."""
    jobs = [lab.one("--gpus", "1", "--on", "gpu2", "--cpus", "0", *FOR_EVER) for _ in range(2)]
    uuids = [lab.until(job, "started")["gpus"][0] for job in jobs]
    lost = HOSTS["gpu2"].gpu_uuid(0)
    subprocess.run((sys.executable, LAB, "gpu", "gpu2", "--lost", "0"), check=True, stdout=subprocess.DEVNULL)
    status = lab.run("status").out
    assert re.search(r"^0 .*out of order: GPU is lost$", status, re.MULTILINE)
    on_lost, other = (jobs[uuids.index(lost)], jobs[1 - uuids.index(lost)])
    lab.run("cancel", on_lost)
    lab.until(on_lost, "cancelled")
    waits = lab.one("--gpus", "1", "--on", "gpu2", *FOR_EVER)
    says(lab, waits, "GPU 0 out of order: GPU is lost")
    assert lab.state(other) == "started"
    false_gpus.set_gpus("gpu2", false_gpus.default_gpus("gpu2"))  # it was seated anew
    lab.run("queue", "process")
    assert lab.until(waits, "started")["gpus"] == [lost]


def test_a_driver_that_fails_starts_nothing_on_gpus(lab: Lab) -> None:
    running = lab.one("--gpus", "1", "--on", "gpu2", *FOR_EVER)
    lab.until(running, "started")
    false_gpus.set_gpus("gpu2", false_gpus.default_gpus("gpu2"), fail=999)
    waits = lab.one("--gpus", "1", "--on", "gpu2", "--", "true")
    unsaid = lab.one("--on", "gpu2", "--", "true")
    for job in (waits, unsaid):
        says(lab, job, "out of order: Unknown Error")
        assert lab.state(job) == "submitted"
    assert "Unknown Error" in lab.run("status").out
    lab.until(lab.one("--gpus", "1", "--on", "gpu1", "--", "true"), "finished")
    lab.until(lab.one("--gpus", "0", "--on", "gpu2", "--", "true"), "finished")
    assert lab.state(running) == "started"
    false_gpus.set_gpus("gpu2", false_gpus.default_gpus("gpu2"))
    lab.run("queue", "process")
    for job in (waits, unsaid):
        lab.until(job, "finished")


# ---- out of memory --------------------------------------------------------------------------------------------

EAT = "eaten = bytearray(400 << 20); print(len(eaten))"


def test_a_container_that_takes_more_memory_than_it_may(lab: Lab) -> None:
    limit = "--memory=64m --memory-swap=64m"
    job = lab.one("--gpus", "0", "--image", PYTHON_IMAGE, "--engine-args", limit, "--", "python3", "-c", EAT)
    ended = lab.until(job, "failed", "finished")
    assert (ended["state"], ended["why"]) == ("failed", "killed for want of memory")


def test_a_process_that_takes_more_memory_than_it_may(lab: Lab) -> None:
    """An administrator's control group; the process runtime sets no limit of its own."""
    waits = f"import os, time\nprint(os.getpid(), flush=True)\nwhile not os.path.exists('go'): time.sleep(0.1)\n{EAT}"
    job = lab.one("--gpus", "0", "--on", "gpu1", "--", "python3", "-c", waits)
    pid = awaited(lambda: lab.output(job).strip() if lab.until(job, "started") else "")
    group = "/sys/fs/cgroup/memory/mlbox-lab/oom"
    limit = f"mkdir -p {group}; echo 64M >{group}/memory.limit_in_bytes; echo {pid} >{group}/cgroup.procs"
    as_root("gpu1", "sh", "-c", limit)
    try:
        lab.ssh("gpu1", f"touch {lab.show(job)['folder']}/attempts/1/work/go")
        assert lab.until(job, "failed", "finished")["why"] == "killed for want of memory"
    finally:
        as_root("gpu1", "rmdir", group, check=False)


def test_engine_arguments_that_the_lab_allows(lab: Lab) -> None:
    shared = ("--image", PYTHON_IMAGE, "--gpus", "0", "--on", "gpu1", "--engine-args=--ipc=host")
    refused = lab.run("submit", "--no-code", *shared, "--", "true", code=2)
    assert "--ipc=host' is not allowed" in refused.err
    lab.rules("allow: {engine_args: [--ipc]}")
    job = lab.one(*shared, "--", "readlink", "/proc/self/ns/ipc")
    lab.until(job, "finished")
    assert lab.output(job) == ssh("gpu1", "readlink /proc/self/ns/ipc")
