"""The queue end to end on one host, in this process, with real keepers, runners and commands."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from labkit import gpus as false
from queuebox import Box, Call, gone, hint, kill, until
from users import let_in, nobody

from mlbox import entry, errors
from mlbox.client.commands import jobs as lab_jobs
from mlbox.core import ids, wire
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.core.resources import Resources
from mlbox.core.schedule import Start, Waiting
from mlbox.core.session import Spec
from mlbox.host import (
    awaited,
    claim,
    cron,
    engines,
    fence,
    files,
    here,
    idle,
    inventory,
    keeping,
    lease,
    lookup,
    processes,
    ready,
    runner,
    store,
    tick,
    view,
)
from mlbox.host.engines.process import Process
from mlbox.host.handlers import cancel, init, logs, move, queue, retry, show, status, submit
from mlbox.host.handlers import host as host_handler
from mlbox.host.handlers import jobs as jobs_handler
from mlbox.host.job import Job

Json = dict[str, Any]
TRUE = JobSpec(command=("true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0))

# ---- the main path -------------------------------------------------------------------------------


def test_submit_runs_at_once_and_leaves_nothing(box: Box) -> None:
    job = box.sh('echo "hello from $MLBOX_JOB $MLBOX_ATTEMPT"; pwd; echo oops >&2', env={"SECRET": "s3cret"})
    state = box.end(job)
    assert (state.name, state.facts["exit"], state.attempt) == ("finished", 0, 1)
    assert box.output(job) == f"hello from {job.id} 1\n{job.attempt(1) / 'work'}\noops\n"
    assert [e["event"] for e in job.events()] == ["submitted", "claimed", "started", "finished"]
    assert box.archived() == {job.id: "finished"}
    box.tick()
    box.assert_nothing_leaks()
    readable = [p for p in box.root.rglob("*") if p.is_file() and p.stat().st_mode & 0o044]
    assert not [p for p in readable if b"s3cret" in p.read_bytes()]


OWN = {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all", "MLBOX_SESSION": "x", "MLBOX_ATTEMPT": "9"}


@pytest.mark.parametrize("name", OWN)
def test_what_mlbox_sets_itself_is_refused(box: Box, name: str) -> None:
    with pytest.raises(errors.Usage, match=f"--env {name}: .*mlbox"):
        box.sh("true", env={name: "0"})


def test_what_mlbox_sets_itself_wins(box: Box) -> None:
    """Over what an older mlbox took."""
    script = 'echo "$CUDA_VISIBLE_DEVICES,$NVIDIA_VISIBLE_DEVICES,$MLBOX_SESSION,$MLBOX_ATTEMPT,$MINE"'
    spec = replace(TRUE, command=("/bin/sh", "-c", script), work=Spec(runtime="process", env={**OWN, "MINE": "1"}))
    job = submit.submit(box.found, spec)
    box.jobs.append(job)
    box.tick()
    assert box.end(job).name == "finished" and box.output(job) == f",void,{job.id},1,1\n"


def test_the_environment_reaches_the_command(box: Box) -> None:
    job = box.sh('test "$KEY" = "a b\nc" && test "$MLBOX_ARRAY_INDEX" = 0', env={"KEY": "a b\nc"})
    assert box.end(job).name == "finished"


@pytest.mark.parametrize(
    ("command", "facts"),
    [
        (("/bin/sh", "-c", "exit 3"), {"exit": 3, "signal": 0, "reason": "exit"}),
        (("/bin/sh", "-c", "kill -SEGV $$"), {"exit": 0, "signal": 11, "reason": "signal"}),
        (("no-such-program-here",), {"exit": 127, "signal": 0, "reason": "exit"}),
        (("/etc/passwd",), {"exit": 126, "signal": 0, "reason": "exit"}),
    ],
    ids=["exit", "signal", "not found", "not a program"],
)
def test_how_a_command_failed_is_told_apart(box: Box, command: tuple[str, ...], facts: dict[str, object]) -> None:
    state = box.end(box.submit(*command))
    assert state.name == "failed"
    assert {key: state.facts[key] for key in facts} == facts


def test_a_job_s_end_starts_the_next(box: Box) -> None:
    box.lab("queues: {default: {max_running: 1}}\n")
    jobs = [box.sh("true") for _ in range(4)]
    assert [box.end(job).name for job in jobs] == ["finished"] * 4  # without another tick
    starts = [job.state().facts["claimed_at"] for job in jobs]
    assert starts == sorted(starts)


def ended_elsewhere(box: Box, job: Job) -> None:
    """As another host does it: what is this host's own of the job is not touched."""
    assert job.append("cancelled", {"at": time.time(), "why": "elsewhere"})
    shutil.rmtree(box.found.own() / "ready")


