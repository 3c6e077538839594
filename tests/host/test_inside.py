"""What works in a session's container writes to some of its folders: the host follows no link from there."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import string
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box
from users import let_in, nobody

from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.host import files, link, stored
from mlbox.host.behind import Here
from mlbox.host.colleague import Colleague
from mlbox.host.handlers import sessions
from mlbox.host.job import Job
from mlbox.host.sharing import Sharing

KEY = "ssh-ed25519 " + "A" * 68


@pytest.fixture
def job() -> Iterator[Job]:
    """In a folder whose sockets' names are short enough."""
    root = Path(tempfile.mkdtemp(prefix="mt"))
    id_ = ids.ulid(1, os.urandom(10))
    made = Job(id_, "ada", root / "job", root / id_[-8:].lower())
    for folder in (made.sockets, made.conf, made.logs):
        folder.mkdir(parents=True)
    yield made
    shutil.rmtree(root)


def engine(path: Path) -> socket.socket:
    """A socket of the host's, which says to each who it is."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(BrokenPipeError):
                connection.sendall(b'the engine\'s "ok": true')

    threading.Thread(target=serve, daemon=True).start()
    return listener


def carried(job: Job, service: str) -> bytes:
    """What a colleague hears at a service."""
    near, far = socket.socketpair()
    keeper = Sharing(job, Here(job, {"services": {service: {}}}))

    def carry() -> None:
        with far, suppress(OSError):
            keeper._carry(service, Colleague(4242), far)

    thread = threading.Thread(target=carry)
    thread.start()
    with near:
        near.settimeout(20)
        heard = near.recv(100)
        near.shutdown(socket.SHUT_WR)
        thread.join(20)
    return heard


def test_a_service_s_socket_is_carried_to(job: Job) -> None:
    with engine(job.sockets / "jupyter.sock"):
        assert carried(job, "jupyter") == b'the engine\'s "ok": true'


@pytest.mark.parametrize("what", ["the socket", "its folder"])
def test_a_link_is_no_service(job: Job, what: str) -> None:
    """To the container engine, by which a colleague would be root on the host."""
    outside = job.boot_folder.parent / "outside"
    outside.mkdir()
    with engine(outside / "jupyter.sock"), engine(outside / "guest.sock"):
        if what == "the socket":
            for name in ("jupyter", "guest"):
                (job.sockets / f"{name}.sock").symlink_to(outside / f"{name}.sock")
        else:
            job.sockets.rename(job.boot_folder / "away")
            job.sockets.symlink_to(outside)
        assert carried(job, "jupyter") == b""
        assert not link.answers(job.sockets / "guest.sock")


def test_no_socket_is_no_service(job: Job) -> None:
    (job.sockets / "jupyter.sock").touch()
    assert carried(job, "jupyter") == b""


def test_what_laptops_dial_stays_the_socket_that_it_was(job: Job) -> None:
    """sshd follows links, and by a page of a session's any program in it can speak to what its owner's laptop dials."""
    job.dialled.mkdir()
    with engine(job.sockets / "jupyter.sock"):
        files.keep_socket(job.sockets / "jupyter.sock", job.dialled)
        (job.sockets / "jupyter.sock").unlink()
        (job.sockets / "jupyter.sock").symlink_to(job.boot_folder.parent / "docker.sock")
        with socket.socket(socket.AF_UNIX) as laptop:
            laptop.connect(str(job.dialled / "jupyter.sock"))
            assert laptop.recv(100) == b'the engine\'s "ok": true'
        for path in (job.sockets / "jupyter.sock", job.logs):
            with pytest.raises(OSError):
                files.keep_socket(path, job.dialled)
        assert os.listdir(job.dialled) == ["jupyter.sock"]


def test_what_answers_can_be_dialled_and_nothing_else(job: Job) -> None:
    """The guest says which services there are, and a container's root may say anything in its place."""
    job.dialled.mkdir()
    guest = link.GuestLink({}, job.id)
    with engine(job.sockets / "jupyter.sock"), engine(job.sockets / "guest.sock"), engine(job.sockets / "ssh.sock"):
        guest.services = {"jupyter": {"state": "ready"}, "ssh": {"state": "failed"}, "../x": {"state": "ready"}}
        guest.let_dial(job, {"jupyter", "ssh"})
        assert os.listdir(job.dialled) == ["jupyter.sock"]
        guest._guest = socket.socketpair()[0]
        guest.services["ssh"] = {"state": "ready"}
        for _ in range(2):
            guest.let_dial(job, {"jupyter", "ssh"})
        assert sorted(os.listdir(job.dialled)) == ["guest.sock", "jupyter.sock", "ssh.sock"]


def trap(logs: Path, secret: Path) -> None:
    """A log, and what is none."""
    (logs / "a.log").write_text("it began")
    (logs / "b.log").symlink_to(secret)
    os.mkfifo(logs / "c.log")  # whoever opens it waits for a writer
    (logs / "d.log").mkdir()
    (logs / "e.log").symlink_to("/dev/zero")  # and has no end


