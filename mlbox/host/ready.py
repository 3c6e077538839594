"""Waiting jobs in their order, as hints: what a tick finds without looking at every job.

    users/<user>/ready/<queue>/<order>/<when>/<when>/<ulid>       content: core.schedule.Waiting as JSON
                                             …/<leaf>/<ulid>       of an array, whose jobs are of one moment

`order` sorts by priority and rank, the two `when` by the time of submission, so the first names are the first
jobs, and no folder grows with the number of jobs that wait. A hint that is lost costs time, never a job
(host/sweep.py); one that is stale is found out by the claim.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path

from mlbox import errors
from mlbox.core import ids, text
from mlbox.core.hints import waiting_from_wire, waiting_to_wire
from mlbox.core.schedule import Waiting
from mlbox.host import files, store

_LEAF = 24  # letters of an id that 1024 ids in a row share
# ESTALE: a folder that another host has removed and made anew, while this one still holds its old handle.
_VANISHED = (errno.ENOENT, errno.EEXIST, errno.ESTALE)
_AGAIN = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # s; a client's view of a folder may be a second old
Place = tuple[str, ...]  # of a hint, below its queue's folder
_MIDDLE = 500_000  # ranks are counted from here, so that a name has no sign


def _order(job: Waiting) -> str:
    return f"{5000 - job.priority:04}.{_MIDDLE + job.rank:06}"


def folder(found: store.Store, job: Waiting) -> Path:
    """Where its hint is, or would be."""
    moment = found.own(job.owner) / "ready" / job.queue / _order(job) / job.id[:6] / job.id[6:8]
    return moment / job.id[:_LEAF] if job.array else moment  # an array's ids are counted on from the first


def publish(found: store.Store, job: Waiting) -> None:
    """Make a waiting job of this user's findable; flushed on return."""
    place = folder(found, job)
    files.make_folder(found.parts)
    for pause in (0.0, *_AGAIN, None):
        try:
            files.make_folder(place)
            files.write_whole(place / job.id, json.dumps(waiting_to_wire(job)).encode(), 0o644, found.parts)
            break
        except OSError as error:  # somebody withdrew the last other job of this folder meanwhile, perhaps elsewhere
            if error.errno not in _VANISHED or pause is None or not found.parts.is_dir():
                raise
            time.sleep(pause)
    try:
        files.sync_folder(place)
    except OSError as error:
        if error.errno not in _VANISHED:  # found, and started, and withdrawn already
            raise


def withdraw(found: store.Store, job: Waiting) -> None:
    """Nobody needs to find it any more; folders that are empty now go too."""
    place = folder(found, job)
    (place / job.id).unlink(missing_ok=True)
    for empty in (place, *list(place.parents)[: 3 if job.array else 2]):
        try:
            os.rmdir(empty)
        except OSError:  # another job's place
            return


def prune(found: store.Store) -> None:
    """Folders of this user's that a crash kept from vanishing. Where nothing waits there are few."""
    top = found.own() / "ready"
    for empty, _, _ in os.walk(top, topdown=False):
        if Path(empty) != top:
            with suppress(OSError):
                os.rmdir(empty)


def heads(found: store.Store, owner: str, queue: str, limit: int) -> list[Waiting]:
    """The first `limit` jobs of one user in one queue. What is not readable, or not the user's, is passed over."""
    top = found.own(owner) / "ready" / queue
    # Of a million names that hold nothing, too, only the first are looked at.
    hints = (_read(top.joinpath(*place), owner, queue) for place in islice(_names(top, 3), 4 * limit))
    return list(islice((job for job in hints if job is not None), limit))


def places(found: store.Store, owner: str, queue: str, after: Place = ()) -> Iterator[Place]:
    """Where the hints of a line are, in their order; those behind the place `after`."""
    return _names(found.own(owner) / "ready" / queue, 3, after)


def together(found: store.Store, owner: str, queue: str) -> Iterator[list[str]]:
    """Who waits, in their order, by names alone: nothing is opened. Those in one folder of an array are one list."""
    for _, those in groupby(places(found, owner, queue), lambda place: place[:4]):
        yield [place[-1] for place in those]


def at(found: store.Store, owner: str, queue: str, place: Place) -> Waiting | None:
    return _read((found.own(owner) / "ready" / queue).joinpath(*place), owner, queue)


def queues(found: store.Store, owner: str) -> list[str]:
    """Queues in which this user has, or had, jobs waiting."""
    return [name for name in _listed(found.own(owner) / "ready") if text.is_name(name)]


def count(found: store.Store, owner: str, queue: str) -> int:
    """How many wait. Lists them all: for people, not for ticks."""
    return sum(1 for _ in _names(found.own(owner) / "ready" / queue, 3))


def ranks(found: store.Store, owner: str, queue: str, priority: int) -> list[int]:
    """The ranks in use at this priority, from the first on."""
    prefix = f"{5000 - priority:04}."
    orders = _listed(found.own(owner) / "ready" / queue)
    return [int(name[len(prefix) :]) - _MIDDLE for name in orders if name.startswith(prefix)]


def _names(top: Path, depth: int, after: Place = ()) -> Iterator[Place]:
    first, rest = (after[0], after[1:]) if after else ("", ())
    for name in _listed(top):
        if name < first:
            continue
        if depth > 0 or (depth == 0 and len(name) == _LEAF):
            below = _names(top / name, depth - 1, rest if name == first else ())
            yield from ((name, *place) for place in below)
        elif ids.is_ulid(name) and name != first:
            yield (name,)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError as error:
        if error.errno not in (*_VANISHED, *files.ABSENT):
            raise
        return []


def _read(path: Path, owner: str, queue: str) -> Waiting | None:
    try:
        document = files.read_json(path)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None  # withdrawn by another host
    if not isinstance(document, dict):
        return None
    try:
        return waiting_from_wire(path.name, owner, {**document, "queue": queue})
    except errors.Usage:
        return None
