"""Job files that are not what mlbox made: one clear line each, and nobody else's job is concerned."""

from __future__ import annotations

import json

import pytest
from queuelab import Lab, awaited

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

NONE = ("--gpus", "0", "--cpus", "0", "--runtime", "process", "--on", "gpu1")
SPECS = (
    "ln -sf /etc/passwd {}", "rm {0}; mkfifo {0}", "rm {0}; mkdir {0}", "truncate -s 1G {}", "echo '{{' >{}",
    "echo '[1]' >{}", """echo '{{"queue": "../../x", "command": ["true"]}}' >{}""", "chmod 0 {}",
    """echo '{{"command": ["true"], "code": "../../../etc/shadow"}}' >{}""",
)  # fmt: skip
HINTS = ("ln -s /etc/passwd {}", "mkfifo {}", "truncate -s 1G {}", "echo '{{' >{}", "mkdir {}")
ESCAPES = "\x1b]0;pwned\x07\x1b[2J\u202e"


def spoil(person: Lab) -> tuple[list[str], str]:
    """Jobs of theirs whose files are replaced while they wait, and one that is left alone."""
    *bad, good = (job["id"] for job in person.submit(*NONE, "--array", str(len(SPECS) + 1), "--", "true"))
    top = f"{person.root}/users/{person.user}"
    acts = [act.format(f"$(echo {top}/jobs/*/{job})/spec.json") for act, job in zip(SPECS, bad)]
    first = f"{top}/ready/default/4999.000000/01AAAA/AA"
    acts += [f"mkdir -p {first} {top}/ready/default/..x {top}/on/gpu1/live"]
    for number, act in enumerate(HINTS):
        name = f"01AAAAAAAAAAAAAAAAAAAAAAA{number}"
        acts += [act.format(f"{first}/{name}"), act.format(f"{top}/on/gpu3/live/{name}")]
    person.ssh("gpu1", f"mkdir -p {top}/on/gpu3/live; " + "; ".join(acts))
    return bad, good


@pytest.mark.parametrize("whose", ["ada", "bob"])
def test_hostile_job_files(lab: Lab, whose: str) -> None:
    bob = lab.another_laptop("bob")
    bob.run("queue", "process")
    hostile, other = (lab, bob) if whose == "ada" else (bob, lab)
    lab.run("queue", "pause", "default")
    bad, good = spoil(hostile)
    theirs = other.one(*NONE, "--", "true")
    lab.run("queue", "resume", "default")
    for person in (hostile, other):
        person.run("queue", "process")
    other.until(theirs, "finished")
    hostile.until(good, "finished")
    rows = awaited(lambda: _ended(hostile, bad))
    for job in bad:
        assert rows[job]["state"] == "failed"
        assert f"{job} has no readable spec.json" in rows[job]["why"] or f"{job} has a damaged" in rows[job]["why"]
    for person in (hostile, other):
        for words in (("jobs", "--all"), ("status",), ("queue", "list"), ("show", bad[0])):
            assert "Traceback" not in person.laptop.run(*words).all


def _ended(person: Lab, jobs: list[str]) -> dict[str, dict[str, str]]:
    rows = {row["id"]: row for row in person.jobs()}
    return rows if all(rows.get(job, {}).get("state") == "failed" for job in jobs) else {}


def test_escapes_reach_no_terminal(lab: Lab) -> None:
    """What a colleague writes into names, reasons and marks; a job's output is its owner's, colours and all."""
    bob = lab.another_laptop("bob")
    job = bob.one(*NONE, "--", "true")
    bob.until(job, "finished")
    row = {"id": job, "owner": "bob", "name": ESCAPES, "queue": ESCAPES, "state": "failed", "host": ESCAPES,
           "gpus": [], "at": 1e9, "submitted": 1e9, "attempt": 1, "why": ESCAPES}  # fmt: skip
    top, mark = f"{lab.root}/users/bob", {"by": ESCAPES, "why": ESCAPES}
    spec = f"{lab.show(job)['folder']}/spec.json"
    document = json.loads(bob.ssh("gpu1", f"cat {spec}"))
    document["work"]["name"] = ESCAPES
    content = {f"$(ls {top}/archive/*)": row, f"{top}/on/gpu1/waits.json": {job: ESCAPES}, spec: document,
               f"{lab.root}/paused/default": mark, f"{lab.root}/drained/gpu1": mark}  # fmt: skip
    bob.ssh("gpu1", "; ".join(f"echo '{json.dumps(what)}' >{where}" for where, what in content.items()))
    for words in (("jobs", "--all"), ("show", job), ("status",), ("queue", "list")):
        said = lab.laptop.run(*words)
        assert (
            said.code in (0, 6) and said.out + said.err and not set(said.all) & set(ESCAPES[:1] + ESCAPES[-1:] + "\x07")
        )
    mine = lab.one(*NONE[:-2], "--on", "gpu2", "--queue", "default", "--", "printf", r"\033[31mred")
    bob.ssh("gpu1", f"rm {lab.root}/paused/default {lab.root}/drained/gpu1")
    lab.run("queue", "process")
    lab.until(mine, "finished")
    assert lab.output(mine) == "\x1b[31mred"
