"""Files on a host: private, whole, and never trusted."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import secrets
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from users import let_in, nobody

from mlbox import errors
from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.core.session import Mount, Spec
from mlbox.host import files, keeping, sweep, view
from mlbox.host.job import Job
from mlbox.host.store import Store

_F_SETSIG = 10  # of Linux; fcntl has no name for it on older Pythons
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")


def create(found: Store, spec: Spec) -> Job:
    made = found.job(ids.ulid(1, secrets.token_bytes(10)))
    found.own_place()
    found.reserve(made)
    found.create(made, JobSpec(work=spec), queued=False)
    found.mark_live(made, {"kind": "session"})
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---- private folders -----------------------------------------------------------------------------


def test_a_private_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    made = files.private_folder(tmp_path / "a/b")
    assert (made, mode(made)) == (tmp_path / "a/b", 0o700)


def test_what_is_no_folder_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ev").touch()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits") if seconds else None)
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "ev")


def test_an_open_folder_of_ours_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    assert mode(files.private_folder(tmp_path / "a")) == 0o700


def _symlink(path: Path) -> None:
    (path.parent / "target").mkdir()
    path.symlink_to("target")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize("prepare", [_symlink, _dangling, _file], ids=["symlink", "dangling", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    prepare(tmp_path / "a")
    with pytest.raises(errors.HostUnready, match="not a folder of yours"):
        files.private_folder(tmp_path / "a")


@needs_root
def test_another_user_s_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.chown(tmp_path / "a", 65534, 65534)
    with pytest.raises(errors.HostUnready, match="not a folder of yours"):
        files.private_folder(tmp_path / "a")


# ---- whole files ---------------------------------------------------------------------------------


def test_a_file_appears_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_whole(path, b"one")
    files.write_whole(path, b"two")
    assert (path.read_bytes(), mode(path), sorted(os.listdir(tmp_path))) == (b"two", 0o600, ["a", "home"])


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a").symlink_to("victim")
    files.write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "a").is_symlink()


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".a.{os.getpid()}").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic"):
        files.write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_text() == "precious"


def test_nothing_is_left_where_a_file_cannot_be_put(tmp_path: Path) -> None:
    (tmp_path / "a/full").mkdir(parents=True)
    with pytest.raises(OSError):
        files.write_whole(tmp_path / "a", b"new")
    assert sorted(os.listdir(tmp_path)) == ["a", "home"]


# ---- reading what others may have written --------------------------------------------------------


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link_to_json(path: Path) -> None:
    (path.parent / "real").write_text("{}")
    path.symlink_to("real")


def _content(content: bytes) -> Callable[[Path], None]:
    return lambda path: files.write_whole(path, content)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda path: None,
        _link_to_json,
        _dangling,
        _fifo,
        lambda path: path.mkdir(),
        _file,
        _content(b'{"event": "submi'),
        _content(b"\xff\xfe{}"),
        _content(b"[" * 500_000),
        _content(b'"' + b"x" * files.MAX_FILE + b'"'),
        _content(b"NaN,"),
    ],
    ids=["absent", "symlink", "dangling", "fifo", "folder", "empty", "torn", "not utf-8", "deep", "large", "no json"],
)
def test_what_is_no_small_json_file_counts_as_absent(tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    prepare(tmp_path / "a")
    assert files.read_json(tmp_path / "a") is None


def test_a_path_through_a_file_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    assert files.read_json(tmp_path / "a/b") is None


def test_a_path_through_what_can_be_no_name_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("x" * 300)
    assert files.read_json(tmp_path / "a/b") is None and not files.is_there(tmp_path / "a/b")


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="needs leases (Linux)")
def test_a_file_that_its_owner_has_leased_counts_as_absent(tmp_path: Path) -> None:
    """Whoever opens it would wait until the owner gives that up."""
    (tmp_path / "a").write_text("{}")
    with (tmp_path / "a").open("r+") as file:
        fcntl.fcntl(file, _F_SETSIG, signal.SIGURG)  # which ends nobody
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert files.read_json(tmp_path / "a") is None and files.is_there(tmp_path / "a")


@needs_root
def test_what_is_closed_to_this_user_counts_as_absent_and_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a/b").write_text("{}")
    let_in(tmp_path)
    (tmp_path / "a").chmod(0o700)
    with nobody():
        assert files.read_json(tmp_path / "a/b") is None and not files.is_there(tmp_path / "a/b")


def test_json_up_to_the_limit_is_read(tmp_path: Path) -> None:
    text = "x" * (files.MAX_FILE - 2)
    files.write_whole(tmp_path / "a", json.dumps(text).encode())
    assert files.read_json(tmp_path / "a") == text


def test_no_descriptor_is_lost_on_odd_files(tmp_path: Path) -> None:
    _fifo(tmp_path / "fifo")
    gc.collect()  # what earlier tests left open would be closed in between
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        files.read_json(tmp_path / "fifo")
        files.read_json(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- the log -------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Job:
    (tmp_path / "job/ev").mkdir(parents=True)
    return Job("01ARYZ6S41TSV4RRFFQ69G5FAV", "ada", tmp_path / "job", tmp_path / "boot")


def slots(job: Job) -> list[str]:
    return sorted(os.listdir(job.folder / "ev"))


def test_events_fill_slots_in_their_order(log: Job) -> None:
    assert log.append("submitted", {"by": "ada"})
    assert log.append("claimed", {"gpus": ["GPU-1"]})
    assert slots(log) == ["000001", "000002"]
    assert [e["event"] for e in log.events()] == ["submitted", "claimed"]
    assert log.state().facts == {"by": "ada", "gpus": ["GPU-1"]}
    assert mode(log.folder / "ev/000001") == 0o644  # others' schedulers read it; the folder closes a session's


def test_an_event_that_is_not_legal_leaves_no_slot(log: Job) -> None:
    with pytest.raises(OSError, match="its log is empty just now"):
        log.append("started", {})
    log.append("submitted", {})
    log.append("failed", {})
    for event in ("finished", "failed", "claimed", "submitted", "nonsense"):
        assert not log.append(event, {})
    assert slots(log) == ["000001", "000002"]


@pytest.mark.parametrize(
    "torn",
    [b"", b'{"event": "cla', b"[]", b"7", b"x" * (files.MAX_FILE + 1)],
    ids=["empty", "torn", "list", "7", "large"],
)
def test_a_torn_slot_is_stepped_over(log: Job, torn: bytes) -> None:
    log.append("submitted", {})
    files.write_whole(log.folder / "ev/000002", torn)
    assert log.state().name == "submitted"
    assert log.append("claimed", {"by": "the next one"})
    assert slots(log) == ["000001", "000002", "000003"]
    assert log.state().facts == {"by": "the next one"}


def test_one_of_many_gets_the_slot(log: Job) -> None:
    """Processes that append at the same moment: one event is on record, and one of them is told so."""
    log.append("submitted", {})
    for _ in range(8):
        (log.folder / "ev/000002").unlink(missing_ok=True)
        go_r, go_w = os.pipe()
        told_r, told_w = os.pipe()
        children = []
        for number in range(4):
            child = os.fork()
            if child == 0:
                os.close(go_w)
                os.read(go_r, 1)
                os.write(told_w, bytes([number]) if log.append("claimed", {"by": number}) else b"\xff")
                os._exit(0)
            children.append(child)
        for descriptor in (go_r, go_w, told_w):
            os.close(descriptor)
        for child in children:
            os.waitpid(child, 0)
        told = os.read(told_r, 64)
        os.close(told_r)
        winners = [number for number in told if number != 255]
        assert (len(told), winners) == (4, [log.state().facts["by"]])
        assert slots(log) == ["000001", "000002"]


# ---- a session's folders -------------------------------------------------------------------------

SPEC = Spec(
    name="kind-otter", image="x", runtime="docker", env={"TOKEN": "s3cret-value"}, mounts=(Mount("/a", "/b", True),),
    packages=("einops",), extension_files={"mine.vsix": "eA=="},
)  # fmt: skip


@pytest.fixture
def found(home: Path) -> Store:
    return Store()


@pytest.fixture
def job(found: Store) -> Iterator[Job]:
    made = create(found, SPEC)
    yield made
    found.forget(made)


def test_the_root_is_the_data_home(home: Path) -> None:
    assert Store().root == home / "data/mlbox"
    assert Store(Path("/share")).root == Path("/share")


def test_create(found: Store, job: Job) -> None:
    assert job.spec().name == "kind-otter"
    assert [j.id for j in found.live_jobs()] == [job.id]
    for folder in (job.folder, job.boot_folder, job.sockets, job.conf, job.logs):
        assert mode(folder) == 0o700
    assert mode(job.boot_folder.parent) == 0o700
    assert len(str(job.sockets / "jupyter.sock")) < 100


def test_no_value_of_the_environment_is_kept(found: Store, job: Job) -> None:
    files = [p for top in (found.root, job.boot_folder) for p in top.rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if b"s3cret-value" in p.read_bytes()]
    assert dict(job.spec().work.env) == {"TOKEN": "***"}


def test_a_spec_with_a_large_extension_can_be_read_back(found: Store) -> None:
    large = Spec(extension_files={"mine.vsix": "A" * 2 * files.MAX_FILE})
    made = create(found, large)
    try:
        assert list(made.spec().work.extension_files) == ["mine.vsix"]
    finally:
        found.forget(made)


def test_end_keeps_the_logs_and_nothing_else_of_this_boot(found: Store, job: Job) -> None:
    (job.logs / "jupyter.log").write_text("it ended")
    (job.conf / "session.json").write_text("t0ken")
    found.end(job)
    assert (job.attempt(1) / "log/jupyter.log").read_text() == "it ended"
    assert not job.boot_folder.exists()
    assert found.live_jobs() == []
    assert job.spec().name == "kind-otter"
    found.end(job)  # twice does no harm


def test_forget_leaves_nothing(found: Store, job: Job) -> None:
    found.forget(job)
    assert not job.folder.exists() and not job.boot_folder.exists()
    assert found.live_jobs() == []


@pytest.mark.parametrize("name", ["", "..", "../../etc", "x" * 26, "8" + "0" * 25, "01aryz6s41tsv4rrffq69g5fav"])
def test_what_is_no_id_names_no_folder(found: Store, name: str) -> None:
    with pytest.raises(errors.NotFound):
        found.job(name)


def test_odd_names_among_the_live_ones_are_passed_over_and_dead_ones_swept(found: Store, job: Job) -> None:
    for name in ("notes.txt", "..x", "0" * 26, "01ARYZ6S41TSV4RRFFQ69G5FAV"):
        (found.live / name).write_text("")
    job.append("submitted", {})
    held = keeping.lock(job)
    assert held is not None
    assert [j.id for j in sweep.sweep(found)] == [job.id]
    os.close(held)
    assert sorted(os.listdir(found.live)) == sorted(["..x", job.id, "notes.txt"])


def test_torn_files_of_dead_processes_are_swept_and_those_of_living_ones_are_not(found: Store, job: Job) -> None:
    dead = 2**22 + 7
    for folder in (found.on(), found.live):
        for pid in (dead, os.getpid()):
            (folder / f".host.json.{pid}").write_text("{")
    found.sweep_torn()
    for folder in (found.on(), found.live):
        assert [n for n in os.listdir(folder) if n[0] == "."] == [f".host.json.{os.getpid()}"]


def test_another_host_s_words_about_a_job_are_no_halves_among_its_own(
    found: Store, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sweep knows no process of another host's, and would remove them."""
    elsewhere = Store(found.root)
    elsewhere.host = "gpu2"
    real, seen = os.fsync, list[str]()

    def look(descriptor: int) -> None:
        seen.extend(n for n in os.listdir(found.live) if n[0] == ".")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    before = found.live_record(job)
    elsewhere.mark_ending(job, found.host)
    assert found.live_record(job) == before
    assert [run.ending for run in view.running_of(found, found.user)] == [True]
    elsewhere.mark_fenced(job, found.host)
    assert found.is_fenced(job) and not seen


