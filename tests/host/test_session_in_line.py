"""A session that waits in a queue brings what it was submitted with."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from queuebox import Box, until

from mlbox import errors
from mlbox.core import verdict
from mlbox.core.gpu import Gpu
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.core.resources import Resources
from mlbox.core.session import Spec
from mlbox.host import door, files, keeper, keeping, lab, link, nvml, peer, processes, stored
from mlbox.host.handlers import cancel, prune, sessions, submit
from mlbox.host.job import Job
from mlbox.host.link import GuestLink

CONTENT = {"one.vsix": b"\0\xff" * 5000, "two.vsix": b""}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the keeper of a session was to prepare; there it ends."""
    path = tmp_path / "prepared.json"

    def prepare(engine: object, job: Job, spec: Spec, *rest: object) -> None:
        path.write_text(
            json.dumps({"files": dict(spec.extension_files), "left": (job.boot_folder / "extensions").exists()})
        )
        raise errors.StartFailed("enough seen")

    monkeypatch.setattr(keeper, "prepare", prepare)
    return path


def in_line(box: Box, files: dict[str, str], gpus: str = "0") -> Job:
    work = Spec(runtime="process", gpus=gpus, extension_files=files)
    spec = JobSpec(work=work, resources=Resources(gpus=gpus, cpus=0)).to_wire()
    job = box.found.job(box.call(submit, spec=json.loads(json.dumps(spec)))["jobs"][0]["id"])
    box.jobs.append(job)
    return job


def test_its_extensions_wait_with_it(box: Box, prepared: Path) -> None:
    (box.root / "paused").mkdir()
    (box.root / "paused/default").write_text("{}")
    job = in_line(box, {name: base64.b64encode(content).decode() for name, content in CONTENT.items()})
    things = [thing for thing in stored.everything(box.found) if thing.kind == "code"]
    assert [(thing.name, thing.stays) for thing in things] == [(job.spec().code, "a job needs it")]
    (box.root / "paused/default").unlink()
    box.tick()
    assert box.wait(job, "failed").facts["why"] == "enough seen"
    seen = json.loads(prepared.read_text())
    assert {name: base64.b64decode(content) for name, content in seen["files"].items()} == CONTENT
    assert not seen["left"]


def test_extensions_that_are_gone_are_said(box: Box, prepared: Path) -> None:
    (box.root / "paused").mkdir()
    (box.root / "paused/default").write_text("{}")
    job = in_line(box, {"one.vsix": "eA=="})
    (box.found.own() / f"code/{job.spec().code}.tgz").unlink()
    (box.root / "paused/default").unlink()
    box.tick()
    assert "the job's code is gone" in box.wait(job, "failed").facts["why"]
    assert not prepared.exists()


def test_what_is_no_base64_is_refused(box: Box) -> None:
    with pytest.raises(errors.Usage, match="did not arrive as it was sent"):
        in_line(box, {"one.vsix": "x"})
    assert box.hints() == []


def test_its_gpu_time_counts_when_it_ends(box: Box, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "is_there", lambda: True)
    monkeypatch.setattr(nvml, "gpus", lambda: ([Gpu(0, "GPU-1", "A100", 40960)], "550"))
    job = in_line(box, {}, gpus="1")
    assert box.wait(job, "failed").facts["gpus"] == ["GPU-1"]
    assert files.read_json(box.found.on() / "usage.json")["seconds"] > 0


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there, and stays for as long as it may."""
    monkeypatch.setattr(keeper.Keeper, "_start", lambda kept: {"services": {}, "ends": 2e9})
    monkeypatch.setattr(GuestLink, "connected", property(lambda link: True))
    monkeypatch.setattr(link, "answers", lambda path: True)


@pytest.mark.parametrize("adopted", [False, True], ids=["", "adopted"])
def test_its_queue_s_time_limit_ends_it(box: Box, guest: None, adopted: bool) -> None:
    limit = "10s" if adopted else "3s"  # for what is done meanwhile
    box.lab(f"queues: {{default: {{time_limit: {limit}}}}}\n")
    job = in_line(box, {})
    if adopted:
        box.wait(job, "started")
        box.kill_keeper(job)
        box.tick()
        assert keeping.lives(job)
    facts = box.wait(job, "finished").facts
    assert (facts["reason"], facts["why"]) == ("timeout", f"its time limit of {limit} was reached")
    assert job.state().attempt == 1 and not job.boot_folder.exists()


def test_when_it_ends_is_told(box: Box, guest: None) -> None:
    box.lab("queues: {default: {time_limit: 1h}, free: {}}\n")
    limited = in_line(box, {})
    box.wait(limited, "started")
    assert [session["ends"] for session in box.call(sessions)["sessions"]] == [2e9]
    keeping.tell(limited)
    assert box.wait(limited, "finished").facts["why"] == "shut down"


def test_one_that_waits_has_not_ended(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds its tunnels goes by that. What was one's own and has ended no colleague's door offers again."""
    (box.root / "paused").mkdir()
    (box.root / "paused/default").write_text("{}")
    job = in_line(box, {})
    with pytest.raises(errors.NotFound, match="waits in line") as caught:
        box.call(sessions, session=job.id)
    assert not isinstance(caught.value, errors.Ended)
    box.call(cancel, job=job.id)
    monkeypatch.setattr(door, "find", lambda wanted: (None, {"id": wanted, "owner": "eve"}))
    with pytest.raises(errors.Ended, match="has ended"):
        box.call(sessions, session=job.id)


