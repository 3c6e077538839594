"""Hosts of which nothing has been heard: who is taken for silent, by which clock, and what that changes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box

from mlbox.core import ids
from mlbox.core.hints import waiting
from mlbox.host import files, heard, inventory, lab, processes, ready, store, view
from mlbox.host.handlers import cancel, host, jobs, queue, show, status, submit
from mlbox.host.idle import FRESH
from mlbox.host.job import Job

HOUR = 3600.0
GPUS = [{"index": n, "uuid": f"GPU-{n}", "name": "A100", "memory": 40960} for n in range(8)]


class Clock:
    """This host's uptime."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(processes, "uptime", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def tells(box: Box, name: str, at: float, gpus: Any = GPUS) -> None:
    """Another host, by its own clock."""
    document = {"at": at, "cpus": 64, "memory": 1 << 18, "gpus": gpus}
    box.found.on(name).mkdir(parents=True, exist_ok=True)
    files.write_whole(box.found.on(name) / "host.json", json.dumps(document).encode(), 0o644)


def silence(box: Box) -> dict[str, float]:
    rules = lab.rules(box.found).lab
    return {h.name: h.silent for h in view.published(box.found, rules, view.known_users(box.found)) if h.silent}


def in_line(box: Box) -> str:
    box.call(queue, do="pause", queue="default")
    return box.submit("true").id


def is_reserved_here(box: Box, job: str, now: float) -> bool:
    return job in view.read(box.found, lab.rules(box.found).lab, now, inventory.ask(box.found)).view.reserved_here


@pytest.mark.parametrize("off", [0.0, 30 * 86400.0, -30 * 86400.0])
def test_silence_is_measured_by_this_host_s_own_clock(box: Box, clock: Clock, off: float) -> None:
    """Whatever the other's clock says, and also where it is set meanwhile."""
    at = 1.7e9 + off
    for _ in range(5):
        tells(box, "gpu9", at)
        assert silence(box) == {}
        at, clock.now = at + FRESH, clock.now + FRESH + 60
    tells(box, "gpu9", at - 86400)
    clock.now += HOUR
    assert silence(box) == {}
    clock.now += heard.LONG
    assert silence(box) == {}
    clock.now += 1
    assert silence(box) == {"gpu9": heard.LONG + 1}
    tells(box, "gpu9", at)
    assert silence(box) == {}


