"""Who works with one lab: one account on several laptops, several users with a cron each; and what cron does."""

from __future__ import annotations

import re

import pytest
from labbox import ssh
from queuelab import Lab, awaited

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

NONE = ("--gpus", "0", "--runtime", "process")


def test_one_account_on_two_laptops(lab: Lab) -> None:
    other = lab.another_laptop()
    job = lab.one(*NONE, "--name", "first", "--", "sh", "-c", "echo up; sleep 1000")
    lab.until(job, "started")
    theirs = other.one(*NONE, "--", "sh", "-c", "echo two")
    other.until(theirs, "finished")
    assert {one["id"] for one in lab.jobs()} == {one["id"] for one in other.jobs()} == {job, theirs}
    assert lab.output(theirs) == "two\n"
    awaited(lambda: other.run("logs", "first").out == "up\n")
    other.run("cancel", "first")
    lab.until(job, "cancelled")


def command(lab: Lab) -> str:
    """What cron calls each minute."""
    line = lab.run("cron", "show", "gpu1").out
    found = re.search(r"exec (.*?) >>", line)
    assert found is not None, line
    return found[1]


def test_each_user_s_cron_works_off_their_own(lab: Lab) -> None:
    bob = lab.another_laptop("bob")
    people = (lab, bob)
    lab.run("queue", "pause", "default")
    jobs = {person: person.one(*NONE, "--on", "gpu1", "--", "id", "-un") for person in people}
    for person in people:
        person.ssh("gpu1", "rm -f ~/.cache/mlbox/tick.gpu1.log")  # earlier tests' bad days are in it
        person.run("cron", "install", "gpu1")
    lab.resume_silently()
    for person, job in jobs.items():  # nobody has asked a host since
        person.until(job, "finished", timeout=180)
        assert person.output(job) == f"{person.user}\n"
        assert person.ssh("gpu1", "cat ~/.cache/mlbox/tick.gpu1.log") == ""


def test_overlap_and_the_log(lab: Lab) -> None:
    """Where a tick is at work the next one exits at once, and leaves word; the log does not grow for ever."""
    lab.run("cron", "install", "gpu1")
    tick = command(lab)
    lab.run("cron", "remove", "gpu1")
    lab.run("queue", "pause", "default")
    job = lab.one(*NONE, "--on", "gpu1", "--", "true")
    lab.resume_silently()
    lock = f"/tmp/mlbox-1001/tick-$(printf %s {lab.root} | sha256sum | cut -c-16).lock"
    assert ssh("gpu1", f"flock {lock} {tick}; echo $?") == "0\n"
    assert lab.state(job) == "submitted"

    log = "~/.cache/mlbox/tick.gpu1.log"
    ssh("gpu1", f"yes 2000-01-01 00:00:00 mlbox: full | head -c 1200000 >{log}")
    assert ssh("gpu1", f"{tick}; stat -c %s {log}; head -n 1 {log}; rm {log}").splitlines() == [
        "262112", "2000-01-01 00:00:00 mlbox: full",
    ]  # fmt: skip
    lab.until(job, "finished")
