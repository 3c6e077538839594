"""The queue on real hosts: two of them share a folder, real Docker runs the jobs, real cron works it off."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from labbox import PYTHON_IMAGE, Attached, as_root, ssh
from labkit import gpus as false_gpus
from labkit.inventory import HOSTS
from queuelab import Lab, awaited

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

Json = dict[str, Any]


def test_two_minutes_lab(lab: Lab) -> None:
    """init, submit, follow, jobs, status: on the GPU that was leased, with the code as it was."""
    done = lab.run("run", "--image", PYTHON_IMAGE, "--gpus", "1", "--on", "gpu2", "--code", str(lab.code), "--",
                   "python3", "train.py")  # fmt: skip
    assert re.search(rf"GPU {HOSTS['gpu2'].gpu_uuid(0)}\n", done.out)
    assert "from" in done.out and "finished" in done.err
    jobs = lab.run("jobs").out
    assert "finished" in jobs and "gpu2" in jobs
    assert "2 of 2 GPUs free" in lab.run("status").out


def test_a_job_from_a_file(lab: Lab) -> None:
    (lab.code / "job.yaml").write_text(
        f"command: python3 train.py && echo $WHO\nimage: {PYTHON_IMAGE}\ngpus: 1\non: gpu2\n"
        "code: .\nenv: {WHO: 007}\n"
    )
    done = lab.run("run", "-f", str(lab.code / "job.yaml"), "--time-limit", "5m")
    assert re.search(rf"GPU {HOSTS['gpu2'].gpu_uuid(0)}\n", done.out)
    assert done.out.endswith("007\n") and "finished" in done.err
    lab.run("run", "-f", str(lab.code / "job.yaml"), "--gpus", "0", "--", "sh", "-c", "exit 3", code=3)


def test_where_the_first_host_is_away_the_next_is_asked(lab: Lab) -> None:
    lab.asks("unreachable", *lab.hosts)
    done = lab.run("submit", "--gpus", "0", "--no-code", "--", "true")
    assert "unreachable: it can't be reached" in done.err and done.err.count("gpu1 is asked instead") == 1
    lab.asks(*lab.hosts)
    lab.until(done.out.split()[1], "finished")


def test_status_asks_the_hosts_that_only_lab_yaml_knows(lab: Lab) -> None:
    lab.rules("hosts: {gpu1: {}, gpu2: {}}")
    lab.asks("gpu1")
    told = json.loads(lab.run("status", "--json").out)
    assert [host["host"] for host in told] == ["gpu1", "gpu2"]
    assert [host["gpus"][0]["uuid"] for host in told] == [HOSTS[name].gpu_uuid(0) for name in ("gpu1", "gpu2")]


def test_editing_after_submit_changes_nothing(lab: Lab) -> None:
    lab.run("queue", "pause", "default")
    job = lab.one("--gpus", "0", "--", "python3", "-c", "print(open('said').read())")
    (lab.code / "said").write_text("too late")
    early = lab.one("--gpus", "0", "--", "python3", "-c", "print(open('said').read())")
    (lab.code / "said").write_text("even later")
    assert "paused by ada" in lab.run("jobs").out
    lab.run("queue", "resume", "default")
    lab.run("queue", "process")
    assert lab.until(early, "finished")["exit"] == 0
    assert lab.output(early) == "too late\n"
    assert lab.until(job, "failed")["why"] == "exit code 1"


def test_jobs_spread_over_hosts_and_say_why_they_wait(lab: Lab) -> None:
    jobs = lab.submit("--gpus", "1", "--cpus", "0", "--array", "7", "--", "sleep", "1000")
    running = awaited(lambda: [j for j in lab.jobs() if j["state"] == "started" and len(lab.running()) == 6])
    assert {job["host"] for job in running} == {"gpu1", "gpu2"}
    leased = [uuid for job in running for uuid in job["gpus"]]
    assert len(leased) == len(set(leased)) == 6
    waiting = next(job for job in lab.jobs() if job["state"] == "submitted")
    assert "GPU" in waiting["waits"] and waiting["id"] == jobs[-1]["id"]
    lab.run("cancel", running[0]["id"])
    lab.until(waiting["id"], "started")  # a job's end starts the next one, without cron


def test_cancel_ends_the_whole_container(lab: Lab) -> None:
    job = lab.one("--image", PYTHON_IMAGE, "--gpus", "1", "--grace", "1s", "--", "sh", "-c",
                  "trap '' TERM; echo up; while :; do sleep 1; done")  # fmt: skip
    host = lab.until(job, "started")["host"]
    awaited(lambda: "up" in lab.output(job))
    assert "is being ended" in lab.run("cancel", job).out
    assert lab.until(job, "cancelled")["why"] == "cancelled by ada"
    awaited(lambda: ssh(host, f"docker ps -aq --filter label=mlbox.session={job}") == "")
    assert lab.run("cancel", job).out.endswith("had ended already: cancelled\n")


_NEW_ENGINE = """
kill -9 $(pidof dockerd); rm -f /var/run/docker.pid
setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
until docker version >/dev/null 2>&1; do sleep 0.2; done
"""


def test_a_job_whose_engine_dies_is_lost_and_runs_again(lab: Lab) -> None:
    """`docker run` ends with 125 then, and so does a job that chooses to."""
    in_docker = ("--on", "gpu2", "--image", PYTHON_IMAGE, "--", "sh", "-c")
    own = lab.one(*in_docker, "exit 125")
    assert lab.until(own, "failed")["why"] == "exit code 125"
    job = lab.one(*in_docker, "echo up; [ $MLBOX_ATTEMPT = 2 ] || sleep 1000")
    awaited(lambda: "up" in lab.output(job))
    as_root("gpu2", "bash", "-c", _NEW_ENGINE)
    lab.until(job, "finished")
    lost = next(event for event in lab.show(job)["events"] if event["event"] == "lost")
    assert "docker failed while it ran" in lost["why"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--time-limit", "2s", "--grace", "1s", "--", "sleep", "1000"), "its time limit was reached"),
        (("--", "sh", "-c", "kill -9 $$"), "ended by signal 9"),
        (("--", "sh", "-c", "exit 3"), "exit code 3"),
        (("--", "no-such-program"), "exit code 127 (no such command)"),
    ],
    ids=["time limit", "signal", "exit", "no program"],
)
@pytest.mark.parametrize("image", [(), ("--image", PYTHON_IMAGE)], ids=["process", "docker"])
def test_distinct_endings(lab: Lab, image: tuple[str, ...], words: tuple[str, ...], why: str) -> None:
    job = lab.one("--gpus", "0", *image, *words)
    assert lab.until(job, "failed", "finished")["why"] == why


def test_cron_starts_what_nobody_else_does(lab: Lab) -> None:
    lab.run("queue", "pause", "default")
    job = lab.one("--gpus", "0", "--", "true")
    ssh("gpu1", "rm -f ~/.cache/mlbox/tick.gpu1.log")  # earlier tests' bad days are in it
    first = lab.run("cron", "install").out
    assert lab.run("cron", "install").out == first
    assert ssh("gpu1", "crontab -l").count("# mlbox ") == 1
    lab.resume_silently()
    lab.until(job, "finished", timeout=150)  # nobody has asked any host since
    lab.run("cron", "remove")
    assert "mlbox" not in ssh("gpu1", "crontab -l 2>&1 || true").replace("no crontab", "")
    assert ssh("gpu1", "cat ~/.cache/mlbox/tick.gpu1.log 2>/dev/null || true") == ""  # quiet


def test_the_keeper_is_killed_and_the_job_goes_on(lab: Lab) -> None:
    job = lab.one("--image", PYTHON_IMAGE, "--gpus", "1", "--on", "gpu1", "--", "sh", "-c",
                  "until [ -e /workspace/go ]; do sleep 0.1; done; echo done")  # fmt: skip
    found = lab.until(job, "started")
    pid = ssh("gpu1", f"cat /tmp/mlbox-1001/{job[-8:].lower()}/keeper.pid")
    as_root("gpu1", "kill", "-9", str(json.loads(pid)["pid"]))
    name = lab.show(job)["job"]["name"]
    assert f"leased to ada's job {name}" in lab.run("status", "gpu1").out  # the runner holds the GPU
    lab.run("queue", "process")
    folder = lab.show(job)["folder"]
    ssh("gpu1", f"touch {folder}/attempts/1/work/go")
    assert lab.until(job, "finished")["gpus"] == found["gpus"]
    assert lab.output(job) == "done\n"


def test_keeper_and_container_killed_is_lost_and_runs_again(lab: Lab) -> None:
    job = lab.one("--image", PYTHON_IMAGE, "--gpus", "1", "--on", "gpu1", "--", "sh", "-c",
                  "[ $MLBOX_ATTEMPT = 2 ] || sleep 1000")  # fmt: skip
    lab.until(job, "started")
    as_root("gpu1", "pkill", "-9", "-u", "ada", "-f", "mlbox")
    awaited(lambda: lab.run("queue", "process") and lab.state(job) == "finished")
    events = [event["event"] for event in lab.show(job)["events"]]
    assert events == ["submitted", "claimed", "started", "lost", "claimed", "started", "finished"]


def test_a_drained_host_starts_nothing(lab: Lab) -> None:
    lab.run("host", "drain", "gpu1", "--why", "new disks")
    job = lab.one("--gpus", "0", "--", "true")
    assert lab.until(job, "finished")["host"] == "gpu2"
    only = lab.one("--gpus", "0", "--on", "gpu1", "--", "true")
    assert "drained" in lab.run("show", only).out
    lab.run("host", "resume", "gpu1")
    lab.run("queue", "process")
    lab.until(only, "finished")


def test_an_outsiders_gpu_is_left_alone(lab: Lab) -> None:
    process = ssh("gpu2", "nohup sleep 300 >/dev/null 2>&1 & echo $!").strip()
    try:
        for gpu in ("0", "1"):
            subprocess.run((sys.executable, "scripts/lab", "gpu", "gpu2", "--busy", f"{gpu}={process}"), check=True)
        job = lab.one("--gpus", "1", "--on", "gpu2", "--", "true")
        assert "ada's sleep" in lab.run("show", job).out
    finally:
        ssh("gpu2", f"kill {process}")
    false_gpus.set_gpus("gpu2", false_gpus.default_gpus("gpu2"))
    lab.run("queue", "process")
    lab.until(job, "finished")


def test_follow_prints_as_it_comes_and_ends_with_the_jobs_code(lab: Lab) -> None:
    (lab.code / "slow.sh").write_text("echo one; until [ -e go ]; do sleep 0.1; done; echo two; exit 5\n")
    running: Attached = lab.laptop.attach("run", "--gpus", "0", "--code", str(lab.code), "--", "sh", "slow.sh")
    running.wait_for("^one$")
    job = running.wait_for(r"(01[0-9A-Z]{24})")[1]
    ssh("gpu1", f"touch {lab.show(job)['folder']}/attempts/1/work/go")
    running.wait_for("^two$")
    assert running.process.wait(60) == 5


def test_an_interrupted_run_leaves_the_job(lab: Lab) -> None:
    running = lab.laptop.attach("run", "--gpus", "0", "--code", str(lab.code), "--", "sh", "-c", "echo up; sleep 1000")
    running.wait_for("^up$")
    assert running.stop(signal.SIGINT) == 130
    job = running.wait_for(r"(01[0-9A-Z]{24})")[1]
    running.wait_for(f"goes on .*mlbox cancel {job}")
    assert lab.state(job) == "started"


def test_a_colleague_sees_and_can_not_touch(lab: Lab) -> None:
    bob = lab.another_laptop("bob")
    job = lab.one("--gpus", "0", "--env", "TOKEN=s3cret", "--", "sh", "-c", "echo private; sleep 1000")
    lab.until(job, "started")
    assert job in bob.run("jobs", "--all").out
    done = bob.run("cancel", job, code=3)
    assert "is ada's" in done.err
    assert "is ada's" in bob.run("logs", job, code=3).err
    folder = lab.show(job)["folder"]
    for name in ("secret.json", "attempts/1/output.log"):
        assert ssh("gpu1-bob", f"cat {folder}/{name} 2>&1 || true").endswith("Permission denied\n")
    assert "s3cret" not in ssh("gpu1-bob", f"cat {folder}/spec.json {folder}/ev/*")
    mine = bob.one("--gpus", "0", "--runtime", "process", "--", "id", "-un")
    bob.until(mine, "finished")
    assert bob.output(mine) == "bob\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("submit", "--gpus", "9", "--", "true"), 3, "what would fit: gpu1: up to"),
        (("submit", "--gpus", "A10:1", "--", "true"), 3, "what would fit"),
        (("submit", "--queue", "nigth", "--", "true"), 6, "there is no queue nigth"),
        (("submit", "--after", "01ARYZ6S41TSV4RRFFQ69G5FAV", "--", "true"), 6, "no job 01ARYZ6S41TSV4RRFFQ69G5FAV"),
        (("submit", "--time-limit", "soon", "--", "true"), 2, "is no duration"),
        (("submit",), 2, "what is to be run?"),
        (("cancel", "no-such-job"), 6, "there is no job"),
        (("queue", "pause", "no-such-queue"), 6, "there is no queue"),
        (("move", "no-such-job", "--top"), 6, "there is no job"),
        (("host", "fence", "gpu2"), 2, "-y"),
        (("host", "fence", "no-such-host"), 6, "there is no host no-such-host"),
    ],
    ids=lambda v: " ".join(v)[:30] if isinstance(v, tuple) else "",
)
def test_bad_words(lab: Lab, words: tuple[str, ...], code: int, said: str) -> None:
    done = lab.run(*words, code=code)
    assert said in done.err and "Traceback" not in done.all


def test_a_root_that_is_not_mounted(lab: Lab) -> None:
    done = lab.run("submit", "--root", "/share", "--gpus", "0", "--", "true", code=5)
    assert "has no mlbox.json" in done.err and "mounted" in done.err
    assert ssh("gpu1", "ls /share/users 2>/dev/null || true") == ""


def test_a_broken_lab_yaml_changes_nothing_and_is_said(lab: Lab) -> None:
    lab.run("queue", "create", "night")
    ssh("gpu1", f"echo 'queues: [broken' >>{lab.root}/lab.yaml")
    done = lab.run("submit", "--queue", "night", "--gpus", "0", "--", "true")
    assert re.search(r"lab\.yaml: line \d+, column \d+", done.err)
    job = re.search(r"01[0-9A-Z]{24}", done.out)
    assert job is not None
    lab.until(job[0], "finished")


def test_a_queue_made_right_after_an_edit_elsewhere_undoes_nothing(lab: Lab) -> None:
    """GlusterFS's mounts go on showing the file that another host has replaced, for a second."""
    old, path = "queues:\n  default: {}", f"{lab.root}/lab.yaml"
    lab.rules(old)
    awaited(lambda: lab.ssh("gpu2", f"cat {path}") == old + "\n")
    lab.ssh("gpu1", f"cd {lab.root}; echo '# an edit' | cat - lab.yaml >.new; mv .new lab.yaml")
    lab.run("queue", "create", "day", "--host", "gpu2")
    assert lab.ssh("gpu1", f"cat {path}").splitlines() == ["# an edit", "queues:", "  day: {}", "  default: {}"]