@pytest.mark.parametrize(
    "boot", ["another", ""], ids=["its host was restarted", "its keeper and container were killed"]
)
def test_one_that_is_lost_runs_again(box: Box, guest: None, monkeypatch: pytest.MonkeyPatch, boot: str) -> None:
    job = in_line(box, {})
    box.wait(job, "started")
    box.kill_keeper(job)
    monkeypatch.setattr(link, "answers", lambda path: False)
    if boot:
        monkeypatch.setattr(processes, "boot_id", lambda: boot)
        (box.found.on() / "host.json").unlink()  # by its age no twin's
    box.tick()
    until(lambda: job.state().name == "started" and job.state().attempt == 2)
    [lost] = [event for event in job.events() if event["event"] == "lost"]
    assert lost["why"].startswith("the host was restarted" if boot else "its keeper and its container or process ended")
    keeping.tell(job)
    assert box.wait(job, "finished").facts["why"] == "shut down"
    box.tick()
    box.assert_nothing_leaks()


def test_it_can_be_reached_as_soon_as_it_has_started(
    box: Box, guest: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And shared: who waits for that word asks at once."""
    append = keeper.Keeper._append

    def noted(kept: keeper.Keeper, event: str, facts: dict[str, object]) -> bool:
        shared = kept.job.control.exists() == peer.known()
        (tmp_path / event).write_text(f"{files.read_json(kept.job.conf / 'session.json')} {shared}")
        return append(kept, event, facts)

    monkeypatch.setattr(keeper.Keeper, "_append", noted)
    job = in_line(box, {})
    box.wait(job, "started")
    told = (tmp_path / "started").read_text()
    assert "'ends'" in told and told.endswith(" True")
    keeping.tell(job)
    box.wait(job, "finished")


def test_one_that_was_removed_has_ended(box: Box, guest: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tunnels that slept meanwhile. A host may have nothing of it for another reason: its ROOT is another."""
    job = in_line(box, {})
    box.wait(job, "started")
    root = box.call(sessions, session=job.id, reveal=True)["session"]["lab"]
    assert root == f"{lab.identify(box.root)}/{box.found.user}"
    keeping.tell(job)
    box.wait(job, "finished")
    box.tick()
    monkeypatch.setattr(prune, "pause", lambda seconds: None)  # the caller stays
    assert [row["id"] for row in box.call(prune, older_than=0)["removed"]] == [job.id]
    with pytest.raises(errors.Ended, match="what it left was removed"):
        box.call(sessions, session=job.id, lab=root)
    for other in "", "0123456789abcdef", f"{root}@lab.org":
        with pytest.raises(errors.NotFound, match="is running") as caught:
            box.call(sessions, session=job.id, lab=other)
        assert not isinstance(caught.value, errors.Ended)


def test_one_that_never_was_in_line_ends_with_its_host() -> None:
    state = State("started", {"host": "gpu1", "attempt": 1})
    event = verdict.lost(JobSpec(), state, "the host was restarted", 1.0)
    assert (event["event"], event["reason"], event["why"]) == ("failed", "lost", "the host was restarted")
