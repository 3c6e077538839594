"""The lab's limits, when several hosts start jobs at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box

from mlbox.core.schedule import Start, Waiting
from mlbox.host import claim, lab, lease, limits, store, tick
from mlbox.host.handlers import queue
from mlbox.host.job import Job

EARLY, LATE = "01ARYZ6S41TSV4RRFFQ69G5FAV", "7ZARYZ6S41TSV4RRFFQ69G5FAV"  # ids
LIMITED = [
    "queues: {default: {max_running: 1}}\n",
    "queues: {default: {max_running_per_user: 1}}\n",
    'users: {"*": {max_running: 1}}\n',
]


def on(box: Box, host: str) -> store.Store:
    """The same user on another host."""
    made = store.Store(box.root)
    made.host = host
    return made


def jobs_in_line(box: Box, count: int, *command: str, **fields: Any) -> list[Job]:
    box.call(queue, do="pause", queue="default")
    made = [job for _ in range(count) for job in box.submit_all(*command, **fields)]
    (box.root / "paused/default").unlink()
    return made


@pytest.mark.parametrize("rules", [*LIMITED, "array"])
def test_what_another_host_has_started_meanwhile_counts(
    box: Box, rules: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A whole tick of another host's comes between this one's plan and its claim."""
    array = {"array": 2, "array_limit": 1} if rules == "array" else {}
    box.lab(rules if not array else "")
    jobs = jobs_in_line(
        box, 1 if array else 2, "/bin/sh", "-c", f"until test -e {tmp_path}/go; do sleep 0.05; done", **array
    )
    real, reports = store.Store.mark_live, list[tick.Report]()

    def late(found: store.Store, job: Job, record: Any) -> None:
        if found.host == box.found.host and not reports:
            reports.append(tick.Report())
            other = on(box, "gpu2")
            now = lab.rules(other).lab
            assert claim.start(
                other, Waiting(jobs[1].id, other.user, **_array(jobs[1])), Start(jobs[1].id, (), 0, 0), now, tick.again
            )
        real(found, job, record)

    monkeypatch.setattr(store.Store, "mark_live", late)
    report = box.tick()
    why = (report.waits or {})[jobs[0].id]
    assert report.started == () and ("1 of 1" in why or "1 running" in why)
    assert (jobs[0].state().name, box.claims(jobs[0])) == ("submitted", [])
    assert not box.is_live(jobs[0]) and not jobs[0].boot_folder.exists()
    monkeypatch.undo()
    (tmp_path / "go").touch()


def _array(job: Job) -> dict[str, Any]:
    spec = job.spec()
    return {"array": spec.array, "array_limit": spec.array_limit}


def asking(box: Box, id_: str, asks: bool = True) -> Path:
    """Another host's live hint."""
    path = box.found.on("gpu9") / "live" / id_
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"gpus": [], "asking": asks}))
    return path


def over(box: Box) -> str:
    middle = Waiting("2ZARYZ6S41TSV4RRFFQ69G5FAV", box.found.user)
    return limits.over(box.found, lab.rules(box.found).lab, middle, ())


def test_of_two_that_ask_the_smaller_id_goes_on(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.lab(LIMITED[0])
    asking(box, EARLY)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    assert "is full: 1 of 1" in over(box)
    hint = asking(box, LATE)
    assert "is full: 2 of 1" in over(box)  # whatever becomes of this one
    asking(box, EARLY).unlink()
    looks = []

    def withdraw(_: float) -> None:
        looks.append(hint.exists())
        hint.unlink(missing_ok=True)

    monkeypatch.setattr(time, "sleep", withdraw)
    assert over(box) == "" and looks == [True]


@pytest.mark.parametrize("then", ["goes on", "stays silent"])
def test_who_asked_later_and_goes_on_counts(box: Box, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """It looked before this one asked; or its host has died in between, and nobody knows."""
    box.lab(LIMITED[0])
    asking(box, LATE)
    monkeypatch.setattr(limits, "_PATIENCE", 0.2)
    if then == "goes on":
        monkeypatch.setattr(time, "sleep", lambda _: asking(box, LATE, asks=False))
    assert "is full: 1 of 1" in over(box)


def test_hosts_that_tick_at_once_keep_the_limit(box: Box, tmp_path: Path) -> None:
    """Each has jobs of its own, so that no claim is in another's way."""
    box.lab("queues: {default: {max_running: 1}}\nhosts: {gpu0: {}, gpu1: {}, gpu2: {}}\n")
    log, script = tmp_path / "log", f"echo + >>{tmp_path}/log; sleep 0.1; echo - >>{tmp_path}/log"
    jobs = [
        job
        for number in range(3)
        for job in jobs_in_line(box, 3, "/bin/sh", "-c", script, resources={"hosts": (f"gpu{number}",)})
    ]
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            try:
                found = on(box, f"gpu{number}")
                own = tmp_path / f"ticks-{number}"  # locks of its own
                store.Store.of_ticks = lambda _, kind, own=own: Path(f"{own}.{kind}")  # type: ignore[method-assign,misc]
                lease.FOLDER = tmp_path / f"leases-{number}"
                while any(job.state().waiting for job in jobs):
                    tick.run(found)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert [box.end(job, patience=60).name for job in jobs] == ["finished"] * 9
    running, most = 0, 0
    for line in log.read_text().split():
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert most == 1, log.read_text()