def test_dependencies_and_retries(lab: Lab) -> None:
    first = lab.one("--gpus", "0", "--on", "gpu2", "--", "sh", "-c", "exit 1")
    doomed = lab.one("--gpus", "0", "--after", first, "--", "true")
    anyway = lab.one("--gpus", "0", "--after-any", first, "--", "true")
    lab.until(anyway, "finished")
    assert "was to run after job" in lab.until(doomed, "failed")["why"]
    again = lab.run("retry", first, "--json").json()
    assert isinstance(again, dict)
    lab.until(again["id"], "failed")  # gpu1 was asked, and has told gpu2


def test_all_of_an_array_is_waited_for(lab: Lab) -> None:
    go = f"{lab.root}/go"
    script = f"until [ -e {go} ] || [ $MLBOX_ARRAY_INDEX != 1 ]; do sleep 0.1; done"
    array = lab.submit("--gpus", "0", "--name", "sweep", "--array", "3", "--", "sh", "-c", script)
    behind = lab.one("--gpus", "0", "--after", "sweep", "--", "true")
    for number in 0, 2:
        lab.until(array[number]["id"], "finished")
    lab.run("queue", "process", "--host", "gpu1")
    assert "waits for 1 of 3 of array" in next(job["waits"] for job in lab.jobs() if job["id"] == behind)
    lab.ssh("gpu1", f"touch {go}")
    lab.until(behind, "finished")


def test_a_host_is_told_of_what_was_moved(lab: Lab) -> None:
    lab.run("queue", "create", "night")
    lab.run("queue", "pause", "night")
    job = lab.one("--gpus", "0", "--on", "gpu2", "--queue", "night", "--", "true")
    lab.run("move", job, "--queue", "default")
    lab.until(job, "finished")


def test_what_room_was_kept_from_starts_when_that_job_is_cancelled(lab: Lab) -> None:
    """On a host that was not asked, too: no cron is there to find it."""
    held = lab.submit("--gpus", "1", "--cpus", "0", "--array", "6", "--", "sleep", "1000")
    awaited(lambda: len(lab.running()) == len(held))
    lab.run("cancel", next(job["id"] for job in lab.running() if job["host"] == "gpu2"))
    awaited(lambda: len(lab.running()) == len(held) - 1)
    big = lab.one("--gpus", "2", "--cpus", "0", "--on", "gpu2", "--", "true")
    small = lab.one("--gpus", "1", "--cpus", "0", "--on", "gpu2", "--", "sleep", "1000")
    awaited(lambda: "kept for" in next(job["waits"] for job in lab.jobs() if job["id"] == small))
    lab.run("cancel", big, "--host", "gpu1")
    lab.until(small, "started")
