"""The command that starts a session's container: decided without Docker."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.core.session import Mount, Spec
from mlbox.host import here, store
from mlbox.host.engines import Run, container, selinux
from mlbox.host.engines.docker import Docker

RUN = Run(
    session="01ARYZ6S41TSV4RRFFQ69G5FAV", name="kind-otter", image="pytorch/pytorch:2.9", user="uid",
    gpus=("GPU-1", "GPU-2"),
    argv=("/usr/bin/python3", "-I", "/run/mlbox/mlbox-host.pyz", "guest", "/run/mlbox/conf/guest.json"),
    boot_folder=Path("/tmp/mlbox-1000/q69g5fav"), folder=Path("/home/ada/mlbox"), home=Path("/share/users/ada/home"),
    mounts=(Mount("/data", "/data", True), Mount("/scratch", "/scratch")), engine_args=("--memory", "8g"),
    env={"MLBOX_SESSION": "01ARYZ6S41TSV4RRFFQ69G5FAV"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not root, as whom these tests may run: root is root inside, too."""
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setattr(os, "getuid", lambda: 1001)


def arguments(run: Run) -> tuple[str, ...]:
    return Docker(store.Store()).arguments(run)


def values(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == flag]


@pytest.mark.parametrize("user", ["uid", "root"])
@pytest.mark.parametrize("gpus", [(), ("GPU-1",)], ids=["no GPU", "one GPU"])
def test_never_more_than_a_session_needs(user: str, gpus: tuple[str, ...]) -> None:
    argv = arguments(replace(RUN, user=user, gpus=gpus))
    flags = [word.split("=")[0] for word in argv if word.startswith("-")]
    forbidden = {
        "-p", "--publish", "-P", "--publish-all", "--privileged", "--cap-add", "--device", "--pid", "--ipc", "--net",
        "--network", "--rm", "--userns", "--volumes-from",
    }  # fmt: skip
    assert not forbidden & set(flags)
    assert values(argv, "--security-opt") == ["no-new-privileges"]
    assert not any(word.split(":")[0].endswith(".sock") for word in argv)


def test_selinux_does_not_keep_it_from_the_user_s_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selinux, "SWITCH", tmp_path)
    assert values(arguments(RUN), "--security-opt") == ["no-new-privileges", "label=disable"]


def test_the_image_comes_last_with_what_it_runs() -> None:
    argv = arguments(RUN)
    at = argv.index(RUN.image)
    assert argv[:2] == ("docker", "run")
    assert argv[at - 2 : at] == ("--entrypoint", "/usr/bin/python3")
    assert argv[at + 1 :] == RUN.argv[1:]


def test_it_can_be_found_by_its_session() -> None:
    argv = arguments(RUN)
    assert f"mlbox.session={RUN.session}" in values(argv, "--label")
    assert values(argv, "--name") == ["mlbox-kind-otter-9g5fav"]
    assert values(argv, "--hostname") == ["kind-otter"]


def test_the_engine_keeps_no_second_copy_of_what_it_prints() -> None:
    assert values(arguments(RUN), "--log-driver") == ["none"]


def test_gpus_go_by_uuid() -> None:
    argv = arguments(RUN)
    assert values(argv, "--gpus") == ['"device=GPU-1,GPU-2"']
    assert "NVIDIA_VISIBLE_DEVICES=void" not in argv


def test_without_gpus_a_cuda_image_sees_none() -> None:
    argv = arguments(replace(RUN, gpus=()))
    assert values(argv, "--gpus") == []
    assert "NVIDIA_VISIBLE_DEVICES=void" in values(argv, "--env")


