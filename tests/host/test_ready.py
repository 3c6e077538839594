"""Waiting jobs in their order: found by name, whatever else lies there."""

from __future__ import annotations

import json
import os
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlbox.core import ids, text
from mlbox.core.schedule import Waiting
from mlbox.host import files, ready
from mlbox.host.store import Store


@pytest.fixture
def found(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


def job(found: Store, when: int = 1, queue: str = "default", priority: int = 0, rank: int = 0) -> Waiting:
    return Waiting(ids.ulid(when, secrets.token_bytes(10)), found.user, queue, priority=priority, rank=rank)


def heads(found: Store, limit: int = 100, queue: str = "default") -> list[str]:
    return [waiting.id for waiting in ready.heads(found, found.user, queue, limit)]


def test_by_priority_then_rank_then_time(found: Store) -> None:
    day = 86_400_000
    line = [
        job(found, 9 * day, priority=1000), job(found, 1 * day, priority=7), job(found, 8 * day, rank=-499_999),
        job(found, 7 * day, rank=-1), job(found, 2 * day), job(found, 2 * day + 1), job(found, 900 * day),
        job(found, 1 * day, rank=1), job(found, 0, rank=499_999), job(found, 0, priority=-1000, rank=-5),
    ]  # fmt: skip
    for waiting in random.sample(line, len(line)):
        ready.publish(found, waiting)
    assert heads(found) == [waiting.id for waiting in line]
    assert heads(found, 3) == [waiting.id for waiting in line[:3]]
    assert ready.heads(found, found.user, "default", 1) == line[:1]
    assert ready.count(found, found.user, "default") == len(line)
    assert sorted(set(ready.ranks(found, found.user, "default", 0))) == [-499_999, -1, 0, 1, 499_999]


def test_queues_are_apart(found: Store) -> None:
    a, b = job(found, queue="a"), job(found, queue="b")
    ready.publish(found, a)
    ready.publish(found, b)
    assert (heads(found, queue="a"), heads(found, queue="b"), heads(found)) == ([a.id], [b.id], [])
    assert ready.queues(found, found.user) == ["a", "b"]


def test_folders_vanish_when_empty(found: Store) -> None:
    line = [job(found, when) for when in (1, 2, 10**11)] + [job(found, 5, priority=3)]
    for waiting in line:
        ready.publish(found, waiting)
        ready.publish(found, waiting)  # twice does no harm
    for waiting in line:
        ready.withdraw(found, waiting)
        ready.withdraw(found, waiting)
    assert os.listdir(found.own() / "ready/default") == []
    assert heads(found) == []


def test_what_a_crash_left_empty_is_pruned(found: Store) -> None:
    waiting = job(found)
    ready.publish(found, waiting)
    (found.own() / "ready/default/5000.500000/000000/01").mkdir(parents=True)
    (found.own() / "ready/other/5000.500000").mkdir(parents=True)
    ready.prune(found)
    assert heads(found) == [waiting.id]
    ready.withdraw(found, waiting)
    ready.prune(found)
    assert os.listdir(found.own() / "ready") == []


def test_no_folder_grows_with_the_line(found: Store) -> None:
    """40 jobs, one per 25 days: names in any one folder stay few because time is in the path."""
    for when in range(40):
        ready.publish(found, job(found, when * 25 * 86_400_000))
    widest = max(len(os.listdir(path)) for path, _, _ in os.walk(found.own() / "ready"))
    assert widest <= 40
    assert len(heads(found, 10)) == 10


def _hint(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


@pytest.mark.parametrize(
    "make",
    [
        _hint(""), _hint("{"), _hint("[]"), _hint("7"), _hint('{"priority": 10000000}'), _hint("[" * 200_000),
        _hint('{"resources": {"gpus": "%s"}}' % ("9" * 100)), _hint('{"after": [{"job": "../.."}]}'),
        _hint(" " * 2_000_000 + "{}"), lambda path: path.mkdir(), lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/etc/passwd"), lambda path: path.symlink_to("."),
    ],
)  # fmt: skip
def test_a_hostile_hint_is_passed_over(found: Store, make: Callable[[Path], object]) -> None:
    good = job(found, 10)
    ready.publish(found, good)
    folder = found.own() / "ready/default/0000.000000/01ARYZ/6S"
    folder.mkdir(parents=True)
    make(folder / "01ARYZ6S41TSV4RRFFQ69G5FAV")
    assert heads(found) == [good.id]


@pytest.mark.parametrize("name", ["x", "01ARYZ6S41TSV4RRFFQ69G5FA", "01aryz6s41tsv4rrffq69g5fav", "\x1b[2J", "é" * 80])
def test_a_hostile_name_is_passed_over(found: Store, name: str) -> None:
    good = job(found, 10)
    ready.publish(found, good)
    for depth in ("", "0000.000000/", "0000.000000/01ARYZ/", "0000.000000/01ARYZ/6S/"):
        path = found.own() / "ready/default" / depth / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (found.own() / "ready" / name).mkdir(exist_ok=True)
    assert heads(found) == [good.id]
    assert set(ready.queues(found, found.user)) - {"default"} == ({name} if text.is_name(name) else set())


def test_content_says_neither_who_nor_where(found: Store) -> None:
    waiting = job(found)
    ready.publish(found, waiting)
    path = next(path for path in (found.own() / "ready").rglob(waiting.id))
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "owner": "root", "queue": "vip"}))
    assert ready.heads(found, found.user, "default", 5) == [waiting]


def test_of_many_broken_hints_only_the_first_are_read(found: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = found.own() / "ready/default/0000.000000/01ARYZ/6S"
    folder.mkdir(parents=True)
    for _ in range(200):
        (folder / ids.ulid(1, secrets.token_bytes(10))).write_text("{")
    looks: list[Path] = []
    monkeypatch.setattr(files, "read_json", looks.append)
    assert heads(found, 10) == []
    assert len(looks) == 40


def test_publish_and_withdraw_at_once(found: Store) -> None:
    """Four processes with jobs in the same folder, each of which removes it when it is empty."""
    stay = [replace(job(found, 5), rank=rank) for rank in range(4)]
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                deadline = time.monotonic() + 1
                while time.monotonic() < deadline:
                    passing = job(found, 5)
                    ready.publish(found, passing)
                    ready.withdraw(found, passing)
                ready.publish(found, stay[number])
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert heads(found) == [waiting.id for waiting in stay]
    assert os.listdir(found.parts) == []
