"""Nobody is hidden by those at the head of the line who wait for something, however long it is; nor is much read."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from queuebox import Box

from mlbox.core import ids
from mlbox.core.resources import Resources
from mlbox.core.schedule import After, Waiting
from mlbox.host import files, look, ready, view
from mlbox.host.handlers import queue
from mlbox.host.handlers import tick as tick_handler

Json = dict[str, Any]
NOBODY = "01ARYZ6S41TSV4RRFFQ69G5FAV"
FREE = Resources(gpus="0", cpus=0)


def line(box: Box, count: int, **fields: Any) -> list[Waiting]:
    """Jobs of yesterday's, as hints: they can't be started, so nothing more of them is looked at."""
    yesterday = int(time.time() * 1000) - 86_400_000
    made = [
        Waiting(ids.ulid(yesterday + number, secrets.token_bytes(10)), box.found.user, **{"resources": FREE, **fields})
        for number in range(count)
    ]
    with mock.patch("os.fsync"):
        for job in made:
            ready.publish(box.found, job)
    return made


def running_elsewhere(box: Box, **record: Any) -> None:
    live = box.found.on("gpu9") / "live"
    live.mkdir(parents=True)
    (live / NOBODY).write_text(json.dumps({"gpus": [], **record}))


REASONS: dict[str, Json] = {
    "a dependency": {"after": (After(NOBODY),)},
    "a back-off": {"not_before": time.time() + 3_000},
    "an array's limit": {"array": NOBODY, "array_limit": 1},
    "a user's limit": {"resources": replace(FREE, gpus="3")},
    "another host": {"resources": replace(FREE, hosts=("gpu9",))},
}


@pytest.mark.parametrize("reason", REASONS)
def test_who_waits_for_something_else_hides_nobody(box: Box, reason: str) -> None:
    box.lab('users: {"*": {max_gpus: 2}}\n')
    running_elsewhere(box, array=NOBODY)
    line(box, look.LOOK + 6, **REASONS[reason])
    assert box.end(box.sh("true")).name == "finished"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hints that were opened."""
    seen: list[str] = []
    real = files.read_json

    def counted(path: Any) -> Any:
        if "ready" in path.parts:
            seen.append(path.name)
        return real(path)

    monkeypatch.setattr(files, "read_json", counted)
    return seen


def test_a_long_line_is_looked_through_in_parts_and_what_was_found_is_kept(
    box: Box, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_memory_free", lambda: 0)
    blocked = line(box, 2 * look.BLOCK + 20, after=(After(NOBODY),))
    asking = replace(FREE, memory=1)  # there is no room for it
    far = Waiting(ids.ulid(int(time.time() * 1000), secrets.token_bytes(10)), box.found.user, resources=asking)
    ready.publish(box.found, far)
    seen = []
    for _ in range(5):
        reads.clear()
        waits = box.tick().waits or {}
        assert len(reads) <= 2 * look.BLOCK + look.LOOK
        seen.append(far.id in waits)
    assert seen == [False, True, True, True, True]
    for job in blocked[: look.BLOCK]:
        ready.withdraw(box.found, job)
    box.tick()
    box.tick()
    assert files.read_json(look.path(box.found))["default"]["known"]  # still: the head ends before it
    for job in blocked[look.BLOCK :]:
        ready.withdraw(box.found, job)
    assert far.id in (box.tick().waits or {})
    assert files.read_json(look.path(box.found)) == {}


def test_where_nobody_can_start_no_more_than_the_head_is_read(box: Box, reads: list[str]) -> None:
    (box.root / "paused").mkdir()
    (box.root / "paused/default").write_text("{}")
    line(box, 2 * look.LOOK)
    box.tick()
    assert len(reads) == look.LOOK


@pytest.mark.parametrize(("able", "most"), [(True, look.LOOK), (False, look.BLOCK)])
def test_a_tick_says_whether_it_looked_at_all_that_waits(able: bool, most: int, box: Box) -> None:
    (box.root / "paused").mkdir()
    (box.root / ("paused/default" if able else "paused/other")).write_text("{}")
    assert box.call(tick_handler)["whole"] is True
    jobs = line(box, most + 1, **({} if able else REASONS["a dependency"]))
    assert box.call(tick_handler)["whole"] is False
    ready.withdraw(box.found, jobs.pop())
    ready.withdraw(box.found, jobs.pop())
    assert box.call(tick_handler)["whole"] is True


def test_of_an_array_that_can_t_start_a_few_are_read(box: Box, reads: list[str]) -> None:
    running_elsewhere(box, array=NOBODY)
    first = ids.ulid(int(time.time() * 1000) - 86_400_000, b"\0" * 10)
    for _ in range(300):
        ready.publish(box.found, Waiting(first, box.found.user, resources=FREE, array=NOBODY, array_limit=1))
        first = ids.following(first)
    box.tick()
    assert len(reads) == 1


def test_an_array_s_limit_counts_those_that_are_about_to_start(box: Box) -> None:
    """Of the first 64 of an array one may start; the 65th job, of no array, may too."""
    box.call(queue, do="pause", queue="default")
    box.submit_all("/bin/true", array=70, array_limit=1)
    job = box.sh("true")
    (box.root / "paused/default").unlink()
    assert job.id in box.tick().started


DAMAGED: list[Callable[[Iterable[str]], str]] = [
    lambda names: "{", lambda names: "[]", lambda names: '{"default": 5}',
    lambda names: '{"default": {"at": [], "known": 7}}',
    lambda names: json.dumps({"default": {"at": "../../x", "known": ["../../../../etc/passwd", "/", "", "a" * 500]}}),
    lambda names: json.dumps({"default": {"known": list(names)}}),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_memory_costs_nothing_but_time(box: Box, damage: Callable[[Iterable[str]], str]) -> None:
    blocked = line(box, look.BLOCK + 10, after=(After(NOBODY),))
    box.found.on().mkdir(parents=True, exist_ok=True)
    look.path(box.found).write_text(damage(job.id for job in blocked))
    assert box.end(box.sh("true")).name == "finished"
