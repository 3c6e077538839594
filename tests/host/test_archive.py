"""Ended jobs, a line each; what is torn or hostile among them is passed over."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path

import pytest

from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.host import archive
from mlbox.host.store import Store


@pytest.fixture
def found(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


def end(found: Store, at: float, name: str = "finished") -> str:
    job = found.job(ids.ulid(1, secrets.token_bytes(10)))
    archive.add(found, job, JobSpec(command=("true",)), State(name, {"at": at, "exit": 0}))
    return job.id


def latest(found: Store, limit: int = 100) -> list[str]:
    return [row["id"] for row in archive.latest(found, found.user, limit)]


def file(found: Store) -> Path:
    return next((found.own() / "archive").iterdir())


def test_the_newest_first(found: Store) -> None:
    made = [end(found, at) for at in (3.0, 1.0, 2.0)]
    assert latest(found) == [made[0], made[2], made[1]]
    assert latest(found, 2) == [made[0], made[2]]
    assert latest(found, 0) == []
    assert archive.latest(found, "nobody-here", 5) == []


def test_days_and_hosts_are_merged(found: Store) -> None:
    end(found, 5.0)
    folder = found.own() / "archive"
    rows = {}
    for name, at in (("2001-01-01.gpu1", 1.0), ("2001-01-01.gpu2", 2.0), ("2001-01-02.gpu1", 1.5), ("notes", 9.0)):
        rows[name] = ids.ulid(int(at), secrets.token_bytes(10))
        suffix = "txt" if name == "notes" else "jsonl"
        (folder / f"{name}.{suffix}").write_text(json.dumps({"id": rows[name], "at": at}) + "\n")
    assert latest(found)[1:] == [rows["2001-01-02.gpu1"], rows["2001-01-01.gpu2"], rows["2001-01-01.gpu1"]]


def test_of_a_day_with_very_many_the_newest_are_shown(found: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [end(found, at) for at in (1.0, 2.0, 3.0)]
    monkeypatch.setattr(archive, "_MOST", file(found).stat().st_size // 2)
    assert latest(found) == [made[2]]


@pytest.mark.parametrize("torn", [b'{"id": "01', b"\xff\xfe", b"\0" * 50])
def test_a_torn_line_takes_no_other_with_it(found: Store, torn: bytes) -> None:
    first = end(found, 1.0)
    with file(found).open("ab") as appended:
        appended.write(torn)
    second = end(found, 2.0)
    assert latest(found) == [second, first]


def test_one_that_was_added_twice_is_shown_once(found: Store) -> None:
    job = end(found, 1.0)
    made = found.job(job)
    archive.add(found, made, JobSpec(command=("true",)), State("finished", {"at": 1.0}))
    assert latest(found) == [job]


def test_what_is_no_row_is_passed_over(found: Store) -> None:
    good = end(found, 1.0)
    start = f'{{"id": "{good}", "at": '
    lines = ["[" * 100_000, "[]", "{}", '{"id": "x", "at": 1}', "1" * 5000]
    lines += [start + '"now"}', start + "1e999}", start + '1, "name": [1]}']
    with file(found).open("a") as appended:
        appended.write("\n".join(lines))
    assert latest(found) == [good]


def test_odd_files_are_passed_over(found: Store) -> None:
    good = end(found, 1.0)
    folder = found.own() / "archive"
    os.mkfifo(folder / "2099-01-01.a.jsonl")
    (folder / "2099-01-02.a.jsonl").mkdir()
    (folder / "2099-01-03.a.jsonl").symlink_to("/etc/passwd")
    (folder / "2099-01-04.a.jsonl").symlink_to("/dev/zero")
    assert latest(found) == [good]


def test_files_of_which_no_job_is_there_any_more_go(found: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, there = (ids.ulid(1, bytes([number] * 10)) for number in (1, 2))
    folder, today = found.own() / "archive", time.strftime("%Y-%m-%d", time.gmtime())
    folder.mkdir(parents=True)
    made = {"2001-01-01.a": (gone,), "2001-01-02.a": (gone, there), "2001-01-03.a": (), f"{today}.a": (gone,)}
    for name, jobs in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"id": job, "at": 1.0}) + "\n" for job in jobs))
    (folder / "2001-01-04.a.jsonl").symlink_to("/etc/passwd")
    (folder / "2001-01-05.a.jsonl").write_bytes(b"x" * 100)
    monkeypatch.setattr(archive, "_MOST", 99)  # beyond which nothing is known of it
    archive.forget(found, {there})
    left = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert left == {"2001-01-02", "2001-01-04", "2001-01-05", today}


def test_many_end_at_once(found: Store) -> None:
    writers = []
    for _ in range(4):
        writers.append(os.fork())
        if writers[-1] == 0:
            try:
                for _ in range(25):
                    end(found, 1.0)
            finally:
                os._exit(0)
    assert [os.waitpid(pid, 0)[1] for pid in writers] == [0] * 4  # not just any child: a test before may have left some
    assert len(set(latest(found, 1000))) == 100
