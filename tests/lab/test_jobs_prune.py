"""Ended jobs are removed from the share, from a laptop, and the other hosts know nothing of them any more."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from labbox import PYTHON_IMAGE
from queuelab import HOSTS_OF_LAB, Lab, awaited

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

Json = dict[str, Any]
NONE = ("--gpus", "0", "--no-code")


def prune(lab: Lab, host: str, *words: str) -> Json:
    found: Json = json.loads(lab.run("jobs", "prune", "--host", host, "--json", "-y", *words).out)
    return found


def ids(rows: list[Json]) -> set[str]:
    return {row["id"] for row in rows}


def folders(lab: Lab, host: str) -> set[str]:
    return set(lab.ssh(host, f"cd {lab.root}/users/ada/jobs && ls -d */* | cut -d/ -f2").split())


def test_two_hosts(lab: Lab) -> None:
    """What ran on each of them, in containers too, is removed by either, and both see it."""
    first = lab.one(*NONE, "--on", "gpu1", "--", "echo", "hello")
    second = lab.one(
        "--gpus", "0", "--on", "gpu2", "--image", PYTHON_IMAGE, "--", "sh", "-c", "mkdir -p a/b; date >a/b/c"
    )
    needed = lab.one(*NONE, "--on", "gpu2", "--", "true")
    for job in first, second, needed:
        lab.until(job, "finished")
    lab.run("queue", "pause", "default")
    waits = lab.one(*NONE, "--after", needed, "--on", "gpu1", "--", "true")

    assert prune(lab, "gpu1") == {"host": "gpu1", "removed": [], "stay": []}  # none is 30 days old
    now = ("--older-than", "0h")
    foreseen = awaited(lambda: (told := prune(lab, "gpu1", *now, "--dry-run"))["removed"][1:] and told)
    assert (ids(foreseen["removed"]), foreseen["dry_run"]) == ({first, second}, True)
    assert folders(lab, "gpu1") == {first, second, needed, waits}
    told = prune(lab, "gpu1", *now)
    assert ids(told["removed"]) == {first, second} and all(row["size"] for row in told["removed"])
    assert [(row["id"], row["stays"]) for row in told["stay"]] == [(needed, "a job waits for it")]

    for host in HOSTS_OF_LAB:
        awaited(lambda h=host: folders(lab, h) == {needed, waits})  # type: ignore[misc]
        assert ids(lab.jobs("--host", host)) == {needed, waits}
        for verb in "show", "logs", "retry":
            assert f"there is no job {first}" in lab.run(verb, first, "--host", host, code=6).err
        assert (
            "there is no job" in lab.run("submit", "--host", host, *NONE, "--after", second, "--", "true", code=6).err
        )
    lab.run("queue", "process")
    lab.run("queue", "resume", "default")
    lab.run("queue", "process")
    lab.until(waits, "finished")
    said = awaited(lambda: "2 jobs" in (out := lab.run("jobs", "prune", *now, "-y", "--host", "gpu2").out) and out)
    assert "freed" in said and needed in said and waits in said
    awaited(lambda: folders(lab, "gpu1") == set())
    awaited(lambda: lab.jobs() == [])  # its view of a spec that another host removed may be a second old


def test_what_a_containers_root_made_stays_whole(lab: Lab) -> None:
    job = lab.one("--gpus", "0", "--on", "gpu2", "--image", PYTHON_IMAGE, "--user", "root", "--", "sh", "-c",
                  "mkdir -p deep; date >deep/file; echo said")  # fmt: skip
    lab.until(job, "finished")
    told = awaited(lambda: (found := prune(lab, "gpu1", "--older-than", "0h"))["stay"] and found)
    assert told["removed"] == [] and told["stay"][0]["stays"].endswith("/work/deep")
    assert told["stay"][0]["stays"].startswith("a container's root made /share/")
    assert lab.output(job).endswith("said\n")


def test_whoever_looks_from_another_host_meanwhile(lab: Lab) -> None:
    """It is there, or there is none; never half of one."""
    jobs = sorted(job["id"] for job in lab.submit("--gpus", "0", "--array", "12", "--on", "gpu2", "--", "echo", "said"))
    awaited(lambda: all(job["state"] == "finished" for job in lab.jobs("--host", "gpu2")), timeout=180)
    left, seen = threading.Event(), []

    def look() -> None:
        while not left.is_set():
            for job in jobs:
                for verb in "show", "logs":
                    seen.append(lab.laptop.run(verb, job, "--host", "gpu2"))
            seen.append(lab.laptop.run("queue", "process", "--host", "gpu2"))

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    try:
        removed = awaited(lambda: (told := prune(lab, "gpu1", "--older-than", "0h"))["removed"] and told)
    finally:
        left.set()
        for thread in looking:
            thread.join()
    assert ids(removed["removed"]) == set(jobs)
    bad = [done.all for done in seen if done.code and not (done.code == 6 and "there is no job" in done.err)]
    assert bad == [] and any(done.code == 0 for done in seen)
    whole = ("said", "nothing to do", "another pass is at work")
    assert [done.out for done in seen if done.out and not any(words in done.out for words in whole)] == []
