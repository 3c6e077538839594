"""What the queue tells a person: why a job waits, which word was meant, what a name stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box, Call

from mlbox import errors
from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.session import Mount, Spec
from mlbox.host import files, processes
from mlbox.host.handlers import cancel, host, jobs, logs, move, queue, retry, show, status, submit
from mlbox.host.job import Job


def told_by(box: Box, name: str, job: str, why: str) -> None:
    """Another host, that says so."""
    folder = box.found.on(name)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder / "waits.json", json.dumps({job: why}).encode(), 0o644)
    files.write_whole(folder / "host.json", json.dumps({"at": 1.0, "gpus": [], "cpus": 2, "memory": 1}).encode())


def test_the_reason_is_of_a_host_that_could_run_it(box: Box) -> None:
    box.lab(f"hosts: {{{box.found.host}: {{}}, gpu8: {{}}, gpu9: {{}}}}\n")
    job = box.submit("true", resources={"hosts": ("gpu9",)})
    told_by(box, "gpu9", job.id, "asks for a GPU, 0 are free on gpu9")
    told_by(box, "gpu8", job.id, "it is only for gpu9")
    box.tick()
    row = next(row for row in box.call(jobs)["jobs"] if row["id"] == job.id)
    assert row["waits"] == "asks for a GPU, 0 are free on gpu9"
    assert box.call(show, job=job.id)["waits"] == {"gpu9": "asks for a GPU, 0 are free on gpu9"}


def why(box: Box, job: Job) -> str:
    """By `jobs`, and the same by `show`, for all hosts."""
    [row] = [row for row in box.call(jobs)["jobs"] if row["id"] == job.id]
    assert box.call(show, job=job.id)["waits"] == {"": row["waits"]}
    return str(row["waits"])


def test_a_queue_that_is_no_more_or_that_nobody_serves(box: Box) -> None:
    box.lab("queues: {default: {}, old: {}}\n")
    box.call(queue, do="pause", queue="old")
    job = box.submit("true", queue="old")
    box.lab("queues: {default: {}}\n")
    box.tick()
    assert why(box, job) == "queue old is not in lab.yaml; mlbox move puts the job in another"
    box.lab(f"queues: {{default: {{}}, old: {{}}}}\nhosts: {{{box.found.host}: {{queues: [default]}}}}\n")
    box.tick()
    assert why(box, job) == "no host serves queue old; mlbox move puts the job in another"
    served = f"{{{box.found.host}: {{queues: [default]}}, gpu9: {{queues: [old]}}}}"
    box.lab(f"queues: {{default: {{}}, old: {{}}}}\nhosts: {served}\n")
    box.tick()
    assert why(box, job) == "only gpu9 could run it, and it has never been heard of"
    assert box.call(move, job=job.id, queue="default")["started"]
    box.end(job)


def test_the_only_host_that_could_run_it_is_silent(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.lab(f"hosts: {{{box.found.host}: {{}}, gpu9: {{}}}}\n")
    job = box.submit("true", resources={"hosts": ("gpu9",)})
    told_by(box, "gpu9", job.id, "asks for a GPU, 0 are free on gpu9")
    box.tick()
    later = processes.uptime() + 2 * 86400
    monkeypatch.setattr(processes, "uptime", lambda: later)
    assert why(box, job).startswith("only gpu9 could run it, and it has been silent for 2d")


def test_all_of_an_array_that_waits_say_why(box: Box) -> None:
    box.submit_all("sleep", "600", array=4, array_limit=1)
    rows = [row for row in box.call(jobs)["jobs"] if row["state"] == "submitted"]
    assert [row["waits"] for row in rows] == ["array limit: 1 of 1 running"] * 3


def test_a_submission_of_an_array_says_why_each_waits(box: Box) -> None:
    spec = JobSpec(command=("sleep", "600"), resources=Resources(gpus="0", cpus=0), array_limit=1)
    reply = box.call(submit, spec=spec.to_wire(), array=4)
    made = [box.found.job(job["id"]) for job in reply["jobs"]]
    box.jobs += made
    assert reply["started"] == [made[0].id]
    assert reply["waits"] == {job.id: "array limit: 1 of 1 running" for job in made[1:]}


def test_the_output_of_one_that_has_not_run_is_why_it_waits(box: Box) -> None:
    made = box.submit_all("sleep", "600", array=2, array_limit=1)
    reply = box.call(logs, job=made[1].id)
    assert (reply["attempt"], reply["why"]) == (0, "array limit: 1 of 1 running")


def test_a_root_that_is_not_mounted_is_said_by_status_too(box: Box, tmp_path: Path) -> None:
    assert not box.call(status)["trouble"]

    def asked(root: Path | None) -> dict[str, Any]:
        call: Any = Call(root)
        return status.run(call)

    assert "is its filesystem mounted?" in asked(tmp_path / "share")["trouble"]
    (tmp_path / "share/users").mkdir(parents=True)  # a session's, which needs no lab
    assert "trouble" not in asked(tmp_path / "share")
    assert "trouble" not in asked(None)


def test_cancel_ends_a_whole_array_by_its_name(box: Box) -> None:
    made = box.submit_all("sleep", "600", array=4, array_limit=1, name="sweep")
    box.cancel(made[3])
    reply = box.call(cancel, job="sweep")
    assert [reply["id"], *(one["id"] for one in reply["more"])] == [job.id for job in made[:3]]
    assert {box.end(job).name for job in made} == {"cancelled"}


def test_an_array_that_has_ended_had_ended_already(box: Box) -> None:
    """As a single job; also where another array of that name had ended before it."""
    for made in (box.submit_all("sleep", "600", array=3, array_limit=1, name="sweep") for _ in range(2)):
        box.call(cancel, job="sweep")
        for job in made:
            box.end(job)
        reply = box.call(cancel, job="sweep")
        assert [one["id"] for one in (reply, *reply["more"])] == [job.id for job in made]
        assert all(one["already"] and one["state"] == "cancelled" for one in (reply, *reply["more"]))
    assert not box.call(cancel, job=made[0].id)["more"]  # the first alone, which has the array's id
    single = box.submit("sleep", "600", name="sweep")
    assert box.call(cancel, job="sweep")["id"] == single.id


def test_a_name_of_two_arrays_ends_neither(box: Box) -> None:
    made = [job for _ in range(2) for job in box.submit_all("sleep", "9", array=2, array_limit=1, name="x")]
    with pytest.raises(errors.NotFound, match="several jobs are called 'x'"):
        box.call(cancel, job="x")
    assert all(job.state().live for job in made)


def test_of_several_of_a_name_the_one_that_has_not_ended_is_meant(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    old = box.submit("true", name="train")
    box.end(old)
    new = box.submit("sleep", "600", name="train")
    assert box.call(show, job="train")["job"]["id"] == new.id
    assert box.call(cancel, job="train")["id"] == new.id
    box.end(new)
    assert box.call(show, job="train")["job"]["id"] == new.id
    again = box.found.job(box.call(retry, job="train")["id"])
    box.jobs.append(again)
    assert box.call(cancel, job="train")["id"] == again.id
    box.end(again)
    assert box.call(logs, job="train")["state"] == "cancelled"
    assert box.call(cancel, job="train")["id"] == again.id
    with pytest.raises(errors.NotFound, match="there is no job"):
        box.call(show, job=again.id[:3])
    monkeypatch.setattr(ids, "_LEAST_BEGINNING", 3)  # no two need be made within a second
    with pytest.raises(errors.NotFound, match="several jobs are called"):
        box.call(show, job=again.id[:3])


@pytest.mark.parametrize("dry", [False, True])
def test_a_retry_is_refused_what_a_submit_is(box: Box, tmp_path: Path, dry: bool) -> None:
    box.lab("queues: {default: {}, night: {}}\n")
    work = Spec(image="x", name="train", mounts=(Mount(str(tmp_path), "/data"),))
    spec = JobSpec(command=("true",), work=work, resources=Resources(gpus="0", cpus=0), queue="night")
    job = submit.submit(box.found, spec)
    box.jobs.append(job)
    box.cancel(job)
    narrower = "queues: {default: {}, night: {}}\nallow: {mounts: [/nowhere]}\n"
    for rules, refusal in ("queues: {default: {}}\n", "no queue night"), (narrower, "may not be mounted"):
        box.lab(rules)
        with pytest.raises(errors.MlboxError, match=refusal):
            box.call(retry, job="train", dry_run=dry)
    assert box.hints() == []


def test_a_retry_says_that_no_host_would_start_it(box: Box) -> None:
    box.lab(f"hosts: {{{box.found.host}: {{}}, gpu9: {{}}}}\n")
    job = box.submit("true", resources={"hosts": ("gpu9",)})
    box.cancel(job)
    again = box.call(retry, job=job.id)
    box.jobs.append(box.found.job(again["id"]))
    assert again["waits"] == "only gpu9 could run it, and it has never been heard of"


def test_of_an_array_that_has_ended_none_is_meant_before_the_others(box: Box) -> None:
    made = box.submit_all("true", array=2, name="sweep")
    for job in made:
        box.end(job)
    with pytest.raises(errors.NotFound, match="several jobs are called 'sweep'"):
        box.call(show, job="sweep")


def test_one_of_an_array_is_called_as_it_is_shown(box: Box) -> None:
    old = box.submit_all("true", array=3, name="sweep")
    for job in old:
        box.end(job)
    with pytest.raises(errors.NotFound) as refused:
        box.call(show, job="sweep")
    assert refused.value.hint == "one of them: sweep[0], sweep[1], sweep[2]"
    for word in ("sweep[2]", "sweep_2", f"{old[0].id.lower()}_2"):
        assert box.call(show, job=word)["job"]["id"] == old[2].id
    new = box.submit_all("sleep", "600", array=400, array_limit=1, name="sweep")  # more than are looked through
    assert box.call(show, job="sweep[399]")["job"]["id"] == new[399].id
    assert box.call(cancel, job="sweep[1]")["id"] == new[1].id and new[2].state().live
    spec = JobSpec(command=("true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0)).to_wire()
    made = box.found.job(box.call(submit, spec=spec, after=[{"job": "sweep[0]"}, {"job": "sweep"}])["jobs"][0]["id"])
    box.jobs.append(made)
    assert [(one.job, one.array) for one in made.spec().after] == [(new[0].id, 0), (new[0].id, 400)]
    for word in ("sweep[400]", "none[0]", "sweep[]", "[0]"):
        with pytest.raises(errors.NotFound, match="there is no job"):
            box.call(show, job=word)
    box.call(cancel, job="sweep")


def test_a_job_waits_for_one_that_is_called_by_its_name(box: Box) -> None:
    old = box.submit("true", name="train")
    box.end(old)
    first = box.submit("sleep", "600", name="train")
    spec = JobSpec(command=("true",), work=Spec(runtime="process"), resources=Resources(gpus="0", cpus=0)).to_wire()
    made = box.call(submit, spec=spec, after=[{"job": "train", "end": "any"}])["jobs"][0]["id"]
    box.jobs.append(box.found.job(made))
    assert [(one.job, one.end) for one in box.jobs[-1].spec().after] == [(first.id, "any")]
    box.submit("sleep", "600", name="train")
    for name, said in (("train", "several jobs are called 'train'"), ("nope", "no job 'nope'")):
        with pytest.raises(errors.NotFound, match=said):
            box.call(submit, spec=spec, after=[{"job": name, "end": "ok"}])


@pytest.mark.parametrize(
    ("asked", "printed"), [({}, "a\nb\nc\n"), ({"tail": 2}, "b\nc\n"), ({"tail": 0}, ""), ({"attempt": 1}, "a\nb\nc\n")]
)
def test_the_end_of_an_output(box: Box, asked: dict[str, int], printed: str) -> None:
    job = box.sh("printf 'a\\nb\\nc\\n'")
    box.end(job)
    call: Any = Call(box.root, job=job.id, **asked)
    logs.run(call)
    assert "".join(said["output"] for said in call.said) == printed


@pytest.mark.parametrize("attempt", [2, -1])
@pytest.mark.parametrize("follow", [False, True])
def test_an_attempt_that_never_was_has_not_printed_nothing(box: Box, attempt: int, follow: bool) -> None:
    job = box.submit("true", name="train")
    box.end(job)
    with pytest.raises(errors.NotFound, match=f"no attempt {attempt} of job train: it has had 1"):
        box.call(logs, job="train", attempt=attempt, follow=follow)


def test_what_is_paused_or_drained_says_by_whom_and_why(box: Box) -> None:
    box.call(queue, do="pause", queue="default", why="the cluster\nmoves")
    me = box.found.user
    [told] = box.call(queue)["queues"]
    assert told["paused"] == f"{me} (the cluster moves)"
    assert box.call(status)["queues"][0]["paused"] == told["paused"]
    job = box.submit("true")
    [row] = box.call(jobs)["jobs"]
    assert row["waits"] == f"queue default is paused by {told['paused']}"
    box.call(host, do="drain", name=box.found.host, why="new PSU")
    assert box.call(status)["drained"] == f"{me} (new PSU)"
    assert job.state().waiting


def test_what_no_host_could_run_is_asked_for_once(box: Box) -> None:
    box.lab(f"hosts: {{{box.found.host}: {{}}, gpu8: {{}}, gpu9: {{}}}}\n")
    for name in ("gpu8", "gpu9"):
        told_by(box, name, "", "")
    with pytest.raises(errors.Refused) as caught:
        box.submit("true", resources={"gpus": "H100:3"})
    here = box.found.host
    assert caught.value.message == (
        "no host of the lab could ever run this: it asks for 3 H100 GPUs, and "
        f"{here} has no GPU, gpu8 has no GPU, gpu9 has no GPU"
    )
    with pytest.raises(errors.Refused, match=f"{here} has no label nvlink; gpu8 has no label nvlink; gpu9 has"):
        box.submit("true", resources={"labels": ("nvlink",)})


def test_what_is_not_there_is_answered_with_what_is(box: Box) -> None:
    box.lab("queues: {default: {}, night: {}}\n")
    for what in ("drain", "fence"):
        with pytest.raises(errors.NotFound, match="no host nope") as caught:
            box.call(host, do=what, name="nope")
        assert box.found.host in caught.value.hint
    assert not (box.found.root / "drained/nope").exists()
    with pytest.raises(errors.NotFound, match="no queue nigth") as caught:
        box.call(jobs, queue="nigth")
    assert "night" in caught.value.hint
    for fields in ({"queue": "nigth"}, {"resources": {"hosts": ("nope",)}}):
        with pytest.raises(errors.NotFound, match=r"no (queue nigth|host nope)"):
            box.submit("true", **fields)


def test_a_host_is_known_by_what_ssh_calls_it_too(box: Box) -> None:
    here = box.found.host
    box.lab(f"hosts:\n  {here}: {{ssh: front}}\n  gpu9: {{ssh: twice}}\n  gpu8: {{ssh: twice}}\n")
    for do in ("drain", "resume"):
        assert box.call(host, do=do, name="front")["host"] == here
        assert (box.found.root / "drained" / here).exists() == (do == "drain")
    assert box.submit("true", resources={"hosts": ("front",)}).spec().resources.hosts == (here,)
    with pytest.raises(errors.NotFound, match="no host twice"):
        box.call(host, do="drain", name="twice")


def test_what_is_there_by_its_name_is_not_put_in_line_again(box: Box) -> None:
    spec = JobSpec(
        command=("sleep", "600"), work=Spec(runtime="process", name="nightly"), resources=Resources(gpus="0")
    )

    def asked() -> tuple[str, str]:
        reply = box.call(submit, spec=spec.to_wire(), if_absent=True)
        box.jobs.append(box.found.job(reply["jobs"][0]["id"]))
        return reply["jobs"][0]["id"], reply.get("there", "")

    first, there = asked()
    assert not there
    assert asked()[0] == first
    (box.root / "paused").mkdir()
    (box.root / "paused/default").touch()
    box.cancel(box.found.job(first))
    box.end(box.found.job(first))
    second, there = asked()
    assert second != first and not there
    assert asked() == (second, "submitted")
    assert box.call(submit, spec=spec.to_wire())["jobs"][0]["id"] not in (first, second)  # nobody asked


def test_a_queue_that_is_there_is_not_made_again_and_what_to_do_is_said(box: Box) -> None:
    with pytest.raises(errors.Refused, match="there is a queue default already") as refused:
        box.call(queue, do="create", queue="default")
    assert "another name" in refused.value.hint
