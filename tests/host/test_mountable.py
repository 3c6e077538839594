"""What a session may be given of the host: never a hold on it. And a new session among calls of its owner's."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from users import let_in, nobody

from mlbox import errors
from mlbox.core.gpu import Holder
from mlbox.core.session import Mount, Spec
from mlbox.host import lease, mountable, sweep
from mlbox.host.handlers import session
from mlbox.host.store import Store


@pytest.mark.parametrize("write", [False, True], ids=["ro", "rw"])
@pytest.mark.parametrize(
    "path",
    ["/", "//", "/etc", "/etc/", "/usr/../etc", "/dev", "/dev/null", "/proc", "/proc/1", "/sys", "/sys/kernel", "/run",
     "/run/docker.sock", "/var/run/docker.sock", "/run/user/1000/docker.sock", "/run/containerd/containerd.sock",
     "/run/podman/podman.sock", "/var", "/boot"],
)  # fmt: skip
def test_the_host_s_own_is_refused(path: str, write: bool) -> None:
    with pytest.raises(errors.Refused, match="may not be mounted"):
        mountable.allowed(Path(path), write)


def _to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    "prepare",
    [_to("/run/docker.sock"), _to("/etc"), _to("/"), _to("/proc/self"), lambda path: path.symlink_to("/var/run")],
    ids=["docker.sock", "etc", "root", "proc", "var run"],
)
def test_links_are_followed_first(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    prepare(tmp_path / "innocent")
    with pytest.raises(errors.Refused, match="may not be mounted"):
        mountable.allowed(tmp_path / "innocent", write=False)


def test_a_link_to_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("/etc")
    with pytest.raises(errors.Refused, match="may not be mounted"):
        mountable.allowed(tmp_path / "a", write=False)


@pytest.mark.parametrize("name", ["docker.sock", "docker"])
def test_sockets_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(home)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        with pytest.raises(errors.Refused, match="may not be mounted"):
            mountable.allowed(home / name, write=False)


def test_folders_and_files_of_the_user_s_are_fine(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        mountable.allowed(path, write=True)


@pytest.mark.parametrize(
    ("mode", "write", "words"),
    [(0o000, False, "may not read"), (0o555, True, "may not write to"), (0o000, True, "may not write to")],
    ids=["unreadable", "read-only", "nothing"],
)
def test_what_the_user_may_not_reach_is_refused(tmp_path: Path, mode: int, write: bool, words: str) -> None:
    let_in(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    with nobody(), pytest.raises(errors.Refused, match=words) as caught:
        mountable.allowed(tmp_path / "a", write)
    assert ("add :ro" in caught.value.hint) == write
    (tmp_path / "a").chmod(0o777)
    with nobody():
        mountable.allowed(tmp_path / "a", write)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(user_folder="~/nowhere"), "there is no folder"),
        (Spec(user_folder="~/file"), "there is no folder"),
        (Spec(user_folder="/etc"), "may not be mounted"),
        (Spec(mounts=(Mount("~/nowhere", "/a"),)), "there is no"),
        (Spec(mounts=(Mount("~/ok", "/a"), Mount("/var/run", "/b"))), "may not be mounted"),
        (Spec(mounts=(Mount("~/../../../../../../../etc", "/a", True),)), "may not be mounted"),
    ],
    ids=["no folder", "a file", "etc as folder", "no mount", "second mount", "up from home"],
)
def test_folders_of_a_spec(home: Path, spec: Spec, words: str) -> None:
    (home / "ok").mkdir()
    (home / "file").write_text("")
    with pytest.raises(errors.Refused, match=words):
        mountable.check(spec)


def test_good_folders_of_a_spec(home: Path) -> None:
    (home / "ok").mkdir()
    mountable.check(Spec(user_folder="~/ok", mounts=(Mount("~/ok", "/a"),)))


def test_a_session_that_is_being_made_is_left_alone(home: Path) -> None:
    found = Store()
    held = lease.take(["GPU-a"], Holder("ada"))
    assert held is not None
    job, keeper_lock = session._create(found, Spec(name="kind-otter", runtime="process"), held)
    try:
        sweep.sweep(found)
        assert job.state().live
    finally:
        os.close(keeper_lock)
        lease.drop(held)
        found.forget(job)
