"""What a job printed, once and whole: to its end, over its attempts, and as much of it as was asked for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box, Call

from mlbox.core.log import State
from mlbox.host.handlers import logs
from mlbox.host.job import Job


class Left(Exception):
    """Whoever followed has gone."""


def follow(box: Box, job: Any, monkeypatch: pytest.MonkeyPatch, looks: int = 3) -> list[Any]:
    """What was said in so many looks, and until the end where that came before."""
    left = iter(range(looks))

    def pause() -> None:
        if next(left, None) is None:
            raise Left

    monkeypatch.setattr(logs, "pause", pause)
    call: Any = Call(box.root, job=job.id, follow=True)
    with contextlib.suppress(Left):
        logs.run(call)
    said: list[Any] = call.said
    return said


def printed(said: list[Any]) -> str:
    return "".join(facts.get("output", "") for facts in said)


def test_who_follows_hears_an_attempt_once_however_long_the_next_is_waited_for(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = box.sh("echo once; exit 3", retries=1, backoff=3600)
    box.wait(job, "retry")
    assert printed(follow(box, job, monkeypatch)) == "once\n"


def test_who_follows_hears_each_attempt_however_short(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    job = box.sh("echo $MLBOX_ATTEMPT; exit 3", retries=2, backoff=3600)
    box.wait(job, "retry")

    def pause() -> None:
        """Two more attempts go by between two looks."""
        for number, end in ((2, "retry"), (3, "failed")):
            job.append("claimed", {"attempt": number})
            job.attempt(number).mkdir()
            (job.attempt(number) / "output.log").write_text(f"{number}\n")
            job.append(end, {"exit": 4}, number)

    monkeypatch.setattr(logs, "pause", pause)
    call: Any = Call(box.root, job=job.id, follow=True)
    reply = logs.run(call)
    assert printed(call.said) == "1\n2\n3\n" and (reply["attempt"], reply["exit"]) == (3, 4)


@pytest.mark.parametrize("after", [0.0, 3600.0])
@pytest.mark.parametrize("content", ["", "a word"])
def test_who_follows_a_silent_job_is_told_so_once(
    box: Box, monkeypatch: pytest.MonkeyPatch, content: str, after: float
) -> None:
    job = box.sh("true")
    box.end(job)
    (job.attempt(1) / "output.log").write_text(content)
    monkeypatch.setattr(logs, "_SILENCE", after)
    monkeypatch.setattr(Job, "state", lambda self: State("started", {"attempt": 1}))
    said = [facts["silent"] for facts in follow(box, job, monkeypatch) if "silent" in facts]
    assert said == ["started"] * (not content and not after)


def put(box: Box, content: bytes) -> Any:
    job = box.sh("true")
    box.end(job)
    (job.attempt(1) / "output.log").write_bytes(content)
    return job


def shown(box: Box, job: Any, tail: int | None = None) -> str:
    call: Any = Call(box.root, job=job.id, tail=tail)
    logs.run(call)
    return printed(call.said)


def test_letters_that_blocks_part_stay_whole(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 4)
    unreadable = "\N{REPLACEMENT CHARACTER}"
    job = put(box, "▇▇▇ é\n".encode() + b"\xff!\xe2\x96")
    assert shown(box, job) == f"▇▇▇ é\n{unreadable}!{unreadable}"


def test_a_letter_of_which_only_half_is_there_yet_is_waited_for(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    job = box.sh("true")
    box.end(job)
    output: Path = job.attempt(1) / "output.log"
    sent = logs._Output(job, 1)
    call: Any = Call(box.root)
    for half, last in ((b"\xe2\x96", False), (b"\x87\n", True)):
        with output.open("ab") as file:
            file.write(half)
        sent.send(call, last)
    assert printed(call.said) == "▇\n"


@pytest.mark.parametrize(("content", "lines", "seen"), [
    (b"a\nb\nc\n", 2, "b\nc\n"), (b"a\nb\nc", 2, "b\nc"), (b"a\nb\n\n", 1, "\n"), (b"a\n", 5, "a\n"), (b"", 1, ""),
])  # fmt: skip
def test_the_last_lines(box: Box, content: bytes, lines: int, seen: str) -> None:
    assert shown(box, put(box, content), lines) == seen