def test_of_the_logs_only_files_are_shown(job: Job, tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("PRIVATE")
    trap(job.logs, secret)
    told = files.tails(job.logs)
    assert told.pop("a") == "it began" and set(told.values()) == {""}
    (tmp_path / "x.log").write_text("PRIVATE")
    shutil.rmtree(job.logs)
    job.logs.symlink_to(tmp_path)
    assert "PRIVATE" not in files.tails(job.logs).values()


def test_of_a_log_the_end_is_shown_and_of_many_some(job: Job) -> None:
    (job.logs / "aa.log").write_text("x" * 10_000 + "the end")
    for one, other in itertools.product(string.ascii_lowercase, repeat=2):
        (job.logs / f"{one}{other}.log").touch()
    told = files.tails(job.logs)
    assert len(told["aa"]) == 4096 and told["aa"].endswith("the end") and len(told) == 32


def test_a_log_s_name_is_a_plain_one(job: Job) -> None:
    """It goes to terminals and to the share."""
    for name in (b"\x1b]52;c;x\x07.log", b"\xff.log", b"0.log", b"jupyter.log"):
        (job.logs / os.fsdecode(name)).touch()
    assert list(files.tails(job.logs)) == ["jupyter"]


def test_no_device_is_opened(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a watchdog is to start it."""
    os.mkfifo(job.logs / "x.log")
    opened: list[str] = []
    real = os.open

    def watched(path: Any, flags: int, *rest: Any, **kind: Any) -> int:
        opened.extend([] if flags & os.O_PATH else [str(path)])
        return real(path, flags, *rest, **kind)

    monkeypatch.setattr(os, "open", watched)
    assert files.tails(job.logs) == {"x": ""} and opened == []


def test_a_socket_in_a_folder_that_may_not_be_listed(tmp_path: Path) -> None:
    """As a colleague's door is: who may go through it may not see what else is there."""
    let_in(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        folder = tmp_path / "door"
        folder.mkdir()
        listener.bind(str(folder / "s"))
        listener.listen()
        (folder / "s").chmod(0o666)
        folder.chmod(0o711)
        with nobody():
            files.connect(connection, folder / "s")


def test_what_a_container_s_root_has_left_gives_way(tmp_path: Path) -> None:
    folder = tmp_path / "boot"
    folder.mkdir()
    (folder / "log").symlink_to(tmp_path)
    for _ in range(2):
        files.own_folder(folder / "log")
        assert files.is_own(folder / "log") and len(list(folder.iterdir())) == 2


def test_of_the_logs_only_files_are_kept(box: Box, tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("PRIVATE")
    job = box.found.job(ids.ulid(1, os.urandom(10)))
    box.jobs.append(job)  # whose folder of this boot goes with it
    box.found.create(job, JobSpec(), queued=False)
    box.found.reserve(job)
    trap(job.logs, secret)
    box.found.clear(job)
    kept = {path.name: path.read_text() for path in (job.attempt(1) / "log").iterdir()}
    assert kept.pop("a.log") == "it began" and set(kept.values()) <= {""}
    assert not job.boot_folder.exists() and secret.read_text() == "PRIVATE"


def test_a_link_is_no_list_of_keys(job: Job, tmp_path: Path) -> None:
    secret, path = tmp_path / "id_ed25519", job.conf / "authorized_keys"
    secret.write_text("PRIVATE\n")
    path.symlink_to(secret)
    sessions._let_in(job, [KEY])
    assert path.is_symlink() and secret.read_text() == "PRIVATE\n"
    path.unlink()
    path.write_text(f"{KEY}1\n")
    sessions._let_in(job, [KEY])
    assert path.read_text() == f"{KEY}1\n{KEY}\n"


def test_a_layer_s_key_that_nobody_writes_is_not_waited_for(box: Box) -> None:
    job = box.found.job(ids.ulid(1, os.urandom(10)))
    box.jobs.append(job)  # whose folder of this boot goes with it
    box.found.create(job, JobSpec(), queued=False)
    box.found.mark_live(job, {})
    box.found.reserve(job)
    os.mkfifo(job.conf / "layer")
    assert stored._running(box.found) == set()
    (job.conf / "layer").unlink()
    (job.conf / "layer").write_text("k3y")
    assert stored._running(box.found) == {"k3y"}


def test_folders_in_folders_without_end_keep_no_session_from_its_end(box: Box) -> None:
    job = box.found.job(ids.ulid(1, os.urandom(10)))
    box.jobs.append(job)  # whose folder of this boot goes with it
    box.found.create(job, JobSpec(), queued=False)
    box.found.mark_live(job, {})
    box.found.reserve(job)
    (job.conf / "session.json").write_text("t0ken")
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(job.sockets)
        for _ in range(2 * sys.getrecursionlimit()):  # no path is as long
            os.mkdir("x")
            os.chdir("x")
        os.chdir(before)
        files.keep_young(job.boot_folder)
        box.found.end(job)
        assert not job.conf.exists() and not box.found.is_live(job)
    finally:
        os.chdir(before)
        os.close(before)
        subprocess.run(("rm", "-rf", str(job.boot_folder)), check=True)


def test_a_link_in_the_place_of_a_folder_has_nothing_else_kept_young(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container swaps them between two names that are looked at."""
    inside, outside = tmp_path / "boot/s", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        for name in "xy":
            (folder / name).touch()
            os.utime(folder / name, (1, 1))
    real = os.utime

    def swapping(path: Any, *words: Any, **more: Any) -> None:
        real(path, *words, **more)
        if str(path)[-1] in "xy" and not inside.is_symlink():
            inside.rename(tmp_path / "was")
            inside.symlink_to(outside)

    monkeypatch.setattr(os, "utime", swapping)
    files.keep_young(tmp_path / "boot")
    assert {path.stat().st_mtime for path in outside.iterdir()} == {1}
    assert 1 not in {path.stat().st_mtime for path in (tmp_path / "was").iterdir()}


def test_a_folder_that_is_not_there_costs_the_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    os.mkfifo(tmp_path / "boot/fifo")
    os.utime(tmp_path / "boot/fifo", (1, 1))
    files.keep_young(tmp_path / "boot.s")
    files.keep_young(tmp_path / "boot")
    assert (tmp_path / "boot/fifo").stat().st_mtime > 1
