"""The judge of the chaos test: it finds one violation of each kind that is put there, and none where all is well."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import faults
import plans
import pytest
from intervals import Asked, Fenced, Run, Still, bounded, of_fenced, of_log, of_runs

from mlbox import host
from mlbox.core.slots import Intent, Reading, Slot, Writer

MEMORY = {"GPU-a": 24, "GPU-b": 24}


def run(job: str, start: float, last: float, *gpus: str, **more: Any) -> Run:
    return Run(**{"job": job, "attempt": 1, "host": "gpu1", "gpus": gpus, "start": start, "last": last, **more})


A = run("A", 0, 2, "GPU-a")
SOUND = [
    A, run("A", 2, 3, "GPU-b", attempt=2), run("B", 2, 4, "GPU-a"), run("C", 0, 9),
    run("D", 5, 8, "GPU-a", share=12), run("E", 6, 9, "GPU-a", share=12), run("F", 8, 9, "GPU-a", share=12),
]  # fmt: skip


def test_runs_that_fit_together() -> None:
    assert of_runs(SOUND, MEMORY) == []


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        (run("A", 1.9, 2.5, attempt=2), "a job ran twice at once"),
        (run("A", 1.9, 2.5, attempt=2, host="gpu2"), "a job ran twice at once"),
        (run("A", 3, 4), "an attempt ran twice"),
        (run("X", 1.9, 2.5, "GPU-b", "GPU-a"), "a GPU was not left alone"),
        (run("X", 1.9, 2.5, "GPU-a", share=1), "a GPU was not left alone"),
        (run("X", 7, 7.5, "GPU-a", share=1), "a GPU was overfull"),
        (run("X", 0, 1, "GPU-c", share=1), "a GPU was overfull"),
    ],
    ids=["twice", "twice, elsewhere", "attempt", "two exclusive", "share beside exclusive", "overfull", "unknown"],
)
def test_a_run_that_does_not_fit(more: Run, kind: str) -> None:
    assert {violation.kind for violation in of_runs([*SOUND, more], MEMORY)} == {kind}
    assert {violation.kind for violation in of_runs([more, *SOUND], MEMORY)} == {kind}


def test_a_run_that_stood_still_with_its_host_lasted_as_long() -> None:
    gone = replace(A, ended=False)
    assert bounded(gone, [Still("gpu1", 2.1, 7), Still("gpu1", 30, 40)]).last == 7
    for stills in ([], [Still("gpu2", 2.1, 7)], [Still("gpu1", 5, 7)], [Still("gpu1", 0.5, 1.5)]):
        assert bounded(gone, stills) == gone
    assert bounded(A, [Still("gpu1", 2.1, 7)]) == A


def test_a_fenced_host_that_starts_something() -> None:
    gone = [Fenced("gpu1", 3, 6), Fenced("gpu2", 0, 1)]
    assert of_fenced([run("A", 2, 4), run("B", 7, 8), run("C", 4, 5, host="gpu2")], gone) == []
    assert [found.kind for found in of_fenced([run("A", 4, 8)], gone)] == ["a fenced host started a job"]


# ---- a job's log -------------------------------------------------------------------------------------------

CLAIMED: dict[str, Any] = {"event": "claimed", "attempt": 1, "host": "gpu1", "gpus": ["GPU-a"], "share": 0}
EVENTS: list[dict[str, Any]] = [{"event": "submitted"}, CLAIMED, {"event": "started"}, {"event": "finished"}]
AGAIN = [*EVENTS[:3], {"event": "lost"}, {**CLAIMED, "attempt": 2, "host": "gpu2"}, *EVENTS[2:]]
ASKED = Asked(gpus=1)


def log(*events: dict[str, Any]) -> Reading:
    return Reading(tuple(Slot(event) for event in events))


def kinds(reading: Reading, asked: Asked = ASKED, *runs: Run) -> set[str]:
    return {violation.kind for violation in of_log("A", reading, asked, runs or (A,))}


def test_a_log_that_is_sound() -> None:
    assert kinds(log(*EVENTS)) == set()
    again = run("A", 5, 6, "GPU-a", attempt=2, host="gpu2")
    assert kinds(log(*AGAIN), ASKED, replace(A, ended=False), again) == set()
    stepped = Reading((Slot(EVENTS[0]), None, Slot(CLAIMED, (2,)), *(Slot(event) for event in EVENTS[2:])))
    assert kinds(stepped) == set()


def test_what_is_wrong_with_a_log_is_found() -> None:
    writer = Writer("gpu1", "boot", 1, "1")
    torn = Reading((*log(*EVENTS).slots, None))
    assert kinds(torn) == {"a slot is torn"}
    assert kinds(Reading(log(*EVENTS).slots, frozenset([Intent(5, writer, "0" * 16)]))) == {"an intent is left"}
    assert kinds(Reading(log(*EVENTS).slots, frozenset([Intent(4, writer, "0" * 16)]))) == set()
    assert kinds(log(*EVENTS[:3])) == {"a job did not end"}
    assert kinds(log()) == {"a job did not end", "a run is not as it was claimed and asked for"}
    assert kinds(log(*EVENTS, {"event": "failed"})) == {"an event is not legal"}
    assert kinds(log(*EVENTS[:3], {"event": "failed"})) == {"a job ended otherwise"}
    assert kinds(log(*EVENTS[:3], {"event": "failed"}), replace(ASKED, ends=frozenset(["failed"]))) == set()
    twice = [*AGAIN[:4], {**AGAIN[4], "attempt": 1}, *AGAIN[5:]]
    assert kinds(log(*twice), ASKED, replace(A, host="gpu2")) == {"attempts don't follow one another"}


@pytest.mark.parametrize(
    "other",
    [{"attempt": 2}, {"host": "gpu2"}, {"gpus": ("GPU-b",)}, {"gpus": ()}, {"share": 8}],
    ids=["attempt", "host", "another GPU", "no GPU", "share"],
)
def test_a_run_that_is_not_as_it_was_claimed(other: dict[str, Any]) -> None:
    assert "a run is not as it was claimed and asked for" in kinds(log(*EVENTS), ASKED, replace(A, **other))


def test_a_run_that_was_claimed_with_more_than_was_asked_for() -> None:
    assert kinds(log(*EVENTS), Asked(gpus=2)) == {"a run is not as it was claimed and asked for"}
    shared = log(EVENTS[0], {**CLAIMED, "share": 8}, *EVENTS[2:])
    assert kinds(shared, Asked(1, 9), replace(A, share=8)) == {"a run is not as it was claimed and asked for"}


def test_a_job_that_finished_and_did_not_run() -> None:
    assert kinds(log(*EVENTS), ASKED, replace(A, ended=False)) == {"a job finished and did not run"}
    assert kinds(log(*AGAIN), ASKED, A) == {"a job finished and did not run"}
    assert kinds(log(*EVENTS), replace(ASKED, recorded=False), replace(A, ended=False)) == set()


# ---- the plan ----------------------------------------------------------------------------------------------


def test_a_seed_is_a_plan() -> None:
    assert plans.long(7, 500) == plans.long(7, 500) != plans.long(8, 500)
    made = plans.long(7, 500)
    assert sum(batch.count for batch in made.batches) == 500
    dealt = [fault.kind for lane in made.lanes.values() for fault in lane]
    assert {kind: dealt.count(kind) for kind in dealt} == dict.fromkeys(faults.KINDS, 6)


def test_each_of_the_people_submits_about_half() -> None:
    batches = plans.long(7, 500).batches
    for user in plans.PEOPLE:
        assert 0.35 < sum(batch.user == user for batch in batches) / len(batches) < 0.65
    assert all(f"/home/{batch.user}/chaos" in " ".join(batch.words) for batch in batches)


def time_outs() -> Iterator[tuple[str, float]]:
    """Of all that hosts wait for."""
    for module in pkgutil.walk_packages(host.__path__, "mlbox.host."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, float) and name.endswith(("PATIENCE", "BEAT", "LONG", "FRESH", "WORKS", "RETURN")):
                yield f"{module.name}.{name}", value


@pytest.mark.parametrize("seed", range(5))
def test_the_long_form_outlasts_every_time_out(seed: int) -> None:
    lanes = plans.long(seed, 500).lanes.values()
    longest = {kind: max(f.seconds for lane in lanes for f in lane if f.kind == kind) for kind in faults.LASTING}
    known = dict(time_outs())
    assert {"mlbox.host.view.BEAT", "mlbox.host.heard.LONG", "mlbox.host.sweep._WORKS"} <= known.keys()
    beyond = {name for name, seconds in known.items() if seconds >= min(longest["frozen"], longest["no share"])}
    assert beyond == {"mlbox.host.attempts._PATIENCE"}
    assert max(longest[kind] for kind in longest.keys() - {"frozen", "no share"}) <= 75


@pytest.mark.parametrize("seed", range(5))
def test_submissions_go_on_while_faults_happen(seed: int) -> None:
    made = plans.long(seed, 500)
    pauses = sum(batch.pause for batch in made.batches) / plans.SUBMITTERS
    assert 0.5 < pauses / max(map(plans.duration, made.lanes.values())) < 1.1


def test_the_short_form_has_some_of_everything() -> None:
    made = plans.short(14)
    words = [" ".join(batch.words[: batch.words.index("--")]) for batch in made.batches]
    for word in ("--image", "--time-limit", "--retries", "--gpu-share", "--gpus 0", "--gpus 1", "--gpus 2", "hold"):
        assert any(word in line for line in words), word
    assert sorted(fault.kind for lane in made.lanes.values() for fault in lane) == sorted(faults.KINDS)
    assert {batch.user for batch in made.batches} == set(plans.PEOPLE)
    assert max(map(plans.duration, made.lanes.values())) < 60
    assert all(batch.pause == 0 for batch in made.batches)
