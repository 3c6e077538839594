"""A host that can't start what others can: it loses no job, and what is broken itself takes no host from the others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box, until

from mlbox import errors
from mlbox.core import verdict
from mlbox.core.gpu import Gpu
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.session import Spec
from mlbox.host import driver, files, keeping, nvml, processes
from mlbox.host.engines import aside, container
from mlbox.host.engines.docker import Docker
from mlbox.host.handlers import status, submit
from mlbox.host.job import Job
from mlbox.host.run import NO_ANSWER

# `run` of a job ends as the file `says` beside it tells; a probe finds a shell and no more.
_DOCKER = """#!/bin/sh
echo "$1" >>{folder}/asked
case "$1" in
image) echo sha256:aa ;;
run)
    case "$*" in *"--network none"*) for last; do :; done; exec sh -c "$last" ;; esac
    env >{folder}/environment
    [ -e {folder}/says ] || exit 0
    cat {folder}/says >&2
    exit 125 ;;
esac
"""
NO_GPUS = 'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].'
FLAG = "docker: invalid reference format"

Broken = Callable[[str], None]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """What `docker run` of any job says before it ends with 125; nothing: it starts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(_DOCKER.format(folder=folder))
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(aside, "REST", 3600.0)  # however slow this machine is
    # By the clock of later() another test, which asks just then, would seem to hang.
    monkeypatch.setattr(driver, "PATIENCE", 2 * aside.REST)
    monkeypatch.setattr(nvml, "is_there", lambda: True)
    monkeypatch.setattr(nvml, "gpus", lambda: ([Gpu(0, "GPU-1", "A100", 40960)], "550"))

    def says(words: str) -> None:
        (folder / "says").write_text(words) if words else (folder / "says").unlink()

    return says


def in_docker(box: Box, gpus: str = "1", **fields: Any) -> Job:
    work = Spec(image="alpine", runtime="docker")
    spec = JobSpec(command=("true",), work=work, resources=Resources(gpus=gpus, cpus=0), **fields)
    reply = box.call(submit, spec=json.loads(json.dumps(spec.to_wire())))
    box.jobs.append(box.found.job(reply["jobs"][0]["id"]))
    return box.jobs[-1]


def waits(box: Box, job: Job, words: str) -> None:
    """Until a tick has said that of it."""
    told = box.found.on() / "waits.json"
    until(lambda: words in (files.read_json(told) or {}).get(job.id, ""))


