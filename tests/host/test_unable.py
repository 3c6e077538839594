"""What a host could not start holds nobody else's jobs up there, and is tried again."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from typing import Any

import pytest
from queuebox import Box, hint
from users import let_in

from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.core.lab import Lab
from mlbox.core.resources import Resources
from mlbox.core.session import Spec
from mlbox.host import claim, engines, files, look, processes, runner, store, unable, view
from mlbox.host.engines import aside
from mlbox.host.handlers import queue

BIG = JobSpec(("true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0, memory=49152))


@pytest.fixture
def tight(box: Box, monkeypatch: pytest.MonkeyPatch) -> Box:
    """Strangers have half of the memory: BIG has to wait for room, and room is kept for it."""
    monkeypatch.setattr(view, "_meminfo", lambda: {"MemTotal": 65536, "MemAvailable": 32768})
    return box


def small(box: Box) -> Any:
    box.call(queue, do="pause", queue="default")
    job = box.submit("true", resources={"memory": 1})
    (box.root / "paused/default").unlink()
    return job


def colleague(box: Box, **told: Any) -> str:
    """Another user whose job is first in line and whose ticks have told this of the host; its id."""
    let_in(box.root)
    box.found.open_users()
    theirs = store.Store(box.root)
    theirs.user = "nobody"
    place = box.root / "users/nobody"
    place.mkdir()
    os.chown(place, 65534, 65534)
    theirs.own = lambda user="": box.root / "users" / (user or "nobody")  # type: ignore[method-assign]
    made = hint(theirs, BIG, ids.ulid(1, os.urandom(10)))
    theirs.create(made, BIG, queued=True)
    made.append("submitted", {"at": 0.0, "queue": "default", "owner": "nobody"})
    job = made.id
    beat = theirs.on() / "host.json"
    beat.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "at": time.time(),
        "boot": processes.boot_id(),
        "unable": {job: [processes.uptime() + 60, "broken", 0]},
        **told,
    }
    beat.write_text(json.dumps(told))
    for folder, _, names in os.walk(place):
        for name in ("", *names):
            os.chown(os.path.join(folder, name), 65534, 65534)
    return job


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
def test_a_colleague_s_job_that_can_t_start_here_holds_nobody_up(tight: Box) -> None:
    job = small(tight)
    colleague(tight)
    assert tight.tick().started == (job.id,)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
@pytest.mark.parametrize(
    "told",
    [
        {"unable": {}}, {"boot": "the last one"}, {"unable": {"01ARYZ6S41TSV4RRFFQ69G5FAV": [1e11, "another job", 0]}},
        {"unable": [1]}, {"unable": {"x": 1}}, {"unable": None},
    ],
)  # fmt: skip
def test_one_that_can_does(tight: Box, told: Any) -> None:
    job = small(tight)
    colleague(tight, **told)
    assert "kept for nobody's job" in (tight.tick().waits or {})[job.id]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
@pytest.mark.parametrize(("left", "attempt", "kept"), [(-1, 0, False), (60, 7, True)])
def test_it_is_its_owner_s_tick_that_tries_it_again(tight: Box, left: int, attempt: int, kept: bool) -> None:
    """Another attempt is not what was told of."""
    job = small(tight)
    theirs = colleague(tight)
    beat = tight.root / "users/nobody/on" / tight.found.host / "host.json"
    told = {theirs: [processes.uptime() + left, "broken", attempt]}
    beat.write_text(json.dumps({**files.read_json(beat), "unable": told}))
    assert ("kept for nobody's job" in (tight.tick().waits or {}).get(job.id, "")) == kept


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
def test_nobody_says_that_of_another_s_job(tight: Box) -> None:
    job = small(tight)
    colleague(tight, unable={job.id: [processes.uptime() + 60, "broken", 0]})
    assert "kept for nobody's job" in (tight.tick().waits or {})[job.id]
    assert not [key for h in view.published(tight.found, Lab(), ["nobody"]) for key in h.unable if key[0] != "nobody"]


def test_it_is_passed_over_for_a_while_and_tried_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    start = claim.start

    def counted(*words: Any) -> bool:
        tried.append(words[1].id)
        return start(*words)

    monkeypatch.setattr(claim, "start", counted)
    with monkeypatch.context() as disk:
        disk.setattr(runner, "_ROOM", "/dev/full")
        job = box.sh("true")
        waits = [(box.tick().waits or {})[job.id] for _ in range(3)]
    why = f"/tmp/mlbox-{os.getuid()} takes no job: No space left on device"
    assert all(told.startswith(f"{box.found.host}: {why}") for told in waits), waits
    assert tried == [job.id]
    assert unable.read(files.read_json(box.found.on() / "host.json"))[job.id][1] == why
    now = processes.uptime
    monkeypatch.setattr(processes, "uptime", lambda: now() + unable.REST)
    assert box.tick().started == (job.id,) and box.end(job).name == "finished"
    box.tick()
    assert files.read_json(box.found.on() / "host.json")["unable"] == {}


def test_one_of_an_array_hides_none_of_the_others(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    first, *others = box.submit_all("true", array=20)
    (box.root / "paused/default").unlink()
    beat = box.found.on() / "host.json"
    told = files.read_json(beat) or {}
    beat.write_text(
        json.dumps({**told, "boot": processes.boot_id(), "unable": {first.id: [processes.uptime() + 60, "x", 0]}})
    )
    assert sorted(box.tick().started) == [job.id for job in others]
    for job in others:
        box.end(job)


def test_of_two_engines_the_one_that_is_tried_again_first_says_when(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "present", lambda: {"docker", "podman"})
    aside.put(box.found, "podman", False, "podman is broken")
    monkeypatch.setattr(aside, "REST", 600.0)
    aside.put(box.found, "docker", False, "docker is broken")
    with pytest.raises(unable.LeftAlone, match="podman is broken; tried again in"):
        engines.choose(Spec(image="alpine"), box.found, partial(aside.identify, False))


def test_any_number_that_have_no_engine_here_hide_nobody(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "present", lambda: ["process"])
    box.call(queue, do="pause", queue="default")
    images = JobSpec(("true",), work=Spec(image="alpine"), resources=Resources(gpus="0", cpus=0))
    for _ in range(3 * look.LOOK):
        made = hint(box.found, images)
        box.found.create(made, images, queued=True)
        made.append("submitted", {"at": 0.0, "queue": "default", "owner": box.found.user})
    job = box.sh("true")
    (box.root / "paused/default").unlink()
    now, started = processes.uptime, list[str]()
    for minute in range(6):
        monkeypatch.setattr(processes, "uptime", lambda minute=minute: now() + 60 * minute)
        started += box.tick().started
    assert started == [job.id] and box.end(job).name == "finished"