def test_a_word_to_what_has_ended_makes_nothing_of_it_and_goes(found: Store, job: Job) -> None:
    elsewhere = Store(found.root)
    elsewhere.host = "gpu2"
    elsewhere.mark_ending(job, found.host)
    found.end(job)
    assert os.listdir(found.live) == []
    elsewhere.mark_ending(job, found.host)
    elsewhere.mark_ending(job, "gpu3")  # where there is no folder of it at all
    assert os.listdir(found.live) == []
    (found.live / f"{job.id}.ending").touch()  # written while it ended
    found.sweep_torn()
    assert os.listdir(found.live) == []


def test_a_job_without_a_spec_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="no readable spec"):
        Job("01ARYZ6S41TSV4RRFFQ69G5FAV", "ada", tmp_path, tmp_path).spec()


@needs_root
def test_a_lab_s_root_serves_a_second_user(tmp_path: Path) -> None:
    let_in(tmp_path)
    shared = Store(tmp_path / "share")
    shared.root.mkdir(mode=0o1777)
    shared.root.chmod(0o1777)
    made = create(shared, SPEC)
    try:
        assert mode(shared.root / "users") == 0o1777
        with nobody():
            second = shared.root / "users/nobody"
            second.mkdir()
            with pytest.raises(PermissionError):  # sticky: a place there is its owner's
                (shared.root / "users" / shared.user).rename(shared.root / "users/stolen")
    finally:
        shared.forget(made)