def test_a_host_that_is_telling_something_new_just_now_is_known(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """GlusterFS lists the file that is being replaced, and does not have it for a moment."""
    tells(box, "gpu9", 5.0)
    box.lab("hosts: {gpu9: {ssh: gpu9}}\n")
    real, missing = files.read_json, iter((True,) * 3)

    def read_json(path: Path, owner: int | None = None) -> Any:
        return None if path.parent.name == "gpu9" and next(missing, False) else real(path, owner)

    monkeypatch.setattr(files, "read_json", read_json)
    assert "gpu9" in {h.name for h in view.published(box.found, lab.rules(box.found).lab, [box.found.user])}


def test_many_that_tell_nothing_readable_cost_three_pauses(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        tells(box, f"gpu{number}", 5.0)
        (box.found.on(f"gpu{number}") / "host.json").write_text("{")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert view.published(box.found, lab.rules(box.found).lab, [box.found.user]) == []
    assert len(pauses) == 3


def test_a_dry_run_notes_nothing(box: Box, clock: Clock) -> None:
    tells(box, "gpu9", 5.0)
    note = box.found.of_ticks("heard")
    note.unlink(missing_ok=True)
    dry = store.Store(box.root, dry=True)
    view.published(dry, lab.rules(dry).lab, view.known_users(dry))
    assert not note.exists()
    assert silence(box) == {} and note.exists()


def test_a_boot_of_this_host_begins_anew(box: Box, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    tells(box, "gpu9", 1.0)
    assert silence(box) == {}
    clock.now += HOUR
    assert silence(box) == {"gpu9": HOUR}
    for boot, now in (("another", clock.now + HOUR), ("another", 5.0)):  # the second: no boot id tells them apart
        monkeypatch.setattr(processes, "boot_id", lambda boot=boot: boot)
        clock.now = now
        assert silence(box) == {}


def test_another_user_s_ticks_are_the_host_s_sign_of_life(box: Box, clock: Clock, monkeypatch: Any) -> None:
    tells(box, "gpu9", 5.0)
    theirs = box.found.own("eve") / "on/gpu9/host.json"
    theirs.parent.mkdir(parents=True)
    monkeypatch.setattr(view, "known_users", lambda found: [found.user, "eve"])
    for at in range(3):
        theirs.write_text(json.dumps({"at": at, "cpus": 1, "memory": 1}))
        assert silence(box) == {}
        clock.now += HOUR
    assert silence(box) == {"gpu9": HOUR}


def test_this_host_is_never_silent_to_itself(box: Box, clock: Clock) -> None:
    box.tick()
    assert silence(box) == {}
    clock.now += HOUR
    assert silence(box) == {}


def test_room_is_kept_here_and_not_on_a_silent_host(box: Box, clock: Clock) -> None:
    job = in_line(box)
    tells(box, "aaa", 5.0)  # of two that are as good, the first by name
    assert not is_reserved_here(box, job, 1.0)
    clock.now += HOUR
    assert is_reserved_here(box, job, 1.0)
    tells(box, "aaa", 6.0)
    assert not is_reserved_here(box, job, 1.0)


def test_a_sharer_s_processes_elsewhere_are_no_stranger_s_there_either(box: Box) -> None:
    """Or that host and this one would each keep room on the other."""
    there = [{"pid": 7, "user": user} for user in (box.found.user, "eve")]
    tells(box, "gpu9", 5.0, [{**GPUS[0], "processes": there}, {**GPUS[1], "processes": there}])
    hint = {"queue": "default", "gpus": ["GPU-0"], "share": 1024}
    (box.found.on("gpu9") / "live").mkdir()
    (box.found.on("gpu9") / "live" / ids.ulid(1, bytes(10))).write_text(json.dumps(hint))
    seen = view.read(box.found, lab.rules(box.found).lab, 1.0, inventory.ask(box.found))
    [gpu9] = [h for h in seen.hosts if h.name == "gpu9"]
    assert [[p.user for p in g.processes] for g in gpu9.gpus] == [["eve"], [box.found.user, "eve"]]


def asks_for_eight(box: Box) -> Any:
    spec = {"command": ["true"], "work": {"runtime": "process"}, "resources": {"gpus": "8"}}
    reply = box.call(submit, spec=spec)
    box.jobs += [box.found.job(job["id"]) for job in reply["jobs"]]
    return next(iter(reply["waits"].values()))


def test_a_job_for_a_silent_host_alone_is_accepted_and_that_is_said(box: Box, clock: Clock) -> None:
    tells(box, "gpu9", 5.0)
    assert "only gpu9" not in asks_for_eight(box)
    clock.now += 3 * 86400
    assert asks_for_eight(box) == "only gpu9 could run it, and it has been silent for 3d"
    tells(box, "gpu8", 5.0)
    assert "could run it" not in asks_for_eight(box)
    clock.now += HOUR
    assert asks_for_eight(box) == (
        "of those that could run it, gpu8 has been silent for 1h, and gpu9 has been silent for 3d 1h"
    )


def test_a_fenced_host_is_drained_until_a_person_says_so(box: Box) -> None:
    job = in_line(box)
    tells(box, "aaa", 5.0)
    box.call(host, do="fence", name="aaa")
    assert is_reserved_here(box, job, 1.0)
    assert asks_for_eight(box) == "only aaa could run it, and it is drained"
    box.call(host, do="resume", name="aaa")
    assert not is_reserved_here(box, job, 1.0)


def runs_on(box: Box, name: str) -> Job:
    """A job that another host has claimed."""
    job = box.found.job(in_line(box))
    ready.withdraw(box.found, waiting(job.id, job.owner, job.spec(), job.state()))
    assert job.append("claimed", {"at": 1.0, "host": name, "boot": "b", "attempt": 1, "gpus": []})
    assert job.append("started", {"at": 1.0}, 1)
    (box.found.on(name) / "live").mkdir(parents=True)
    (box.found.on(name) / "live" / job.id).write_text(json.dumps({"queue": "default", "started": 1.0}))
    tells(box, name, 5.0)
    return job


def test_what_runs_on_a_silent_host_says_so(box: Box, clock: Clock) -> None:
    job = runs_on(box, "gpu9")

    def told() -> list[Any]:
        [row] = box.call(jobs)["jobs"]
        return [row["silent"], box.call(show, job=job.id)["silent"], box.call(status)["silent"]]

    assert told() == [0.0, 0.0, []]
    clock.now += HOUR
    silent = {"host": "gpu9", "silent": HOUR, "jobs": [view_of(box, job)], "drained": ""}
    assert told() == [HOUR, HOUR, [silent]]
    reply = box.call(cancel, job=job.id)
    assert (reply["requested"], reply["nudge"], reply["silent"]) == ("cancel_requested", "gpu9", HOUR)
    box.call(host, do="fence", name="gpu9")
    assert [row["state"] for row in box.call(jobs)["jobs"]] == ["cancelled"]
    assert box.call(status)["silent"] == []  # nothing is there, and lab.yaml does not name it
    box.lab("hosts: {gpu9: {}}\n")
    assert [(h["host"], h["drained"]) for h in box.call(status)["silent"]] == [("gpu9", f"{box.found.user} (fenced)")]


def view_of(box: Box, job: Job) -> Any:
    return {
        "id": job.id,
        "name": job.spec().title,
        "owner": box.found.user,
        "queue": "default",
        "gpus": [],
        "since": 1.0,
    }
