"""Ended jobs and sessions of this user's, removed for good: what they were asked for, their log, output and files.

    users/<user>/pruning/<ulid>    a mark: this one goes. There before anything of it does, away when all of it is

    mark -> does one that waits, or may wait again, depend on it? -> its spec (no command finds it any more) -> its
    first slot (no tick does) -> the rest -> the mark

Whoever submits a job that is to run after another looks for that one's mark when the new job is in line: of the two, at
least one sees the other. No tick looks at what has ended, so what a crash leaves is in nobody's way; by its mark the
next pruning, on whichever host, finds it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import ids
from mlbox.core.slots import slot_name
from mlbox.host import archive, files, ready, store, uses
from mlbox.host.job import Job

Json = dict[str, Any]
_AGAIN = (0.05, 0.3, 1.2, 0.0)  # s; a view of a share may be a second old, and a folder not be empty by the server's


@dataclass(frozen=True)
class Ended:
    """`at`: when, in seconds since 1970; `size`: bytes on disk; `stays`: why it does not go. There may be many: no more
    of each is kept."""

    job: Job
    name: str
    kind: str
    array: str
    array_index: int
    state: str
    at: float
    size: int = 0
    stays: str = ""

    def to_wire(self) -> Json:
        return {
            "id": self.job.id, "name": self.name, "array": self.array, "array_index": self.array_index,
            "kind": self.kind, "state": self.state, "at": self.at, "size": self.size, "stays": self.stays,
        }  # fmt: skip


def prune(found: store.Store, older_than: float, say: Callable[[int, int], None]) -> list[Ended]:
    """All that ended `older_than` seconds ago or earlier. Those that say why stay; the others are gone now, or in a dry
    run would be. `say`: how many are, and how many are to be; raises what it raises, Refused, and OSError."""
    with _alone(found):
        return _prune(found, older_than, say)


def _prune(found: store.Store, older_than: float, say: Callable[[int, int], None]) -> list[Ended]:
    there = list(_ids(found))
    old = [_measured(one) for one in _old(found, there, older_than)]
    with _marked(found, [one.job for one in old if not one.stays]):
        awaited = _awaited(found) if old else set()
        old = [replace(one, stays=one.stays or _waited_for(one, awaited)) for one in old]
        if not found.dry:
            old = list(_removed(old, say))
    if not found.dry:
        archive.forget(found, set(there) - {one.job.id for one in old if not one.stays})
    return old


# ---- what may go -------------------------------------------------------------------------------------------


def _ids(found: store.Store) -> Iterator[str]:
    """Of all jobs and sessions of this user's."""
    top = found.own() / "jobs"
    for shard in _names(top):
        yield from filter(ids.is_ulid, _names(top / shard))


def _old(found: store.Store, there: list[str], older_than: float) -> Iterator[Ended]:
    """An id tells when it was submitted: of what is younger nothing is read."""
    now, marked = time.time(), {*filter(ids.is_ulid, _names(found.own() / "pruning"))}
    ended: list[Ended] = []
    arrays, unread = set(), False  # of which some have not ended: a whole array is found from its first job on
    for id_ in sorted(marked.union(id_ for id_ in there if now - ids.when(id_) >= older_than)):
        job = found.job(id_)
        try:
            spec, state = job.shown(), job.state()
        except OSError as error:
            print(f"{id_}: {error}", file=sys.stderr)
            unread = True
            continue
        at = state.facts.get("at") or ids.when(id_)
        if state.live:
            arrays.add(spec.array)
        elif (state.name and now - at >= older_than) or (id_ in marked and not job.is_there()):
            kind = "session" if spec.session and job.is_there() else "job"
            ended.append(Ended(job, spec.name, kind, spec.array, spec.array_index, state.name, at))
    hinted = _hinted(found) if ended else set()  # after the logs: of what has ended no new hint is made
    for one in ended:
        stays = "its end is still being put down" if one.job.id in hinted else ""
        partly = one.array and (unread or one.array in arrays)
        yield replace(one, stays=stays or ("its array has not ended" if partly else ""))


def _hinted(found: store.Store) -> set[str]:
    """What a tick of this user's would look at, on any host."""
    on = found.own() / "on"
    hints = {name for host in _names(on) for kind in ("live", "making") for name in _names(on / host / kind)}
    line = (place[-1] for queue in ready.queues(found, found.user) for place in ready.places(found, found.user, queue))
    return hints.union(line)