@needs_root
def test_a_place_that_somebody_else_made_for_us_is_not_ours(tmp_path: Path) -> None:
    found = Store(tmp_path)
    found.own_place()
    os.chown(found.own(), 65534, 65534)
    for use in (lambda: Store(tmp_path).live, Store(tmp_path).own_place, lambda: sweep.sweep(Store(tmp_path))):
        with pytest.raises(errors.HostUnready, match="not a folder of yours"):
            use()
    assert Store(tmp_path).own("ada") == tmp_path / "users/ada"


def test_whatever_the_umask_nobody_else_may_write_to_a_place(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        found = Store(tmp_path)
        made = found.job(ids.ulid(1, secrets.token_bytes(10)))
        found.mark_making(made)
        found.create(made, JobSpec(work=SPEC), queued=True)
        found.mark_live(made, {})
    finally:
        os.umask(before)
    assert not [folder for folder, _, _ in os.walk(found.own()) if mode(Path(folder)) & 0o022]


def test_a_folder_that_an_old_view_does_not_take_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share says that the one above is there, and that it is not."""
    real, asked = Path.mkdir, list[Path]()

    def mkdir(path: Path, *words: Any, **kind: Any) -> None:
        asked.append(path)
        if path.name == "child":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        real(path, *words, **kind)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(FileNotFoundError):
        files.make_folder(tmp_path / "parent/child")
    assert len(asked) < 10


@needs_root
def test_a_root_that_this_user_can_t_enter_is_nobody_s_place(tmp_path: Path) -> None:
    """Whoever wants to write there says so, in words of what it is for."""
    (tmp_path / "closed").mkdir(mode=0o700)
    let_in(tmp_path)
    with nobody():
        assert Store(tmp_path / "closed").live_jobs() == []
