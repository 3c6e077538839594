"""Ended jobs, a line each: what `jobs` shows of the past without opening every job's folder.

    users/<user>/archive/<yyyy-mm-dd>.<host>.jsonl       one writer at a time: this user on that host

A hint like the others: the job's own log is the truth, and a line that was torn by a crash is passed over.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.core.log import State, moment, number
from mlbox.host import files, store
from mlbox.host.job import Job

Json = dict[str, Any]
_WORDS = ("id", "owner", "name", "queue", "state", "requested", "host", "why", "array")
_NUMBERS, _TIMES = ("attempt", "array_index"), ("submitted", "at")
_MOST = 64 * 1024 * 1024  # bytes read of one day's file


def add(found: store.Store, job: Job, spec: JobSpec, state: State) -> None:
    folder = found.own() / "archive"
    files.make_folder(folder)
    line = json.dumps(summary(job, spec, state)).encode() + b"\n"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    name = f"{day}.{found.host}.jsonl"
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "ab", buffering=0) as file, (found.boot_folder() / "archive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # local: the file has no other host's writers
        file.write((b"" if _is_whole(folder / name) else b"\n") + line)
        os.fsync(file.fileno())


def _is_whole(path: Path) -> bool:
    """Whether its last line has its end: one that a crash tore must not take the next with it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return not size or file.read() == b"\n"


def summary(job: Job, spec: JobSpec, state: State) -> Json:
    """What a list shows of a job."""
    facts = state.facts
    return _typed({
        "id": job.id, "owner": job.owner, "name": spec.name, "queue": facts.get("queue", spec.queue),
        "state": state.name, "requested": state.requested, "host": facts.get("host"), "gpus": facts.get("gpus"),
        "attempt": state.attempt, "submitted": facts.get("submitted"), "at": facts.get("at"),
        "exit": facts.get("exit"), "why": facts.get("why"), "command": list(spec.command)[:20], "array": spec.array,
        "array_index": spec.array_index,
    })  # fmt: skip


def _typed(row: Json) -> Json:
    """All that a list shows, and each as what it should be: a log, or a line here, may be anybody's."""
    words, numbers, times = ({name: row.get(name) for name in names} for names in (_WORDS, _NUMBERS, _TIMES))
    lists = {name: row.get(name) for name in ("gpus", "command")}
    return {
        **{name: value if isinstance(value, str) else "" for name, value in words.items()},
        **{name: number(value) for name, value in numbers.items()},
        **{name: moment(value) for name, value in times.items()},
        **{name: list(map(str, value)) if isinstance(value, list) else [] for name, value in lists.items()},
        "exit": row.get("exit") if type(row.get("exit")) is int else None,
    }


def latest(
    found: store.Store, owner: str, limit: int, is_meant: Callable[[Json], bool] = lambda line: True
) -> list[Json]:
    """The newest `limit` ended jobs of a user that are meant, the last first. After a crash one may have been added
    twice."""
    lines: dict[str, Json] = {}
    for line in _lines(found, owner) if limit > 0 else ():
        if line["id"] not in lines and is_meant(line):
            lines[line["id"]] = {**line, "owner": owner}  # whatever it says
        if len(lines) >= limit:
            break
    return list(lines.values())


def _lines(found: store.Store, owner: str) -> Iterator[Json]:
    folder = found.own(owner) / "archive"
    try:
        names = sorted((n for n in os.listdir(folder) if n.endswith(".jsonl")), reverse=True)
    except OSError:
        return
    for day in dict.fromkeys(name.split(".")[0] for name in names):
        rows = [row for name in names if name.startswith(f"{day}.") for row in _read(folder / name)]
        yield from sorted(rows, key=lambda row: -row["at"])


def _read(path: Path) -> Iterator[Json]:
    with suppress(OSError):
        yield from _rows(path)


def _rows(path: Path) -> Iterator[Json]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST))  # the newest, of a day with very many
        content = file.read(_MOST)
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_sound(row):
            yield _typed(row)


def forget(found: store.Store, there: Container[str]) -> None:
    """Files go of which no job is there any more; not those of yesterday or later, to which other hosts may add."""
    yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400))
    for path in (found.own() / "archive").glob("*.jsonl"):
        with suppress(OSError):  # one that can't be read stays
            whole = path.name < yesterday and path.lstat().st_size <= _MOST
            if whole and not any(row["id"] in there for row in _rows(path)):
                path.unlink()


def _is_sound(row: Json) -> bool:
    """Any user's line: no more is believed of it than that it can be shown and sorted."""
    words, at = ("id", "owner", "name", "queue", "state", "host", "why"), row.get("at")
    readable = all(isinstance(row.get(word, ""), str) for word in words) and ids.is_ulid(row.get("id", ""))
    return readable and isinstance(at, (int, float)) and -1e12 < at < 1e12