def _awaited(found: store.Store) -> set[str]:
    """Whom jobs wait for, or would where they had to run again; everybody's jobs. All are looked at twice: meanwhile
    one that waited may have started, and one that ran be back in line."""
    users, awaited = _names(found.root / "users"), set[str]()
    for _ in range(2):
        for after in (*_of_running(found, users), *_of_waiting(found, users)):
            awaited.add(after)
    return awaited


def _of_running(found: store.Store, users: Iterable[str]) -> Iterator[str]:
    for user in users:
        on = found.own(user) / "on"
        for id_ in {name for host in _names(on) for name in _names(on / host / "live") if ids.is_ulid(name)}:
            yield from (after.job for after in found.job(id_, user).shown().after)


def _of_waiting(found: store.Store, users: Iterable[str]) -> Iterator[str]:
    for user in users:
        for queue in ready.queues(found, user):
            for place in ready.places(found, user, queue):
                job = ready.at(found, user, queue, place)
                yield from (after.job for after in job.after) if job else ()


def _waited_for(one: Ended, awaited: set[str]) -> str:
    return "a job waits for it" if not awaited.isdisjoint((one.job.id, one.array)) else ""


def _names(folder: Path) -> list[str]:
    """Raises OSError: what can't be seen now is not taken for nothing; what is closed to this user is."""
    try:
        return os.listdir(folder)
    except OSError as error:
        if error.errno not in files.ABSENT:
            raise
        return []


def _measured(one: Ended) -> Ended:
    if one.stays:
        return one
    foreign = next(_foreign(one.job.folder), "")
    why = f"a container's root made {foreign}" if foreign else ""
    return replace(one, size=files.size_of(one.job.folder), stays=why)


def _foreign(folder: Path) -> Iterator[str]:
    """Folders in it that are not this user's to empty."""
    for top, names, _ in () if _is_root() else os.walk(folder):
        for path in (os.path.join(top, name) for name in names):
            if not files.is_own(Path(path)) and not os.path.islink(path) and not _is_empty(path):
                yield path


def _is_root() -> bool:
    return os.getuid() == 0


def _is_empty(folder: str) -> bool:
    """Or gone."""
    try:
        return not os.listdir(folder)
    except OSError as error:
        return error.errno == errno.ENOENT


# ---- how it goes -------------------------------------------------------------------------------------------


@contextmanager
def _alone(found: store.Store) -> Iterator[None]:
    """One at a time, of all hosts: another would take away the marks of what this one is about to remove."""
    if found.dry:
        yield
        return
    folder = found.own() / "pruning"
    files.make_folder(folder)
    with uses.of_folder(folder, wait=False) as mine:
        if mine is False:
            raise errors.Refused("another mlbox jobs prune of yours is at work", "again when it has ended")
        yield


@contextmanager
def _marked(found: store.Store, jobs: list[Job]) -> Iterator[None]:
    """Afterwards only those have a mark of which something is gone, and not all; also where an earlier call died."""
    folder = found.own() / "pruning"
    if found.dry:
        yield
        return
    try:
        if jobs:
            for job in jobs:
                job.pruning.touch()
            files.sync_folder(folder)
        yield
    finally:
        with suppress(OSError):
            for job in map(found.job, filter(ids.is_ulid, _names(folder))):
                if job.is_there():
                    job.pruning.unlink(missing_ok=True)


def _removed(old: list[Ended], say: Callable[[int, int], None]) -> Iterator[Ended]:
    done, going = 0, sum(not one.stays for one in old)
    for one in old:
        if one.stays:
            yield one
            continue
        say(done, going)
        done += 1
        if not one.job.is_going():  # where the share knows no locks: another pruning has ended meanwhile
            yield replace(one, stays="another pruning was at work")
            continue
        try:
            _remove(one.job)
            yield one
        except OSError as error:
            yield replace(one, stays=f"it can't be removed: {error.strerror}")


def _remove(job: Job) -> None:
    (job.folder / "spec.json").unlink(missing_ok=True)
    (job.folder / "ev" / slot_name(1)).unlink(missing_ok=True)
    for pause in _AGAIN:
        shutil.rmtree(job.folder, ignore_errors=True)
        if not os.path.lexists(job.folder):
            job.pruning.unlink(missing_ok=True)
            return
        _open(job.folder)
        time.sleep(pause)
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(job.folder))


def _open(folder: Path) -> None:
    """What a program closed to itself (as Go does its modules) would stay."""
    for top, names, _ in os.walk(folder):
        for path in (os.path.join(top, name) for name in names):
            with suppress(OSError):
                mode = os.lstat(path).st_mode
                if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
                    os.chmod(path, 0o700)