def later(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left alone is tried again, by a tick of this process."""
    until(lambda: not keeping.is_held(box.found.of_ticks("lock")))
    now = processes.uptime
    monkeypatch.setattr(processes, "uptime", lambda: now() + aside.REST)
    monkeypatch.setattr(verdict, "_ELSEWHERE", {})
    box.tick()


def test_a_host_that_gives_no_gpus_takes_one_job_and_loses_none(
    box: Box, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(NO_GPUS)
    first = in_docker(box, max_losses=1, on_host_loss="hold")
    facts = box.wait(first, "lost").facts
    assert "docker here can't give GPUs to containers" in facts["why"] and "losses" not in facts
    others = [in_docker(box) for _ in range(3)]
    for job in others:
        waits(box, job, f"{box.found.host}: docker here can't give GPUs to containers; tried again in ")
    assert [box.claims(job) for job in (first, *others)] == [[1], [], [], []]
    assert "docker here can't give GPUs to containers" in box.call(status)["trouble"]
    broken("")
    later(box, monkeypatch)
    assert {box.end(job).name for job in (first, *others)} == {"finished"}
    assert box.call(status)["trouble"] == ""


def test_what_needs_no_gpus_starts_there_all_the_same(box: Box, broken: Broken) -> None:
    broken(NO_GPUS)
    box.wait(in_docker(box), "lost")
    broken("")
    assert box.end(in_docker(box, gpus="0")).name == "finished"
    broken("docker: mkdir /var/lib/docker/overlay2/x: no space left on device")
    box.wait(in_docker(box, gpus="0"), "lost")
    broken("")
    waits(box, in_docker(box, gpus="0"), "docker has no space left here")
    assert box.end(box.sh("true")).name == "finished"


def test_nor_does_one_that_finds_out_before_it_runs_anything(
    box: Box, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Docker, gpus: Sequence[str]) -> list[str]:
        raise errors.HostUnready("no CDI specification here names GPU-1")

    monkeypatch.setattr(Docker, "devices", none)
    job = in_docker(box, max_losses=1)
    box.wait(job, "lost")
    waits(box, in_docker(box), "no CDI specification here names GPU-1; tried again in")
    assert "losses" not in job.state().facts


def test_a_boot_is_a_new_try(box: Box, broken: Broken) -> None:
    broken(NO_GPUS)
    box.wait(in_docker(box), "lost")
    broken("")
    note = box.found.of_ticks("docker-gpus.aside")
    note.write_text(json.dumps({**json.loads(note.read_text()), "boot": "the last one"}))
    assert box.end(in_docker(box)).name == "finished"


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (FLAG, f"docker did not start it: {FLAG}"),
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0", "needs a newer NVIDIA driver"),
        ("error while creating mount source path '/home/x': permission denied", "root may not reach /home/x"),
    ],
)
def test_a_broken_job_ends_and_takes_no_host_out(
    box: Box, broken: Broken, monkeypatch: pytest.MonkeyPatch, says: str, why: str
) -> None:
    """It may be the host's trouble all the same: others try it first."""
    broken(says)
    job = in_docker(box, max_losses=2, backoff=0, on_host_loss="hold")
    facts = box.wait(job, "lost").facts
    assert why in facts["why"] and facts["why"].endswith("loss 1 of at most 2")
    waits(box, job, "; tried again in")
    assert box.claims(job) == [1]
    broken("")
    assert box.end(in_docker(box)).name == "finished"
    broken(says)
    later(box, monkeypatch)
    facts = box.end(job).facts
    assert (job.state().name, box.claims(job)) == ("failed", [1, 2]) and why in facts["why"]


# As Docker's command, which goes on when its runner is killed; it ends with its container.
_SLOW = """#!/bin/sh
cd {folder}
case "$1" in
image) echo sha256:aa ;;
run)
    case "$*" in *"--network none"*) for last; do :; done; exec sh -c "$last" ;; esac
    touch begun
    until [ -e go ]; do sleep 0.02; done
    touch made container
    while [ -e container ]; do sleep 0.02; done ;;
ps) [ ! -e container ] || echo c1; touch looked ;;
rm) rm -f container ;;
esac
"""


def test_a_container_that_is_only_being_made_when_all_are_killed(box: Box, broken: Broken, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    (folder / "docker").write_text(_SLOW.format(folder=folder))
    job = in_docker(box, on_host_loss="hold")
    until((folder / "begun").exists)
    box.kill_keeper(job)
    box.kill_runner(job)
    (folder / "looked").unlink(missing_ok=True)

    def begin() -> None:
        until((folder / "looked").exists)  # and nothing was there yet
        (folder / "go").touch()

    with ThreadPoolExecutor() as pool:
        begun = pool.submit(begin)
        box.tick()
        begun.result()
    until((folder / "made").exists)
    assert not (folder / "container").exists() and not processes.marked(job.id)
    assert box.end(job).name == "failed"


@pytest.mark.parametrize("program", ["docker", "podman"])
def test_other_users_wait_for_a_silent_engine_once_and_not_for_long(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Under the lock by which all users' ticks choose. Each tick is a process of its own, as cron's are."""
    asked = tmp_path / "asked"

    def silent(argv: tuple[str, ...], timeout: float) -> tuple[int, str, str]:
        with asked.open("a") as file:
            file.write(f"{timeout:.0f} ")
        return NO_ANSWER, "", f"{argv[0]} did not answer within {timeout:.0f} s"

    monkeypatch.setattr(aside, "REST", 3600.0)
    monkeypatch.setattr(container, "capture", silent)
    work, resources = Spec(image="alpine", runtime=program), Resources(gpus="0", cpus=0)
    box.jobs += [submit.submit(box.found, JobSpec(("true",), work=work, resources=resources)) for _ in range(3)]
    for _ in range(2):
        pid = os.fork()
        if not pid:
            try:
                box.tick()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert asked.read_text() == "10 "
        for job in box.jobs:
            waits(box, job, f"{program} did not answer within 10 s")


def test_it_is_left_alone_for_longer_while_it_fails_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    now, rests = 1000.0, []
    monkeypatch.setattr(processes, "uptime", lambda: now)
    for _ in range(7):
        began = now
        for _ in range(3):  # that were started at once
            aside.put(box.found, "docker", True, "no GPUs")
            now += 1
        ends = json.loads(box.found.of_ticks("docker-gpus.aside").read_text())["until"]
        rests.append(ends - began)
        now = ends + 50
    assert rests == [60, 120, 240, 480, 960, 960, 960]
    now += aside.LONGEST
    aside.put(box.found, "docker", True, "no GPUs")
    assert aside.words(box.found) == ["no GPUs; tried again in 1m"]


def test_what_a_job_has_in_its_environment_is_not_in_its_engine_s(box: Box, broken: Broken, tmp_path: Path) -> None:
    """The image's PATH may not lead to docker, and its HOME is nowhere on the host, where podman would make one."""
    own = {"PATH": "/nowhere", "HOME": "/neither", "TOKEN": "s3cret"}
    work = Spec(image="alpine", runtime="docker", env=own)
    reply = box.call(submit, spec=JobSpec(("true",), work=work, resources=Resources(gpus="0", cpus=0)).to_wire())
    box.jobs.append(box.found.job(reply["jobs"][0]["id"]))
    assert box.end(box.jobs[-1]).name == "finished"
    engines = dict(
        line.split("=", 1) for line in (tmp_path / "bin/environment").read_text().splitlines() if "=" in line
    )
    assert (engines["PATH"], engines["HOME"]) == (os.environ["PATH"], os.environ["HOME"]) and "TOKEN" not in engines