def test_the_user_inside_is_the_user_s_own() -> None:
    argv = arguments(RUN)
    assert values(argv, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert set(values(argv, "--group-add")) == {str(gid) for gid in os.getgroups()} - {str(os.getgid())}
    mounts = values(argv, "-v")
    assert f"/share/users/ada/home:/home/{here.user_name()}" in mounts
    assert "/tmp/mlbox-1000/q69g5fav/conf/passwd:/etc/passwd:ro" in mounts


def test_root_is_root_inside_with_the_image_s_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own in their place would lack sshd's, which a layer has added."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    argv = arguments(RUN)
    assert values(argv, "--user") == ["0:0"] and not any("/etc/passwd" in mount for mount in values(argv, "-v"))


def test_root_inside_by_choice_has_the_image_s_accounts() -> None:
    argv = arguments(replace(RUN, user="root"))
    assert values(argv, "--user") == ["0:0"]
    assert not any("passwd" in mount or "/home/" in mount.split(":")[1] for mount in values(argv, "-v"))


def test_mounts() -> None:
    mounts = values(arguments(RUN), "-v")
    assert mounts[:2] == ["/tmp/mlbox-1000/q69g5fav:/run/mlbox:ro", "/home/ada/mlbox:/workspace"]
    assert mounts[-2:] == ["/data:/data:ro", "/scratch:/scratch"]


def test_of_its_boot_folder_only_what_a_session_makes_is_writable() -> None:
    """A lock, a list of keys and a program in it are believed by the host."""
    job = store.Store().job(RUN.session)
    mounts = values(arguments(replace(RUN, boot_folder=job.boot_folder, writable=job.inside)), "-v")
    assert mounts[0] == f"{job.boot_folder}:/run/mlbox:ro"
    inside = [f"{job.boot_folder}/{name}:/run/mlbox/{name}" for name in ("s", "log", "kernels", "guest")]
    assert mounts[1:5] == inside
    assert not {job.conf, job.keeper_lock.parent} & set(job.inside)


def test_a_mount_from_the_home(home: Path) -> None:
    mounts = values(arguments(replace(RUN, mounts=(Mount("~/data", "/data"),))), "-v")
    assert mounts[-1] == f"{home}/data:/data"


def test_only_mlbox_s_own_variables_are_on_the_command_line() -> None:
    """The user's variables, which may be secrets, are in a file (conf/guest.json)."""
    assert values(arguments(RUN), "--env") == [f"MLBOX_SESSION={RUN.session}"]


@pytest.mark.parametrize(
    ("engine_args", "sizes"),
    [((), 1), (("--shm-size", "8g"), 1), (("--shm-size=8g",), 0)],
    ids=["default", "two words", "one word"],
)
def test_shared_memory_is_set_once(engine_args: tuple[str, ...], sizes: int) -> None:
    argv = arguments(replace(RUN, engine_args=engine_args))
    found = values(argv, "--shm-size")
    assert len(found) == sizes
    if not engine_args:
        assert int(found[0]) >= 64 << 20


def test_engine_arguments_are_checked_again_on_the_host() -> None:
    with pytest.raises(errors.Usage):
        arguments(replace(RUN, engine_args=("--privileged",)))
    argv = arguments(RUN)
    assert argv.index("--memory") < argv.index(RUN.image)


def test_those_of_the_lab_go_along(tmp_path: Path) -> None:
    found, given = store.Store(tmp_path), replace(RUN, engine_args=("--ipc=host",))
    with pytest.raises(errors.Usage):
        Docker(found).arguments(given)
    (tmp_path / "lab.yaml").write_text("allow: {engine_args: [--ipc]}\n")
    assert "--ipc=host" in Docker(found).arguments(given)


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("created 127 false", (None, False)),  # the engine could not start it
        ("exited 137 true", (137, True)),
        ("exited 125 false", (125, False)),
        ("running 0 false", (0, False)),  # its client was cut off
        ("", (None, False)),
    ],
)
def test_what_ended_is_told_from_what_never_ran(
    monkeypatch: pytest.MonkeyPatch, said: str, seen: tuple[int | None, bool]
) -> None:
    answers = {"ps": "c0ffee\n", "inspect": f"{said}\n"}
    monkeypatch.setattr(container, "capture", lambda argv, timeout: (0, answers[argv[1]], ""))
    assert Docker(store.Store()).ending("01ARYZ6S41TSV4RRFFQ69G5FAV") == seen


@pytest.mark.parametrize(
    "said", ["No such image: x", "invalid reference format: repository name (library/Ubuntu) must be lowercase"]
)
def test_a_name_that_no_image_can_have_is_the_job_s_own_trouble(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Else it would wait for ever for the host to be mended; a pull says what is wrong with it."""
    monkeypatch.setattr(container, "capture", lambda argv, timeout: (1, "", f"Error response from daemon: {said}"))
    assert Docker(store.Store()).identify(Spec(image="Ubuntu")) == ""
