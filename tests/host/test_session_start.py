"""A session's start that is cut short leaves nothing for good, and one that is under way is left alone."""

from __future__ import annotations

import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from queuebox import Call

from mlbox import errors
from mlbox.core import ids
from mlbox.core.gpu import Holder
from mlbox.core.session import Spec
from mlbox.host import files, keeping, lease, store
from mlbox.host.handlers import session, sessions
from mlbox.host.job import Job
from mlbox.host.sweep import sweep

SPEC = Spec(name="kind-otter", runtime="process")
STEPS = (
    (store.Store, "reserve"), (keeping, "lock"), (store.Store, "create"), (store.Store, "mark_live"),
    (Job, "append"), (store.Store, "unmark_making"),
)  # fmt: skip


@pytest.fixture
def found(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "root")


def start_and_die(found: store.Store, place: Any, name: str, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that is killed right before, or right `after`, this step."""
    real = getattr(place, name)

    def killed(*arguments: Any, **words: Any) -> None:
        if after:
            real(*arguments, **words)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        monkeypatch.setattr(place, name, killed)
        session._create(found, SPEC, {})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def job(found: store.Store, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The one that comes to be."""
    known = ids.ulid(int(time.time() * 1000), secrets.token_bytes(10))
    monkeypatch.setattr(ids, "ulid", lambda *_: known)
    return found.job(known)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("place", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_killed_start_is_swept(
    found: store.Store, job: Job, place: Any, name: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_and_die(found, place, name, after, monkeypatch)
    assert not sweep(found)
    assert not job.boot_folder.exists()
    assert not list(found.making.iterdir()) and not found.live_jobs()
    assert not job.folder.exists() or job.state().name == "failed"  # never one that nobody would end


def test_a_start_under_way_is_left_alone(found: store.Store, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call sweeps at its every step."""
    for place, name in STEPS:
        real = getattr(place, name)

        def swept(*arguments: Any, real: Any = real, **words: Any) -> Any:
            child = os.fork()
            if not child:
                monkeypatch.undo()
                sweep(found)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            return real(*arguments, **words)

        monkeypatch.setattr(place, name, swept)
    made, lock = session._create(found, SPEC, {})
    monkeypatch.undo()
    try:
        assert made == job
        assert job.state().name == "claimed" and job.boot_folder.exists() and keeping.lives(job)
    finally:
        os.close(lock)
    assert not sweep(found)  # nobody keeps it
    assert not job.boot_folder.exists()


def test_the_gpu_time_of_a_session_whose_keeper_was_killed_counts_once(found: store.Store, job: Job) -> None:
    held = lease.take(["GPU-1"], Holder("me")) or {}
    _, lock = session._create(found, SPEC, held)
    lease.drop(held)
    os.close(lock)
    assert not sweep(found) and job.state().name == "failed"
    used = files.read_json(found.on() / "usage.json")
    assert used["seconds"] > 0
    found.mark_live(job, {"gpus": ["GPU-1"], "kind": "session"})  # a crash came before its hint was gone
    assert not sweep(found)
    assert files.read_json(found.on() / "usage.json") == used


def test_engine_arguments_are_checked_here_too(tmp_path: Path) -> None:
    call: Any = Call(tmp_path / "root", spec=Spec(image="x", engine_args=("--privileged",)).to_wire())
    with pytest.raises(errors.Usage, match="not allowed"):
        session.run(call)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(("wanted", "said"), [("", "no session of yours is"), ("a", "no session 'a' of yours, or")])
def test_a_session_that_is_not_here(wanted: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match=f"^{said}"):
        sessions.pick([], wanted, store.Store(tmp_path))