def test_a_tick_that_is_killed_at_a_start_leaves_no_folder(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the job is never started here again."""
    box.call(queue, do="pause", queue="default")
    job = box.sh("true")
    box.call(queue, do="resume", queue="default")
    monkeypatch.setattr(store.Store, "mark_live", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if not child:
        box.tick()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert job.boot_folder.exists()
    ended_elsewhere(box, job)
    assert not idle.idle(str(box.root), box.found.user, box.found.host)
    box.tick()
    box.assert_nothing_leaks()
    elsewhere = box.found.boot_folder() / f"{idle.name_of_ticks('/another/root')}.starting.{job.id}"
    elsewhere.touch()
    assert idle.idle(str(box.root), box.found.user, box.found.host)
    elsewhere.unlink()


def test_a_start_that_loses_the_share_leaves_no_folder(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.sh("true")
    box.call(queue, do="resume", queue="default")

    def away(*_: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    for name in ("mark_live", "is_live"):
        monkeypatch.setattr(store.Store, name, away)
    assert box.tick().started == ()
    monkeypatch.undo()
    assert job.boot_folder.exists()
    ended_elsewhere(box, job)
    box.tick()
    box.assert_nothing_leaks()


def test_the_first_tick_of_a_user_and_the_next_find_nothing_to_do(box: Box) -> None:
    for _ in range(3):
        report = box.tick()
        assert (report.started, report.busy, report.trouble) == ((), False, "")


# ---- cancel and time -----------------------------------------------------------------------------


def test_cancel_a_waiting_job(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    assert box.hints() == [job.id]
    assert box.cancel(job)["state"] == "cancelled"
    assert (job.state().name, box.hints(), box.archived()) == ("cancelled", [], {job.id: "cancelled"})
    assert box.cancel(job)["state"] == "cancelled"  # twice does no harm
    box.call(queue, do="resume", queue="default")
    box.tick()
    assert job.state().name == "cancelled"
    box.assert_nothing_leaks()


def test_a_session_in_line_is_cancelled_as_a_job_is(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    session = box.submit(name="calm-owl")
    assert box.cancel(session)["state"] == "cancelled"
    assert (session.state().name, box.hints()) == ("cancelled", [])


def test_cancel_a_running_job_ends_all_that_it_started(box: Box) -> None:
    sleep = f"sleep 77077.{os.getpid()}"  # by which they are found, machine-wide
    job = box.sh(f"trap 'echo bye; exit 0' TERM; setsid env -i /bin/{sleep} & setsid {sleep} & echo up; wait")
    box.started(job, "up")
    reply = box.cancel(job)
    assert (reply["state"], reply["requested"]) == ("started", "cancel_requested")
    assert box.end(job).name == "cancelled"
    assert box.output(job) == "up\nbye\n"
    sleeping = subprocess.run(("pgrep", "-f", sleep), capture_output=True).stdout
    assert sleeping == b""
    box.assert_nothing_leaks()


def test_a_command_that_ignores_sigterm_is_killed_after_its_grace_time(box: Box) -> None:
    job = box.sh("trap 'echo no' TERM; echo up; while :; do sleep 0.1; echo on; done", grace=1)
    box.started(job, "up")
    box.cancel(job)
    state = box.end(job)
    assert (state.name, state.facts["signal"]) == ("cancelled", 9)
    assert "on" in box.output(job).partition("no\n")[2].split()


def test_a_cancellation_that_the_keeper_did_not_hear_is_told_again(box: Box) -> None:
    """Another host appends the word, and cannot signal this one's keeper."""
    job = box.sh("sleep 60")
    box.started(job)
    assert job.append("cancel_requested", {"by": "ada"}, 1)
    box.tick()
    assert box.end(job).name == "cancelled"


def test_a_cancellation_while_nobody_keeps_the_job(box: Box) -> None:
    job = box.sh("sleep 60")
    box.started(job)
    box.kill_keeper(job)
    box.cancel(job)
    box.tick()
    assert box.end(job).name == "cancelled"
    box.assert_nothing_leaks()


def test_time_limit(box: Box) -> None:
    job = box.sh("sleep 60", resources={"time_limit": 1})
    state = box.end(job)
    assert (state.name, state.facts["reason"]) == ("failed", "timeout")


def test_the_time_limit_holds_under_a_new_keeper(box: Box) -> None:
    job = box.sh("sleep 60", resources={"time_limit": 6})
    box.started(job)
    box.kill_keeper(job)
    box.tick()
    assert box.end(job).facts["reason"] == "timeout"


@pytest.mark.parametrize("asked", [0, 3])
def test_output_is_cut_by_the_policy_that_holds_when_it_starts(box: Box, asked: int) -> None:
    """lab.yaml was changed since it was submitted."""
    box.lab("queues: {default: {output_limit: 2M}}")
    box.call(queue, do="pause", queue="default")
    job = box.sh("head -c 4000000 /dev/zero | tr '\\0' x", output_limit=asked)
    box.lab("max_output_limit: 1M")
    box.call(queue, do="resume", queue="default")
    box.tick()
    box.end(job)
    kept, said = box.output(job).split("\n", 1)
    assert len(kept) == 1 << 20
    assert said == f"[mlbox: {4_000_000 - (1 << 20)} bytes of output were dropped: the limit of 1 MiB is reached]\n"


def test_who_signed_what_was_removed_from_tmp_is_told_all_the_same(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "PATIENCE", 0.0)
    cancelled = box.sh("sleep 60")
    box.started(cancelled)
    limited = box.sh("sleep 60", resources={"time_limit": 10})
    box.started(limited)
    (limited.boot_folder / "attempt.pid").unlink()
    cancelled.keeper_pid.unlink()
    box.cancel(cancelled)
    assert box.end(cancelled).name == "cancelled"
    assert box.end(limited).facts["reason"] == "timeout"
    box.assert_nothing_leaks()


def test_output_is_read_where_nothing_can_be_written(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    job = box.sh("echo hello")
    box.end(job)

    def read_only(descriptor: int, mode: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fchmod", read_only)
    call: Any = Call(box.root, job=job.id)
    assert logs.run(call)["state"] == "finished"
    assert call.said == [{"output": "hello\n"}]


# ---- again, in numbers, in order -----------------------------------------------------------------


def test_before_the_back_off_is_over_it_waits_and_says_so(box: Box) -> None:
    job = box.sh("exit 1", retries=5, backoff=3600)
    box.wait(job, "retry")
    assert box.hints() == [job.id]
    # Its keeper's own tick may still be at work; then ours leaves it to that one, and has no waits to tell.
    until(lambda: "retry not before" in (box.tick().waits or {}).get(job.id, ""))
    assert job.state().attempt == 1
    box.cancel(job)


def test_retry_with_back_off_then_success(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"echo x >>{tmp_path}/tries; test $(wc -l <{tmp_path}/tries) = 3", retries=5, backoff=1)
    until(lambda: box.tick() and job.state().name == "finished")
    retried = [event for event in job.events() if event["event"] == "retry"]
    assert [(event["reason"], event["exit"]) for event in retried] == [("exit", 1), ("exit", 1)]
    assert box.end(job).attempt == 3
    assert box.claims(job) == [1, 2, 3]
    assert [box.output(job, n) for n in (1, 2, 3)] == ["", "", ""]


def test_an_array_with_a_limit(box: Box, tmp_path: Path) -> None:
    log = tmp_path / "log"
    together = f"until test $(grep -c + {log}) -ge 2; do sleep 0.05; done"  # the first waits for the second
    jobs = box.submit_all("/bin/sh", "-c", f"echo + >>{log}; {together}; echo - >>{log}", array=6, array_limit=2)
    assert [box.end(job).name for job in jobs] == ["finished"] * 6
    running, most = 0, 0
    for line in log.read_text().split():
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert most == 2
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    assert [job.spec().array_index for job in jobs] == list(range(6))


def test_dependencies(box: Box, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hold = f"until [ -e '{gate}' ]; do sleep 0.05; done"
    good, bad = box.sh(hold), box.sh(f"{hold}; exit 1")
    ok, failing = {"job": good.id}, {"job": bad.id}
    after = [[ok], [{**failing, "end": "any"}], [failing], [ok, failing]]
    waiters = [box.submit_after(those) for those in after]
    assert not any(job.state().running for job in waiters)
    gate.touch()
    assert [box.end(job).name for job in (good, bad)] == ["finished", "failed"]
    states = [box.end(job) for job in waiters]
    assert [state.name for state in states] == ["finished", "finished", "failed", "failed"]
    assert states[2].facts["reason"] == "dependency" and "failed" in states[2].facts["why"]
    assert box.claims(waiters[2]) == []
    box.tick()
    box.assert_nothing_leaks()


def test_a_dependency_that_is_none_is_refused(box: Box) -> None:
    with pytest.raises(errors.NotFound, match="no job"):
        box.submit_after([{"job": "01ARYZ6S41TSV4RRFFQ69G5FAV"}])


def test_move_and_priority_order_the_line(box: Box) -> None:
    box.lab("queues: {default: {max_running: 1}, other: {}}\nhosts: {}\n")
    box.call(queue, do="pause", queue="default")
    first, second, third = (box.sh("true") for _ in range(3))
    urgent = box.sh("true", priority=5)
    box.call(move, job=third.id, where="top")
    box.call(move, job=first.id, where="bottom")
    order = [w.id for w in ready.heads(box.found, box.found.user, "default", 10)]
    assert order == [urgent.id, third.id, second.id, first.id]
    box.call(queue, do="resume", queue="default")
    box.tick()
    for job in (urgent, third, second, first):
        box.end(job)
    claimed = sorted((urgent, third, second, first), key=lambda j: float(j.state().facts["claimed_at"]))
    assert [job.id for job in claimed] == order
    box.assert_nothing_leaks()


def test_a_job_moves_only_where_it_could_run(box: Box) -> None:
    """As at submit, and in the same words."""
    here = box.found.host
    box.lab(f"""
queues: {{default: {{}}, night: {{max_time_limit: 1h}}, quiet: {{max_output_limit: 1M}}, nobody: {{}}, far: {{}}}}
hosts: {{{here}: {{queues: [default, night, quiet], labels: [x]}}, gpu9: {{queues: [far]}}}}
""")
    box.call(queue, do="pause", queue="default")
    (box.found.on("gpu9")).mkdir(parents=True)
    (box.found.on("gpu9") / "host.json").write_text(json.dumps({"at": 1.0, "gpus": [], "cpus": 2, "memory": 1}))
    job = box.sh("true", resources={"labels": ("x",), "time_limit": 7200}, output_limit=2)
    for name, error, words in (
        ("nobody", errors.Refused, "no host serves queue nobody"), ("far", errors.Refused, "gpu9 has no label x"),
        ("night", errors.Refused, "queue night gives at most 1h"),
        ("quiet", errors.Refused, "queue quiet keeps at most 1 MiB of output"),
        ("no", errors.NotFound, "there is no queue no"),
    ):  # fmt: skip
        said = []
        for act in (
            lambda name=name: box.call(move, job=job.id, queue=name),
            lambda name=name: box.sh(
                "true", queue=name, resources={"labels": ("x",), "time_limit": 7200}, output_limit=2
            ),
        ):
            with pytest.raises(error, match=words) as caught:
                act()
            said.append((caught.value.message, caught.value.hint))
        assert said[0] == said[1]
    assert [w.queue for w in ready.heads(box.found, box.found.user, "default", 9)] == ["default"]
    assert box.call(move, job=job.id, where="top")["queue"] == "default"


def test_retry_makes_a_new_job_of_an_ended_one(box: Box) -> None:
    job = box.sh('test -n "$KEY" && exit 4', env={"KEY": "s3cret"})
    assert box.end(job).facts["exit"] == 4
    again = box.found.job(box.call(retry, job=job.id)["id"])
    box.jobs.append(again)
    assert box.end(again).facts["exit"] == 4
    assert job.state().name == "failed"


def test_an_element_of_an_array_is_retried_with_its_index_where_it_was_moved_to(box: Box) -> None:
    box.lab("queues: {default: {}, other: {}}\n")
    box.call(queue, do="pause", queue="default")
    job = box.submit_all("/bin/sh", "-c", "echo $MLBOX_ARRAY_INDEX; exit 3", array=3)[2]
    box.call(move, job=job.id, queue="other", priority=-2)
    assert box.end(job).facts["exit"] == 3
    again = box.found.job(box.call(retry, job=job.id)["id"])
    box.jobs.append(again)
    box.end(again)
    assert box.output(again) == box.output(job) == "2\n"
    assert (again.spec().queue, again.spec().priority, again.spec().array) == ("other", -2, "")


def test_an_array_that_fails_midway_is_taken_back(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tick has started of it meanwhile ends."""
    real, made = submit.submit, list[Job]()

    def full(found: store.Store, spec: JobSpec, id_: str) -> Job:
        if len(made) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(real(found, spec, id_))
        if len(made) == 1:
            assert box.tick().started == (made[0].id,)
            box.wait(made[0], "started")  # while its keeper writes that, nobody else can write, and so it would be said
        return made[-1]

    monkeypatch.setattr(submit, "submit", full)
    with pytest.raises(OSError, match="No space left"):
        box.submit_all("sleep", "1000", array=10)
    box.jobs += made[:1]
    assert box.end(made[0]).name == "cancelled" and not any(job.folder.exists() for job in made[1:])
    box.assert_nothing_leaks()


def test_what_can_not_be_taken_back_of_an_array_is_said(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.call(queue, do="pause", queue="default")
    real, made = submit.submit, list[Job]()

    def full(found: store.Store, spec: JobSpec, id_: str, **_: Any) -> Job:
        if len(made) == 2:
            disk.setattr(Job, "append", full)
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(real(found, spec, id_))
        return made[-1]

    with monkeypatch.context() as disk, pytest.raises(errors.HostUnready, match=r"left on device; 2 jobs .* in line"):
        disk.setattr(submit, "submit", full)
        box.submit_all("true", array=3)
    assert box.hints() == [job.id for job in made]


def in_docker(box: Box, **fields: Any) -> Job:
    work = Spec(name="boxed", image="alpine", runtime="docker")
    box.found.own_place()
    spec = JobSpec(command=("true",), work=work, resources=Resources(gpus="0", cpus=0), **fields)
    box.jobs.append(submit.submit(box.found, spec))
    return box.jobs[-1]


def test_a_job_for_an_engine_that_this_host_has_not_waits_for_one_that_has(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    job = in_docker(box)
    why = f"{box.found.host}: there is no docker on this host; tried again in 16m"
    assert (box.tick().waits or {})[job.id].startswith(why[:-2])
    assert job.state().name == "submitted"


def test_an_engine_that_goes_away_before_the_start_is_no_loss(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Process):
        def identify(self, spec: Spec, patience: float = 0) -> str:
            raise errors.HostUnready("Docker is installed, but its daemon does not answer")

    monkeypatch.setattr(engines, "choose", lambda spec, found, *_: engines.Choice("docker", ""))
    monkeypatch.setattr(engines, "by_name", lambda name, found: Gone(found))
    job = in_docker(box, max_losses=1)
    box.tick()
    facts = box.wait(job, "lost").facts
    assert (facts["reason"], facts.get("losses")) == ("unready", None)
    assert facts["why"] == "Docker is installed, but its daemon does not answer; this counts as no loss"


@pytest.mark.parametrize("other", [True, False])
def test_a_host_without_an_engine_takes_a_submission_where_another_could_run_it(
    box: Box, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    box.lab("hosts: {gpu2: {}}\nqueues: {default: {}}\n")
    if other:
        files.make_folder(box.found.on("gpu2"))
        told = {"at": 1.0, "boot": "b", "cpus": 4, "memory": 1024, "gpus": []}
        (box.found.on("gpu2") / "host.json").write_text(json.dumps(told))
    monkeypatch.setenv("PATH", "/nowhere")
    spec = JobSpec(command=("true",), work=Spec(image="alpine"), resources=Resources(gpus="0", cpus=0)).to_wire()
    asked = {"spec": json.loads(json.dumps(spec))}
    if not other:
        with pytest.raises(errors.HostUnready, match="no container engine"):
            box.call(submit, **asked)
        return
    reply = box.call(submit, **asked)
    box.jobs.append(box.found.job(reply["jobs"][0]["id"]))
    assert reply["elsewhere"] == ["gpu2"]
    assert "no container engine" in reply["waits"][box.jobs[-1].id]


def test_a_job_is_not_run_with_masks_in_the_place_of_its_secrets(held: Box) -> None:
    job = held.sh("echo $TOKEN", env={"TOKEN": "s3cret"})
    (job.folder / "secret.json").unlink()
    held.call(queue, do="resume", queue="default")
    held.tick()
    state = job.state()
    assert (state.name, held.output(job)) == ("failed", "")
    assert "has no readable secret.json" in state.facts["why"]


@pytest.mark.parametrize(
    "words", [{"env": {f"A{n}": "x" * 100_000 for n in range(12)}}, {"retry_on": ("exit",) * 200_000}]
)
def test_what_is_too_long_to_be_read_back_is_refused(box: Box, words: Json) -> None:
    with pytest.raises(errors.Refused, match="more than 1024 KiB"):
        box.sh("true", **words)
    assert not box.hints() and not list((box.found.own() / "jobs").glob("*/*"))


def test_a_host_without_room_in_tmp_claims_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keeper would die of it, the job be lost, and be claimed here again until it had failed."""
    monkeypatch.setattr(runner, "_ROOM", "/dev/full")
    job = box.sh("true")
    waits = box.tick().waits or {}
    why = f"{box.found.host}: /tmp/mlbox-{os.getuid()} takes no job: No space left on device; tried again in "
    assert job.state().name == "submitted" and waits[job.id].startswith(why)
    assert not job.boot_folder.exists()


def test_a_cancellation_that_a_claim_outran_is_one_of_a_running_job(held: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be cancelled for good, and run on."""
    job = held.sh("true")
    views = [job.state()] * 2
    assert job.append("claimed", {"at": time.time(), "host": "elsewhere", "attempt": 1, "gpus": []})
    now = Job.state
    monkeypatch.setattr(Job, "state", lambda made: views.pop() if views else now(made))
    assert (cancel.request(held.found, job).name, job.state().requested) == ("claimed", "cancel_requested")


# ---- moved, and not wholly -----------------------------------------------------------------------


@pytest.fixture
def held(box: Box) -> Box:
    """Two queues, nothing starts in either."""
    box.lab("queues: {default: {}, hold: {}}\n")
    for name in ("default", "hold"):
        box.call(queue, do="pause", queue=name)
    return box


def places(box: Box, job: Job) -> list[str]:
    return sorted(path.relative_to(box.found.own() / "ready").parts[0] for path in box.root.rglob(f"ready/**/{job.id}"))


@pytest.mark.parametrize("cut", ["publish", "withdraw"])
def test_a_move_that_was_cut_short_starts_nothing_where_the_job_is_no_more(
    held: Box, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = held.sh("true")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="Input/output"):
        broken.setattr(ready, cut, fail)
        held.call(move, job=job.id, queue="hold")
    held.call(queue, do="resume", queue="default")
    assert held.tick().started == () and job.state().waiting
    assert "hold" in places(held, job)
    held.call(queue, do="resume", queue="hold")
    held.tick()
    assert held.end(job).name == "finished"


@pytest.mark.parametrize("cut", ["publish", "withdraw"])
def test_a_mover_that_died_is_followed_by_a_sweep(held: Box, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old queue starts nothing, so no start would find it out."""
    job = held.sh("true")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="dead"):
        broken.setattr(ready, cut, lambda *_: (_ for _ in ()).throw(OSError("dead")))
        held.call(move, job=job.id, queue="hold")
    monkeypatch.setattr(here, "is_dead", lambda writer: True)
    held.call(queue, do="resume", queue="hold")
    held.tick()
    assert held.end(job).name == "finished"
    held.assert_nothing_leaks()


def test_an_old_view_of_a_log_undoes_no_move(held: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host has moved it, and this one's client shows the new place and the log as it was before."""
    job = held.sh("true")
    before = job.events()
    held.call(move, job=job.id, queue="hold")
    held.call(queue, do="resume", queue="hold")
    with monkeypatch.context() as behind:
        behind.setattr(Job, "events", lambda made: before)
        assert tick.run(held.found).started == ()
        assert places(held, job) == ["hold"]
    held.tick()
    assert held.end(job).name == "finished"


def test_a_claim_from_an_old_view_finds_the_move(held: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the hint and the log that this host sees are those of before."""
    job = held.sh("true")
    seen = waiting(job.id, job.owner, job.spec(), job.state())
    held.call(move, job=job.id, queue="hold")
    old = [job.state(), replace(job.state(), facts={**job.state().facts, "queue": "default", "moves": 0})]
    with monkeypatch.context() as behind:
        behind.setattr(Job, "state", lambda made: old.pop())
        assert not claim.start(held.found, seen, Start(job.id, (), 0, 0), None, tick.again)
    assert job.state().waiting and held.claims(job) == [] and places(held, job) == ["hold"]
    held.cancel(job)
    held.assert_nothing_leaks()


# ---- killed --------------------------------------------------------------------------------------


def test_a_killed_keeper_is_replaced_and_the_right_end_recorded(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"echo up; while ! test -e {tmp_path}/go; do sleep 0.05; done; exit 3")
    box.started(job, "up")
    box.kill_keeper(job)
    box.tick()
    assert keeping.lives(job) and job.state().name == "started"
    (tmp_path / "go").touch()
    state = box.end(job)
    assert (state.name, state.facts["exit"], box.claims(job)) == ("failed", 3, [1])
    box.assert_nothing_leaks()


def test_a_job_that_ended_while_nobody_kept_it(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"echo up; while ! test -e {tmp_path}/go; do sleep 0.05; done; exit 3")
    box.started(job, "up")
    box.kill_keeper(job)
    (tmp_path / "go").touch()
    until(lambda: (job.boot_folder / "exit.json").exists())
    box.tick()
    assert box.end(job).facts["exit"] == 3
    box.assert_nothing_leaks()


def test_an_adopted_job_s_end_starts_the_next(box: Box, tmp_path: Path) -> None:
    box.lab("queues: {default: {max_running: 1}}\n")
    job, following = box.sh(f"while ! test -e {tmp_path}/go; do sleep 0.05; done"), box.sh("true")
    box.started(job)
    box.kill_keeper(job)
    box.tick()
    (tmp_path / "go").touch()
    assert box.end(following).name == "finished"


def test_a_killed_runner_is_a_lost_attempt_and_the_command_ends(box: Box) -> None:
    job = box.sh("test $MLBOX_ATTEMPT = 2 || exec sleep 60")
    box.started(job)
    box.kill_runner(job)
    assert box.end(job).name == "finished"  # its keeper records it, and ticks
    assert box.claims(job) == [1, 2]
    assert [e["event"] for e in job.events()][3] == "lost"
    box.assert_nothing_leaks()


def test_killed_keeper_and_runner_are_a_lost_attempt(box: Box) -> None:
    job = box.sh("test $MLBOX_ATTEMPT = 2 || exec sleep 60")
    box.started(job)
    box.kill_keeper(job)
    box.kill_runner(job)
    assert processes.marked(job.id)
    report = box.tick()
    assert report.started == (job.id,)
    assert box.end(job).attempt == 2
    box.assert_nothing_leaks()


def test_a_job_that_kills_its_keepers_is_not_tried_for_ever(box: Box) -> None:
    """Its second loss is backed off from, its third its end, and `show` says why."""
    job = box.sh("exec sleep 60", backoff=4)
    for attempt in (1, 2, 3):
        until(lambda: box.tick() and job.state().attempt == attempt)  # noqa: B023 (called at once)
        box.started(job)
        box.kill_keeper(job)
        box.kill_runner(job)
        box.tick()
        if attempt == 2:
            assert "retry not before" in (box.tick().waits or {})[job.id]
    state = box.end(job)
    assert (state.name, state.attempt, state.facts["reason"]) == ("failed", 3, "lost")
    assert "loss 3 of at most 3" in str(box.call(show, job=job.id)["events"][-1]["why"])
    box.tick()
    box.assert_nothing_leaks()


def test_on_host_loss_hold_is_a_failure(box: Box) -> None:
    job = box.sh("sleep 60", on_host_loss="hold")
    box.started(job)
    box.kill_keeper(job)
    box.kill_runner(job)
    box.tick()
    state = job.state()
    assert (state.name, state.facts["reason"]) == ("failed", "lost")
    box.assert_nothing_leaks()


def another_boot(monkeypatch: pytest.MonkeyPatch, folder: Path, uptime: float) -> None:
    """Here, and of this age (s)."""
    (folder / "boot").write_text("another-boot\n")
    monkeypatch.setattr(processes, "BOOT_ID", folder / "boot")
    monkeypatch.setattr(processes, "uptime", lambda: uptime)


def test_another_machine_of_this_name_takes_no_job_for_its_own(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = box.sh("sleep 60")
    box.started(job)
    with monkeypatch.context() as elsewhere:
        another_boot(elsewhere, tmp_path, uptime=3600)
        for act in (box.tick, lambda: box.submit("true"), lambda: box.call(init), lambda: box.call(status)):
            with pytest.raises(errors.HostUnready, match="another machine that is called"):
                act()
        assert box.claims(job) == [1] and keeping.lives(job) and not box.hints()
        os.utime(box.found.on() / "host.json", (1, 1))  # that one has been gone for long
        box.tick()
        assert os.listdir(box.found.parts) == []


def test_a_clock_that_was_ahead_before_the_boot_makes_no_second_machine(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.tick()
    ahead = time.time() + 7200
    os.utime(box.found.on() / "host.json", (ahead, ahead))
    another_boot(monkeypatch, tmp_path, uptime=3600)
    assert box.submit("true")


@pytest.mark.parametrize("stored", ["data/x", "./here"])
def test_a_folder_that_older_versions_took_is_still_a_job_s(box: Box, stored: str) -> None:
    with pytest.raises(errors.Usage, match="no folder of every host's"):
        box.submit("true", folder=stored)
    box.call(queue, do="pause", queue="default")
    job = box.submit("true", folder="/tmp")
    path = job.folder / "spec.json"
    path.write_text(path.read_text().replace('"/tmp"', f'"{stored}"'))
    assert box.call(cancel, job=job.id)["state"] == "cancelled"


@pytest.mark.parametrize(("policy", "end"), [("requeue", "finished"), ("hold", "failed")])
def test_a_reboot(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, end: str) -> None:
    job = box.sh("test $MLBOX_ATTEMPT = 2 || exec sleep 60", on_host_loss=policy)
    box.started(job)
    box.kill_keeper(job)
    box.kill_runner(job)
    for pid in processes.marked(job.id):
        kill(pid)
    shutil.rmtree(job.boot_folder)
    another_boot(monkeypatch, tmp_path, uptime=0)
    box.tick()
    state = box.end(job)
    assert state.name == end
    lost = next(e for e in job.events() if e.get("reason") == "lost")
    assert "restarted" in lost["why"]
    box.assert_nothing_leaks()


def test_a_keeper_that_could_not_start_the_job_says_why(box: Box) -> None:
    job = box.sh("true", folder="/no/such/folder")
    state = box.end(job)
    assert (state.name, state.facts["reason"]) == ("failed", "start")
    assert "/no/such/folder" in state.facts["why"]


def test_a_bug_in_the_keeper_is_a_failure_and_no_endless_loop(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("mlbox.host.batch.prepare", broken)
    state = box.end(box.sh("true"))
    assert (state.name, state.facts["reason"], state.facts["why"]) == ("failed", "start", "a bug")


def test_a_job_that_is_claimed_elsewhere_since_is_left_to_that_host(box: Box) -> None:
    """A host that was thought dead, and fenced, comes back: its hint is old, the claim is another's."""
    job = box.sh("sleep 60")
    box.started(job)
    assert job.append("lost", {"why": "fenced"}, 1)
    assert job.append("claimed", {"host": "gpu2", "boot": "b", "attempt": 2, "gpus": []})
    box.kill_keeper(job)
    box.kill_runner(job)
    box.tick()
    state = job.state()
    assert (state.name, state.facts["host"], state.attempt) == ("claimed", "gpu2", 2)
    assert not processes.marked(job.id) and not box.is_live(job) and not job.boot_folder.exists()


def test_a_job_that_is_told_to_make_room_waits_again(box: Box) -> None:
    job = box.sh("sleep 600")
    box.started(job)
    assert tick._preempt(box.found, job.id, "another")
    until(lambda: "preempted" in [event["event"] for event in job.events()])
    box.cancel(job)
    assert box.end(job).name == "cancelled"


@pytest.mark.parametrize("lost", ["before", "meanwhile"])
def test_a_job_that_runs_elsewhere_by_now_makes_no_room_here(
    box: Box, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    job = submit.submit(box.found, TRUE)
    box.jobs.append(job)
    claimed = {"at": 1.0, "boot": "x", "gpus": []}
    assert job.append("claimed", {**claimed, "host": box.found.host, "attempt": 1}) and job.append("started", {}, 1)
    seen = job.state()
    assert job.append("lost", {"why": "its runner was killed"}, 1)
    assert job.append("claimed", {**claimed, "host": "gpu2", "attempt": 2}) and job.append("started", {}, 2)
    with monkeypatch.context() as then:
        if lost == "meanwhile":
            then.setattr(Job, "state", lambda self: seen)
        assert not tick._preempt(box.found, job.id, "another")
    assert (job.state().attempt, job.state().requested) == (2, "")
    assert job.append("finished", {}, 2)


def test_a_living_keeper_whose_job_is_claimed_elsewhere_discards_its_end(box: Box) -> None:
    job = box.sh("sleep 60")
    box.started(job)
    assert job.append("lost", {"why": "fenced"}, 1)
    assert job.append("claimed", {"host": "gpu2", "boot": "b", "attempt": 2, "gpus": []})
    keeping.tell(job)
    until(lambda: not box.is_live(job))
    assert (job.state().name, job.state().attempt) == ("claimed", 2)
    assert not job.boot_folder.exists() and not processes.marked(job.id)


def fenced(box: Box, *jobs: Job) -> None:
    """By a person at another host, who takes this one for gone."""
    box.call(queue, do="pause", queue="default")  # otherwise it starts here again
    elsewhere = store.Store(box.root)
    elsewhere.host = "gpu2"
    assert fence.host(elsewhere, box.found.host) == [job.id for job in jobs]
    assert box.running() == []  # nobody reckons with it
    assert fence.host(elsewhere, box.found.host) == []


@pytest.mark.parametrize("kept", [True, False], ids=["its keeper lives", "its keeper was killed"])
def test_a_fenced_host_that_is_back_ends_what_it_runs(box: Box, kept: bool) -> None:
    job = box.sh("trap '' TERM; while :; do sleep 0.1; done", grace=0)
    box.started(job)
    fenced(box, job)
    if not kept:
        box.kill_keeper(job)
    box.tick()
    until(lambda: not box.is_live(job))
    assert not processes.marked(job.id) and not job.boot_folder.exists()
    assert (job.state().name, job.state().attempt, box.hints()) == ("lost", 1, [job.id])
    box.call(queue, do="resume", queue="default")
    box.tick()  # or that of the keeper that has just ended
    assert box.wait(job, "started").attempt == 2
    box.cancel(job)
    box.end(job)
    box.assert_nothing_leaks()


def _ran_on_gpu9(box: Box, queued: bool, command: tuple[str, ...] = ()) -> Job:
    job = box.found.job(ids.ulid(int(time.time() * 1000), os.urandom(10)))
    box.found.own_place()
    box.found.create(job, JobSpec(command=command, work=Spec(name="far", runtime="process")), queued=queued)
    job.append("submitted", {"at": 1.0, **({"queue": "shut"} if queued else {})})
    job.append("claimed", {"at": 1.0, "host": "gpu9", "boot": "b", "gpus": [], "attempt": 1})
    job.append("started", {"at": 1.0})
    files.make_folder(box.found.on("gpu9") / "live")
    files.write_whole(box.found.on("gpu9") / "live" / job.id, b"{}")
    return job


@pytest.mark.parametrize("queued", [True, False])
def test_of_fenced_sessions_those_start_elsewhere_that_were_in_line(box: Box, queued: bool) -> None:
    """One that somebody started on that very host is not started on another, where nobody would look for it."""
    box.lab("queues: {default: , shut: }")
    box.call(queue, do="pause", queue="shut")
    job = _ran_on_gpu9(box, queued)
    assert box.call(host_handler, do="fence", name="gpu9")["requeued"] == ([job.id] if queued else [])
    state = job.state()
    assert (state.name, box.hints()) == (("lost", [job.id]) if queued else ("failed", []))
    assert "gpu9 was declared gone" in str(state.facts["why"])


def test_a_damaged_job_does_not_keep_a_host_from_being_fenced(box: Box) -> None:
    box.lab("queues: {default: , shut: }")
    box.call(queue, do="pause", queue="shut")
    damaged, job = (_ran_on_gpu9(box, True, ("true",)) for _ in range(2))
    (damaged.folder / "spec.json").write_text("{")
    assert set(box.call(host_handler, do="fence", name="gpu9")["requeued"]) == {damaged.id, job.id}


def test_how_a_fenced_job_ended_counts_for_nothing(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"while ! test -e {tmp_path}/go; do sleep 0.05; done; exit 3")
    box.started(job)
    fenced(box, job)
    (tmp_path / "go").touch()
    until(lambda: not box.is_live(job) and not job.boot_folder.exists())
    assert (job.state().name, box.hints()) == ("lost", [job.id])
    box.cancel(job)
    box.assert_nothing_leaks()


def test_a_runner_is_not_taken_for_dead_before_it_has_begun(box: Box, tmp_path: Path) -> None:
    """The keeper dies in the moment after the runner's start: the lock is held since before it."""
    job = box.sh(f"until test -e {tmp_path}/go; do sleep 0.05; done; exit 3")
    until(lambda: (job.boot_folder / "attempt.lock").exists())
    box.kill_keeper(job)
    box.tick()
    (tmp_path / "go").touch()
    state = box.end(job)
    assert state.name in ("failed", "finished")
    runs = sum(e["event"] == "claimed" for e in job.events())
    if runs == 1:
        assert state.facts["exit"] == 3


@pytest.mark.parametrize("killed", [False, True], ids=["", "its keeper was killed"])
def test_a_job_submitted_by_a_job_outlives_it(
    box: Box, tmp_path: Path, leases: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Its keeper carries no mark of the first one's, and is a child of that one's runner all the same."""
    monkeypatch.setenv("TEST_BOX_LEASES", str(leases))
    spec = replace(TRUE, command=("/bin/sh", "-c", f"echo up; until test -e {tmp_path}/go; do sleep 0.05; done"))
    request = wire.Request("submit", {"spec": spec.to_wire(), "root": str(box.root)}, "0" * 32)
    (tmp_path / "request").write_bytes(request.encode())
    asks = f"{sys.executable} -I -S {sys.argv[0]} host <{tmp_path}/request"
    outer = box.sh(f"{asks}; until test -e {tmp_path}/end; do sleep 0.05; done")
    until(lambda: "reply" in box.output(outer))
    (inner,) = (job for job in map(box.found.job, box.running()) if job.id != outer.id)
    box.jobs.append(inner)
    box.started(inner, "up")
    runner = box.runner(inner)
    assert {runner, box.keeper(inner)}.isdisjoint(processes.marked(outer.id))
    assert runner in processes.descendants(box.runner(outer))
    if killed:
        box.kill_keeper(inner)
    (tmp_path / "end").touch()
    assert box.end(outer).name == "finished"
    assert box.runner(inner) == runner and inner.state().name == "started"
    box.tick()
    (tmp_path / "go").touch()
    assert box.end(inner).name == "finished"
    assert box.claims(inner) == [1]
    box.tick()
    box.assert_nothing_leaks()


def test_after_some_keepers_that_forked_one_another_a_new_python_goes_on(
    box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is deeper in the same stack: of a hundred short jobs in a row the last ones were left to cron."""
    monkeypatch.setattr(tick, "_GENERATIONS", 2)
    box.lab("queues: {default: {max_running: 1}}\n")
    monkeypatch.setattr(here, "umask", -1)
    script = f"tr '\\0' ' ' </proc/$PPID/cmdline; umask; until [ -e {tmp_path}/$MLBOX_JOB ]; do sleep 0.05; done"
    before = os.umask(0o077)
    try:
        here.be_readable()
        made = box.submit_all("sh", "-c", script, array=5)
        box.tick()
    finally:
        os.umask(before)
    last = 0
    for job in made:
        box.started(job)
        keeper = box.keeper(job)
        until(partial(gone, last))  # or its tick, still at work, would start the one after this as well
        (tmp_path / job.id).touch()
        last = keeper
    until(lambda: not any(job.state().live for job in made))
    assert {box.output(job).split()[-1] for job in made} == {"0077"}  # the user's own, in all of them
    assert [" again " in box.output(job) for job in made] == [False, False, True, True, True]
    assert [box.keeper_log(job) for job in made if box.keeper_log(job)] == []


# ---- words of people -----------------------------------------------------------------------------


def test_a_drained_host_starts_nothing_and_lets_run(box: Box, tmp_path: Path) -> None:
    running = box.sh(f"until test -e {tmp_path}/go; do sleep 0.05; done")
    box.started(running)
    box.call(host_handler, do="drain", name=box.found.host)
    job = box.sh("true")
    assert "drained" in (box.tick().waits or {})[job.id]
    (tmp_path / "go").touch()
    assert box.end(running).name == "finished"
    assert job.state().name == "submitted"
    box.call(host_handler, do="resume", name=box.found.host)
    box.tick()
    assert box.end(job).name == "finished"


def test_a_paused_queue(box: Box) -> None:
    box.call(queue, do="pause", queue="default", why="maintenance")
    job = box.sh("true")
    assert "is paused" in (box.tick().waits or {})[job.id]
    assert box.call(jobs_handler)["jobs"][0]["waits"]
    box.call(queue, do="resume", queue="default")
    assert box.tick().started == (job.id,)
    box.end(job)


def test_show_tells_a_job_whole(box: Box) -> None:
    job = box.sh("true", env={"KEY": "s3cret"})
    box.end(job)
    told = box.call(show, job=job.id)
    assert told["job"]["state"] == "finished" and "s3cret" not in json.dumps(told)
    assert lookup.job(box.found, job.id[-6:].lower()).id == job.id
    assert lookup.job(box.found, job.spec().name).id == job.id


# ---- stale and damaged ---------------------------------------------------------------------------


def test_stale_hints_are_found_out_and_go(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    gone = box.submit("true")
    box.cancel(gone)
    box.call(queue, do="resume", queue="default")
    hint(box.found, TRUE, gone.id)  # cancelled
    hint(box.found, TRUE)  # never was
    half = hint(box.found, TRUE)  # its folder was made, and no more
    (half.folder / "ev").mkdir(parents=True)
    good = box.sh("true")
    assert box.end(good).name == "finished"
    waits = box.tick().waits or {}
    assert box.hints() == [half.id] and "nothing is to be seen in its log" in waits[half.id]
    shutil.rmtree(half.folder)
    box.tick()
    assert box.hints() == []
    assert gone.state().name == "cancelled"
    box.jobs = [gone, good]
    box.assert_nothing_leaks()


def memory(patch: pytest.MonkeyPatch, total: int, free: int) -> None:
    """What the host has of it, MiB."""
    patch.setattr(view, "_meminfo", lambda: {"MemTotal": total, "MemAvailable": free})


def test_what_is_said_to_fit_starts_where_nobody_uses_anything(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was let ask for what the system itself needs waited for ever, and all that want memory behind it."""
    memory(monkeypatch, total=24105, free=23200)
    with pytest.raises(errors.MlboxError) as refused:
        box.submit("true", resources={"memory": 24105})
    assert refused.value.message.endswith(f"and {box.found.host} has 22 GiB for jobs"), refused.value.message
    assert "what would fit" in refused.value.hint and refused.value.hint.endswith("22 GiB")
    job = box.submit("true", resources={"memory": 22 * 1024})
    assert box.end(job).name == "finished"


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_no_room_is_kept_for_a_job_that_has_ended(box: Box, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for memory that strangers have; what comes behind it would wait for as long."""
    memory(monkeypatch, total=65536, free=32768)
    box.call(queue, do="pause", queue="default")
    big = box.submit("true", resources={"memory": 49152})
    small = box.submit("true", resources={"memory": 1})
    (box.root / "paused/default").unlink()
    assert "kept for" in str(box.tick().waits)
    spec = big.spec()
    box.cancel(big)
    if whose == "ours":
        hint(box.found, spec, big.id)
    else:
        if os.getuid() != 0:
            pytest.skip("needs root to make another user's files")
        shutil.rmtree(big.folder)
        theirs = other(box)
        beat = theirs.on() / "host.json"
        beat.parent.mkdir(parents=True)
        beat.write_text(json.dumps({"at": time.time()}))
        hint(theirs, spec, big.id)
        box.jobs.remove(big)
    assert small.state().waiting
    assert box.tick().started == (small.id,)
    assert box.end(small).name == "finished"
    assert box.hints() == []


def test_a_stale_hint_of_a_running_job_does_not_end_it(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"while ! test -e {tmp_path}/go; do sleep 0.05; done")
    box.started(job)
    hint(box.found, TRUE, job.id)
    box.tick()
    assert keeping.lives(job) and box.is_live(job)
    box.kill_keeper(job)
    # Before a sweep could adopt it.
    claim.start(box.found, Waiting(job.id, box.found.user), Start(job.id, (), 0, 0), None, tick.again)
    assert job.state().running
    box.tick()
    (tmp_path / "go").touch()
    assert box.end(job).name == "finished"
    box.tick()
    box.assert_nothing_leaks()


@pytest.mark.parametrize("elsewhere", ["runs", "in line again", "can't be read"])
def test_a_job_that_another_host_claimed_first_leaves_nothing_here(
    box: Box, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    """This tick has read the line, and another host claims before it looks into the job's log."""
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    claimed = {"at": 1.0, "host": "other", "boot": "b", "gpus": [], "attempt": 1}
    if elsewhere == "can't be read":

        def stale(_: Job) -> State:
            raise OSError(errno.ESTALE, "stale")

        monkeypatch.setattr(Job, "state", stale)
        with pytest.raises(OSError):
            claim.start(box.found, Waiting(job.id, box.found.user), Start(job.id, (), 0, 0), None, tick.again)
    else:
        assert job.append("claimed", claimed)
        if elsewhere == "in line again":
            state = Job.state
            seen = iter([job.state()])  # the tick reads it twice
            assert job.append("lost", {"at": 2.0}, 1)
            monkeypatch.setattr(Job, "state", lambda made: next(seen, None) or state(made))
        assert not claim.start(box.found, Waiting(job.id, box.found.user), Start(job.id, (), 0, 0), None, tick.again)
    assert not job.boot_folder.exists()


@pytest.mark.parametrize("damage", ["spec", "spec is a fifo", "secret", "folder", "log"])
def test_a_damaged_job_is_not_the_others_trouble(box: Box, damage: str) -> None:
    box.call(queue, do="pause", queue="default")
    bad, good = box.submit("true"), box.submit("true")
    if damage == "folder":
        shutil.rmtree(bad.folder)
    elif damage == "log":
        shutil.rmtree(bad.folder / "ev")
    elif damage == "secret":
        (bad.folder / "secret.json").write_text('{"env": 5}')
    else:
        (bad.folder / "spec.json").unlink()
        if damage == "spec is a fifo":
            os.mkfifo(bad.folder / "spec.json")
    box.call(queue, do="resume", queue="default")
    box.tick()
    assert box.end(good).name == "finished"
    waits = box.tick().waits or {}
    assert box.hints() == ([bad.id] if damage == "log" else [])  # it could only be not seen yet
    assert "nothing is to be seen in its log" in waits.get(bad.id, "") or damage != "log"
    if damage in ("spec", "spec is a fifo", "secret"):
        assert (bad.state().name, bad.state().facts["reason"]) == ("failed", "start")
        shown = {job["id"]: job for job in box.call(jobs_handler, ended=10)["jobs"]}[bad.id]
        assert shown["state"] == "failed" and f"{bad.id} has " in shown["why"]


def test_jobs_that_can_t_be_started_take_nobody_s_room(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ask for all CPUs. In one tick, the good one behind them starts."""
    box.call(queue, do="pause", queue="default")
    cpus = {"cpus": view._cpus()}
    bad = [box.submit("true", resources=cpus) for _ in range(3)]
    homeless = box.submit("true", resources=cpus, name="homeless")
    good = box.submit("true", resources=cpus)
    late = box.submit("true", resources=cpus)
    for job in bad:
        (job.folder / "spec.json").write_text("{")
    real = engines.choose

    def choose(spec: Spec, *arguments: Any) -> Any:
        if spec.name == "homeless":
            raise errors.HostUnready("no engine here")
        return real(spec, *arguments)

    monkeypatch.setattr(engines, "choose", choose)
    (box.root / "paused/default").unlink()
    report = box.tick()
    assert report.started == (good.id,)
    assert set(report.waits or {}) == {homeless.id, late.id}
    assert "no engine here" in (report.waits or {})[homeless.id]
    assert {job.state().name for job in bad} == {"failed"}
    box.end(good)
    box.end(late)
    box.cancel(homeless)
    box.tick()


def test_a_torn_claim_of_a_dead_process_is_stepped_over(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    (job.folder / "ev/000002").write_text("")
    box.call(queue, do="resume", queue="default")
    box.tick()
    assert box.end(job).name == "finished"


def test_a_claim_in_doubt_is_found_again(box: Box) -> None:
    """Another process is in the middle of a slot: nothing is started, nothing lost."""
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    writer = replace(here.this_writer(), host="gpu2")
    words = (f".000002.{writer.host}.{writer.boot}.{writer.pid}.{writer.started}.{'a' * 16}", "000002")
    for word in words:
        (job.folder / "ev" / word).write_text("")
    box.call(queue, do="resume", queue="default")
    report = box.tick()
    assert report.started == () and "being written" in (report.waits or {})[job.id]
    (job.folder / "ev" / words[0]).unlink()  # its host is back, and swept
    box.tick()
    box.tick()
    assert box.end(job).name == "finished"
    box.assert_nothing_leaks()


def test_a_submitter_that_died_on_the_way(box: Box) -> None:
    """After its log's first slot the job is in line by the next sweep; before, it is no job."""
    writer = json.dumps([box.found.host, "an-old-boot", 1, "1"])
    acknowledged = box.found.job(ids.ulid(1, b"0123456789"))
    nothing = box.found.job(ids.ulid(2, b"0123456789"))
    for job in (acknowledged, nothing):
        box.found.mark_making(job)
        box.found.create(job, TRUE, queued=True)
        (box.found.making / job.id).write_text(writer)
    acknowledged.append("submitted", {"queue": "default"})
    box.jobs.append(acknowledged)
    box.tick()
    assert box.end(acknowledged).name == "finished"
    assert not nothing.folder.exists()
    box.assert_nothing_leaks()


# ---- together ------------------------------------------------------------------------------------


def test_ticks_at_once_claim_each_job_once(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    jobs = [box.submit("true") for _ in range(12)]
    box.call(queue, do="resume", queue="default")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(3):
                    tick.run(box.found)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    box.tick()
    assert [box.end(job).name for job in jobs] == ["finished"] * 12
    assert [box.claims(job) for job in jobs] == [[1]] * 12
    box.tick()
    box.assert_nothing_leaks()


def test_cancel_and_tick_race_for_one_slot(box: Box) -> None:
    for _ in range(6):
        box.call(queue, do="pause", queue="default")
        job = box.sh("sleep 5")
        (box.root / "paused/default").unlink()
        child = os.fork()
        if child == 0:
            try:
                tick.run(box.found)
            finally:
                os._exit(0)
        box.cancel(job)
        os.waitpid(child, 0)
        box.tick()
        assert box.end(job).name == "cancelled"
    box.tick()
    box.assert_nothing_leaks()


def test_a_tick_that_is_at_work_takes_the_newcomer_s_word(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first one is busy a job comes, and its tick leaves at once: the first looks again."""
    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    (box.root / "paused/default").unlink()
    real = tick._publish
    reports: list[tick.Report] = []

    def late(*arguments: Any) -> None:
        if not reports:
            reports.append(tick.run(box.found))  # as another process would: the lock is held
        real(*arguments)

    monkeypatch.setattr(tick, "_publish", late)
    box.tick()
    assert reports[0].busy
    assert box.end(job).name == "finished"


# ---- hostile neighbours --------------------------------------------------------------------------


class _Theirs(store.Store):
    """Of another user, and used by root."""

    def own(self, user: str = "") -> Path:
        return self.root / "users" / (user or self.user)


def other(box: Box, name: str = "nobody") -> store.Store:
    """Another user's place in the same ROOT."""
    let_in(box.root)
    box.found.open_users()
    theirs = _Theirs(box.root)
    theirs.user = name
    (box.root / "users" / name).mkdir()
    os.chown(box.root / "users" / name, 65534, 65534)
    return theirs


def _hostile_hint(content: str) -> Callable[[store.Store], None]:
    def make(theirs: store.Store) -> None:
        folder = theirs.own() / "ready/default/0000.000000/01ARYZ/6S"
        folder.mkdir(parents=True)
        (folder / "01ARYZ6S41TSV4RRFFQ69G5FAV").write_text(content)
        beat = theirs.on() / "host.json"
        beat.parent.mkdir(parents=True)
        beat.write_text(json.dumps({"at": time.time()}))

    return make


def _hostile_file(path: str, content: str) -> Callable[[store.Store], None]:
    def make(theirs: store.Store) -> None:
        file = theirs.own() / path.replace("HOST", theirs.host)
        file.parent.mkdir(parents=True)
        file.write_text(content)

    return make


def _hostile_gpu(**change: object) -> Callable[[store.Store], None]:
    gpu = {"index": 0, "uuid": "GPU-u", "name": "A100", "memory": 40960, **change}
    document = {"at": 1, "cpus": 1, "memory": 1, "gpus": [gpu]}
    return _hostile_file("on/gpu9/host.json", json.dumps(document))


def _loop(theirs: store.Store) -> None:
    (theirs.own() / "on").symlink_to("on")
    (theirs.own() / "ready").symlink_to("/proc/self/fd")
    (theirs.own() / "jobs").symlink_to("/")


def _links(target: str) -> Callable[[store.Store], None]:
    """Below folders that are as they should be."""

    def make(theirs: store.Store) -> None:
        _hostile_hint("{}")(theirs)
        linked = ("ready/night", "on/gpu9", "archive", "on/gpu8/host.json", f"jobs/{ids.shard(THEIRS)}", "on/HOST/live")
        for name in linked:
            path = theirs.own() / name.replace("HOST", theirs.host)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target or path.name)
        for word in ("drained/gpu8", f"drained/{theirs.host}x"):
            (theirs.root / word).parent.mkdir(exist_ok=True)
            (theirs.root / word).symlink_to(target or Path(word).name)

    return make


def _job_at_the_end_of_all_ids(theirs: store.Store) -> None:
    """In line to run after an array of more than there are."""
    last = "7" + "Z" * 25
    _hostile_hint(json.dumps({"after": [{"job": last, "array": 9}]}))(theirs)
    theirs.create(theirs.job(last), JobSpec(command=("true",)), queued=True)


def _hostile_log(**facts: Any) -> Callable[[store.Store], None]:
    def make(theirs: store.Store) -> None:
        made = hint(theirs, TRUE, THEIRS)
        theirs.create(made, TRUE, queued=True)
        made.append("submitted", {"queue": "default", "owner": "nobody", **facts})

    return make


def _fifos(theirs: store.Store) -> None:
    (theirs.on() / "live").mkdir(parents=True)
    for name in ("host.json", "usage.json", "waits.json", "live/01ARYZ6S41TSV4RRFFQ69G5FAV"):
        os.mkfifo(theirs.on() / name)
    (theirs.own() / "archive").mkdir()
    os.mkfifo(theirs.own() / "archive/2026-01-01.x.jsonl")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
def test_what_waits_in_a_place_that_somebody_else_made_is_not_run(box: Box) -> None:
    """Before this user had one, a stranger made it, with a job in it, on a host that was idle since."""
    box.call(queue, do="pause", queue="default")
    job = box.sh("true")
    box.call(queue, do="resume", queue="default")
    for planted in ("whole", "idle"):
        if planted == "idle":
            shutil.rmtree(box.root / "users" / box.found.user / "ready/default")
        own = box.root / "users" / box.found.user
        for folder, _, names in os.walk(own):
            for path in (Path(folder), *(Path(folder) / name for name in names)):
                os.chown(path, 65534, 65534, follow_symlinks=False)
        box.found = store.Store(box.root)
        with pytest.raises(errors.HostUnready, match="not a folder of yours"):
            box.tick()
    assert job.state().name == "submitted"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
def test_a_job_whose_spec_is_another_s_is_not_run(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.sh("true")
    os.chown(job.folder / "spec.json", 65534, 65534)
    box.call(queue, do="resume", queue="default")
    box.tick()
    assert (box.end(job).name, job.state().facts["reason"]) == ("failed", "start")


HUGE = "1" + "0" * 400
THEIRS = "01ARYZ6S41TSV4RRFFQ69G5FAV"
LIVE = "on/HOST/live/01ARYZ6S41TSV4RRFFQ69G5FAV"
UNABLE = '{"at": 1, "unable": {"01ARYZ6S41TSV4RRFFQ69G5FAV": [%s, "x", 0]}}'
ROWS = '{"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "at": 1, "silent": "x", "more": [], "gpus": 5, "array": "", "exit": "x"}\n'
ROW = '{"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "at": %s}\n'


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
@pytest.mark.parametrize(
    "make",
    [
        _hostile_hint("{"), _hostile_hint("[]"), _hostile_hint('{"priority": 999999999}'),
        _hostile_hint('{"after": [{"job": "../../../etc/passwd"}]}'), _hostile_hint("[" * 100_000),
        _hostile_hint('{"after": [{"job": "01ARYZ6S41TSV4RRFFQ69G5FAW"}]}'), _hostile_hint('{"not_before": NaN}'),
        _hostile_hint('{"queue": "no-such", "resources": {"cpus": 4096}}'), _hostile_hint('{"kind": "\\u001b[2J"}'),
        _hostile_file(LIVE, '{"cpus": -1000, "gpus": []}'), _hostile_file(LIVE, f'{{"started": {HUGE}}}'),
        _hostile_file(LIVE, '{"gpus": [[]]}'),
        _hostile_file("on/HOST/usage.json", f'{{"seconds": {HUGE}, "at": {HUGE}}}'),
        _hostile_file("on/HOST/usage.json", '{"seconds": NaN, "at": Infinity}'),
        _hostile_file("on/HOST/host.json", f'{{"at": {HUGE}}}'),
        _hostile_file("on/gpu9/host.json", '{"at": 1, "cpus": Infinity, "memory": 1}'),
        _hostile_file("on/gpu9/host.json", '{"at": 1, "cpus": 1, "memory": 1, "gpus": "abc"}'),
        _hostile_gpu(name=5), _hostile_gpu(memory="lots"), _hostile_gpu(index=None), _hostile_gpu(uuid=["u"]),
        _hostile_gpu(processes=[5]), _hostile_gpu(holder="x"), _hostile_gpu(colour="red"),
        _hostile_file("on/\x1b[2J/host.json", '{"at": 1, "cpus": 9, "memory": 9}'),
        _hostile_file("on/gpu9/host.json", UNABLE % "Infinity"), _hostile_file("on/HOST/host.json", UNABLE % HUGE),
        _hostile_file("on/HOST/waits.json", '{"x": {"y": [1]}, "01ARYZ6S41TSV4RRFFQ69G5FAV": "\\u001b[2J"}'),
        _hostile_file("archive/2026-11-25.x.jsonl", "[" * 100_000 + '\n{"at": []}\n' + ROW % '"x"' + ROW % HUGE),
        _hostile_gpu(memory=int(HUGE)),
        _hostile_file("archive/2026-11-25.x.jsonl", ROW % 1.0), _hostile_file("archive/2026-11-25.x.jsonl", ROWS),
        _hostile_log(not_before="x", at="y", submitted=[], gpus=5, host=7, why=[]), _hostile_log(not_before=None),
        _loop, _fifos, _links(""), _links("x" * 300), _job_at_the_end_of_all_ids,
    ],
)  # fmt: skip
def test_a_hostile_neighbour_stops_nobody(box: Box, make: Callable[[store.Store], None]) -> None:
    theirs = other(box)
    box.lab("queues: {default: {}, night: {}}")
    make(theirs)
    for folder, _, names in os.walk(theirs.own()):
        for path in (Path(folder), *(Path(folder) / name for name in names)):
            os.chown(path, 65534, 65534, follow_symlinks=False)
    job = box.sh("true", name="mine")  # two names by chance may be one, which then means the newer job
    assert box.end(job).name == "finished"
    after = box.submit_after([{"job": job.id}])
    assert box.end(after).name == "finished"
    listed = box.call(jobs_handler, all=True)["jobs"]
    assert {job.id, after.id} <= {row["id"] for row in listed}
    assert [lab_jobs._rows(row) for row in listed]
    assert "\x1b" not in json.dumps(listed).replace("\\u001b", "\x1b")
    assert box.call(show, job="mine")["job"]["id"] == job.id
    box.call(queue, do="list")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
def test_init_again_opens_a_root_that_was_opened_since(box: Box) -> None:
    box.submit("true")
    box.root.chmod(0o1777)
    assert box.call(init)["shared"]
    for name in ("users", "drained", "paused"):
        assert (box.root / name).stat().st_mode & 0o7777 == 0o1777


def test_a_place_that_somebody_else_made_for_us_is_not_used(box: Box) -> None:
    other(box, box.found.user)
    with pytest.raises(errors.HostUnready, match="not a folder of yours"):
        box.submit("true")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")
def test_by_name_one_s_own_job_is_meant_before_a_colleague_s(box: Box) -> None:
    theirs = other(box)
    mine = box.submit("true", name="train")
    box.end(mine)
    spec = JobSpec(command=("true",), work=Spec(runtime="process", name="train"))
    job = hint(theirs, spec)
    theirs.create(job, spec, queued=True)
    for folder, _, names in os.walk(theirs.own()):
        for name in ("", *names):
            os.chown(os.path.join(folder, name), 65534, 65534)
    assert lookup.job(box.found, job.id).id == job.id
    assert lookup.job(box.found, "train").id == mine.id


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")
def test_another_user_s_job_is_theirs(box: Box) -> None:
    theirs = other(box)
    job, plain = box.sh("true", env={"TOKEN": "s3cret"}), box.sh("true")
    box.end(job)
    assert files.read_json(job.folder / "secret.json")["env"] == {"TOKEN": "s3cret"}
    assert not (plain.folder / "secret.json").exists()
    with pytest.raises(errors.Refused, match="is root's"):
        lookup.mine(theirs, job.id)
    assert lookup.job(theirs, job.id).id == job.id
    with nobody():
        assert job.state().name == "finished" and job.spec().command
        assert files.read_json(job.folder / "secret.json") is None
        with pytest.raises(PermissionError):
            (job.attempt(1) / "output.log").read_bytes()
    job.folder.parent.chmod(0o700)  # as an older version left it, or its owner wants it
    with nobody():
        assert not job.is_there() and awaited.state_of(theirs, ("root",), job.id) == ""


def test_an_inventory_beyond_all_bounds_is_none() -> None:
    card = {"index": 0, "uuid": "GPU-u", "name": "A100 " * 20, "memory": 2**31}
    assert inventory.from_wire({"gpus": [card] * 1000})
    for wrong in ([card] * 1001, [{**card, "name": "A100 " * 20 + "!"}], [{**card, "index": -1}]):
        assert inventory.from_wire({"gpus": wrong}) is None


# ---- ROOT has a bad day --------------------------------------------------------------------------


def test_an_unmounted_root_is_not_made(box: Box, tmp_path: Path) -> None:
    box.tick()
    (tmp_path / "root").rename(tmp_path / "away")
    (tmp_path / "root").mkdir()  # the mount point, empty
    with pytest.raises(errors.HostUnready, match="no mlbox"):
        box.tick()
    with pytest.raises(errors.HostUnready):
        box.submit("true")
    assert os.listdir(tmp_path / "root") == []
    assert cron.main(["--root", str(tmp_path / "root")]) == 1
    (tmp_path / "root").rmdir()
    with pytest.raises(errors.HostUnready):
        box.tick()
    assert not (tmp_path / "root").exists()


def test_a_job_that_ends_while_root_is_away_is_recorded_when_it_is_back(box: Box, tmp_path: Path) -> None:
    job = box.sh(f"until test -e {tmp_path}/go; do sleep 0.05; done; exit 3")
    box.started(job)
    log = tmp_path / "away" / (job.attempt(1) / "keeper.log").relative_to(tmp_path / "root")
    (tmp_path / "root").rename(tmp_path / "away")
    (tmp_path / "go").touch()
    until(lambda: "the end is not on record yet" in log.read_text())
    (tmp_path / "away").rename(tmp_path / "root")
    state = box.end(job)
    assert (state.name, state.facts["exit"], box.claims(job)) == ("failed", 3, [1])
    box.assert_nothing_leaks()


@pytest.mark.parametrize("code", ["EROFS", "ENOSPC", "EDQUOT", "EIO", "ESTALE"])
def test_a_root_that_cannot_be_written(box: Box, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    import errno

    box.call(queue, do="pause", queue="default")
    job = box.submit("true")
    (box.root / "paused/default").unlink()
    real, real_mkdir, number = os.open, os.mkdir, getattr(errno, code)

    def failing(path: object, flags: int, *arguments: object, **names: object) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(box.root)):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *arguments, **names)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        with pytest.raises((OSError, errors.MlboxError)):
            box.submit("true")
        try:
            assert box.tick().started == ()
        except OSError as error:
            assert error.errno == number
        assert cron.main(["--root", str(box.root)]) == 1
    assert real_mkdir is os.mkdir and job.state().name == "submitted"
    box.tick()
    assert box.end(job).name == "finished"
    box.tick()
    box.assert_nothing_leaks()


def test_a_broken_lab_yaml_changes_nothing_meanwhile(box: Box, tmp_path: Path) -> None:
    box.lab("queues: {default: {max_running: 1}}\n")
    box.tick()
    box.lab("queues: {default: {max_running: 5\n")
    first, second = box.sh(f"until test -e {tmp_path}/go; do sleep 0.05; done"), box.sh("true")
    report = box.tick()
    assert "line 2, column 1" in report.trouble
    assert first.state().running and second.state().waiting
    (tmp_path / "go").touch()
    assert box.end(second).name == "finished"


def test_that_lab_yaml_is_broken_is_said_to_whoever_asks(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    box.lab("queues: {default: {}}\n")
    job = box.submit("true")
    box.lab("queues: {default: {max_running: 5\n")
    asked: list[tuple[Any, Json]] = [(jobs_handler, {}), (status, {}), (move, {"where": "top"}), (cancel, {})]
    for handler, words in asked:
        assert "line 2, column 1" in box.call(handler, job=job.id, **words)["trouble"]


def test_without_any_good_lab_yaml_nothing_is_started(box: Box) -> None:
    box.call(queue, do="pause", queue="default")
    job = box.sh("true")
    (box.root / "paused/default").unlink()
    shutil.rmtree(box.found.on())  # a host that has never seen a good one
    box.lab("queues: {default: {max_running: 1\n")
    report = box.tick()
    assert report.started == () and "nothing is started" in report.trouble
    assert "line 2, column 1" in box.call(show, job=job.id)["waits"][box.found.host]
    with pytest.raises(errors.HostUnready, match="line 2, column 1"):
        box.submit("true")
    box.lab("queues: {default: {}}\n")
    assert box.tick().started == (job.id,)
    assert box.end(job).name == "finished"


def test_cron_s_line_is_quiet_when_all_is_well(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert cron.main(["--root", str(box.root)]) == 0
    assert capsys.readouterr() == ("", "")
    box.call(queue, do="pause", queue="default")
    box.submit("true")
    box.lab("queues: [")
    assert cron.main(["--root", str(box.root)]) == 0
    assert "lab.yaml" in capsys.readouterr().err


def test_an_idle_lab_s_ticks_tell_once_that_lab_yaml_is_broken(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    def minute() -> tuple[bool, str]:
        """What cron calls: whether it had nothing to do, and what it said."""
        before = (box.found.on() / "host.json").stat().st_mtime_ns
        assert entry.main(["tick", "--root", str(box.root)]) == 0
        return (box.found.on() / "host.json").stat().st_mtime_ns == before, capsys.readouterr().err

    box.lab("queues: {default: {}}\n")
    box.tick()
    for _ in range(2):  # broken, mended, broken again in the same way
        assert minute() == (True, "")
        box.lab("queues: [")
        looked, said = minute()
        assert not looked and said.count("lab.yaml") == 2 and "the last good lab.yaml holds" in said
        assert minute() == (True, "")
        os.utime(box.found.on() / "host.json", (0, 0))  # its inventory is old
        assert minute() == (False, "")
        box.lab("queues: {default: {}}\n")
        assert minute() == (False, "")


# ---- GPUs, by the false driver -------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Loaded once: whoever asks for libnvidia-ml.so.1 in this process, and in keepers forked from it, has it."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the false driver with")
    library = tmp_path_factory.mktemp("driver") / "libnvidia-ml.so.1"
    source = Path(__file__).resolve().parents[2] / "scripts/labkit/nvml.c"
    flags = ("-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1")
    subprocess.run(("gcc", *flags, "-o", str(library), str(source)), check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


GPUS = [false.Gpu(f"GPU-{n}", "NVIDIA A100-SXM4-40GB", f"00000000:{n:02}:00.0", 40960, 400, "8.0", n) for n in range(2)]
WAIT = "echo $CUDA_VISIBLE_DEVICES; while ! test -e {go}; do sleep 0.05; done"


class Gpus:
    """A host's GPUs as the driver tells of them."""

    def __init__(self, box: Box, folder: Path) -> None:
        self.box, self.file, self.go = box, folder / "gpus", folder / "go"
        self.show(*GPUS)

    def show(self, *gpus: false.Gpu) -> None:
        new = self.file.with_name("gpus.new")
        new.write_text(false.render(gpus))
        new.replace(self.file)  # whole: a keeper's tick may be reading it

    def job(self, **resources: object) -> Job:
        """One that stays until `go`, and says what it has."""
        return self.box.sh(WAIT.format(go=self.go), resources=resources)

    def has(self, job: Job) -> list[str]:
        self.box.started(job, "\n")
        words = self.box.output(job).split()
        assert sorted((words or [""])[0].split(",")) == sorted(job.state().facts["gpus"] or [""])
        return list(job.state().facts["gpus"])

    def why(self, job: Job) -> str:
        return str((self.box.tick().waits or {})[job.id])


@pytest.fixture
def gpus(box: Box, driver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpus:
    monkeypatch.setenv("FALSE_NVML_GPUS", str(tmp_path / "gpus"))
    return Gpus(box, tmp_path)


def test_each_gpu_is_one_job_s_and_the_third_waits(gpus: Gpus) -> None:
    first, second, third = (gpus.job(gpus="1") for _ in range(3))
    assert {*gpus.has(first), *gpus.has(second)} == {"GPU-0", "GPU-1"}
    assert third.state().name == "submitted" and "asks for 1 GPU, 0 are free" in gpus.why(third)
    assert set(lease.held_by(["GPU-0", "GPU-1"])) == {"GPU-0", "GPU-1"}
    gpus.go.touch()
    assert [gpus.box.end(job).name for job in (first, second, third)] == ["finished"] * 3
    assert lease.held_by(["GPU-0", "GPU-1"]) == {}
    usage = files.read_json(gpus.box.found.on() / "usage.json")
    assert usage["seconds"] > 0
    gpus.box.tick()
    gpus.box.assert_nothing_leaks()


def test_all_gpus_or_none(gpus: Gpus) -> None:
    one, both = gpus.job(gpus="1"), gpus.job(gpus="2")
    gpus.has(one)
    assert both.state().name == "submitted"
    gpus.go.touch()
    assert sorted(gpus.box.end(both).facts["gpus"]) == ["GPU-0", "GPU-1"]


def test_two_shares_fit_a_third_waits_and_a_whole_lease_excludes_shares(gpus: Gpus) -> None:
    gpus.show(GPUS[0])
    first, second, third = (gpus.job(gpus="auto", gpu_share=16384) for _ in range(3))
    whole = gpus.job(gpus="1")
    assert gpus.has(first) == gpus.has(second) == ["GPU-0"]
    assert lease.shares() == {"GPU-0": {first.id: 16384, second.id: 16384}}
    assert "no GPU has so much left" in gpus.why(third)
    assert whole.state().name == "submitted"
    small = gpus.job(gpus="auto", gpu_share=4096)
    gpus.box.cancel(third)
    gpus.go.touch()
    for job in (first, second, whole, small):
        assert gpus.box.end(job).name == "finished"
    gpus.box.tick()
    assert lease.shares() == {}
    gpus.box.assert_nothing_leaks()


def test_a_share_waits_for_a_whole_lease(gpus: Gpus) -> None:
    gpus.show(GPUS[0])
    whole, share = gpus.job(gpus="1"), gpus.job(gpus="auto", gpu_share=1024)
    gpus.has(whole)
    assert share.state().name == "submitted"
    gpus.go.touch()
    assert gpus.box.end(share).name == "finished"


def test_a_gpu_that_an_outsider_uses_is_left_alone(gpus: Gpus) -> None:
    gpus.show(replace(GPUS[0], procs=(false.Proc(os.getpid(), 2048),)), GPUS[1])
    first, second = gpus.job(gpus="1"), gpus.job(gpus="1")
    assert gpus.has(first) == ["GPU-1"]
    assert f"pid {os.getpid()}" in gpus.why(second)
    gpus.show(*GPUS)
    gpus.box.tick()
    assert gpus.has(second) == ["GPU-0"]
    gpus.go.touch()


def test_what_a_long_job_has_in_tmp_stays_young(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock files and its pids, which systems that clean /tmp by age would remove; under a new keeper, too."""
    monkeypatch.setattr(keeping, "_YOUNG", 0.05)
    gpus.show(GPUS[0])
    job = gpus.job(gpus="auto", gpu_share=1024)
    gpus.has(job)
    locks = [lease.FOLDER / name for name in ("GPU-0", f"GPU-0.share.{job.id}")]
    for _ in range(2):
        lasting = (path for path in job.boot_folder.rglob("*") if path.name[0] != ".")  # what is just written is not
        paths = [*locks, *lasting]
        assert {job.keeper_lock, job.keeper_pid, job.boot_folder / "attempt.lock"} <= set(paths)
        for path in paths:
            os.utime(path, (1, 1))
        for path in paths:
            until(lambda path=path: path.stat().st_mtime > 1)  # type: ignore[misc]
        gpus.box.kill_keeper(job)
        gpus.box.tick()
    gpus.go.touch()
    assert gpus.box.end(job).name == "finished"


def test_a_lost_gpu_is_taken_out_and_said(gpus: Gpus) -> None:
    gpus.show(replace(GPUS[0], lost=True))
    job = gpus.job(gpus="auto")
    assert "out of order" in gpus.why(job)
    gpus.show(*GPUS)
    gpus.box.tick()
    gpus.has(job)
    gpus.go.touch()


def test_a_driver_that_fails_makes_no_host_without_gpus(gpus: Gpus) -> None:
    gpus.box.tick()
    gpus.file.write_text(false.render(GPUS, fail=18))
    jobs = [gpus.job(gpus="auto"), gpus.job(gpus="2")]
    for _ in range(2):
        for job in jobs:
            assert "(GPU 0, 1 out of order: RM has detected an NVML/RM version mismatch.)" in gpus.why(job)
    shown = gpus.box.call(status)
    assert [(gpu["uuid"], gpu["error"]) for gpu in shown["gpus"]] == [(g.uuid, shown["driver"]) for g in GPUS]
    free = gpus.box.sh("true")  # which asks for none
    assert gpus.box.end(free).name == "finished"
    gpus.show(*GPUS)
    gpus.box.tick()
    gpus.has(jobs[0])
    gpus.go.touch()
    assert [gpus.box.end(job).name for job in jobs] == ["finished"] * 2


def test_a_driver_that_never_told_anything_is_one_without_gpus(gpus: Gpus) -> None:
    gpus.file.write_text(false.render(GPUS, fail=18))
    gpus.go.touch()
    assert gpus.box.end(gpus.job(gpus="auto")).name == "finished"


def test_a_killed_keeper_frees_no_gpu(gpus: Gpus) -> None:
    gpus.show(GPUS[0])
    job = gpus.job(gpus="1")
    gpus.has(job)
    gpus.box.kill_keeper(job)
    assert "GPU-0" in lease.held_by(["GPU-0"])
    following = gpus.job(gpus="1")  # its tick adopts the first
    assert following.state().name == "submitted" and keeping.lives(job)
    gpus.box.kill_keeper(job)
    gpus.go.touch()
    until(lambda: (job.boot_folder / "exit.json").exists())
    gpus.box.tick()
    assert [gpus.box.end(j).name for j in (job, following)] == ["finished"] * 2


def test_a_killed_runner_frees_its_gpu_only_when_the_command_has_ended(gpus: Gpus) -> None:
    """Intervals of one GPU never overlap: the next job's first word comes after the killed one's last."""
    gpus.show(GPUS[0])
    log = gpus.file.with_name("log")
    beat = f"while :; do echo $MLBOX_JOB >>{log}; sleep 0.01; done"
    job = gpus.box.sh(beat, resources={"gpus": "1"}, on_host_loss="hold")
    until(log.exists)
    following = gpus.box.sh(f"echo $MLBOX_JOB >>{log}", resources={"gpus": "1"})
    gpus.box.kill_runner(job)
    assert gpus.box.end(job).facts["reason"] == "lost"
    assert gpus.box.end(following).name == "finished"
    lines = log.read_text().split()
    assert lines == [job.id] * (len(lines) - 1) + [following.id]
