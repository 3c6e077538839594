"""What podman and CDI need that Docker does not: decided without podman."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlbox import errors
from mlbox.core.session import ENGINES, Spec
from mlbox.host import engines, store
from mlbox.host.engines import Run, cdi, container
from mlbox.host.engines.docker import Docker
from mlbox.host.engines.podman import Podman, forgets
from mlbox.host.handlers import session
from mlbox.host.run import Cancel, Result

SPEC = Spec(image="x", runtime="podman")
RUN = Run(
    session="01ARYZ6S41TSV4RRFFQ69G5FAV", name="kind-otter", image="pytorch/pytorch:2.9", user="uid",
    gpus=("GPU-1", "GPU-2"), argv=("/usr/bin/python3", "guest.json"), boot_folder=Path("/tmp/mlbox-1000/q69g5fav"),
    folder=Path("/home/ada/mlbox"), home=Path("/share/users/ada/home"), mounts=(), engine_args=(), env={},
)  # fmt: skip


def values(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == flag]


def podman(rootless: bool = True, runtime: str = "crun", version: str = "5.4.2", cgroups: str = "v2") -> Podman:
    made = Podman(store.Store())
    info = {
        "host": {"security": {"rootless": rootless}, "ociRuntime": {"name": runtime}, "cgroupVersion": cgroups},
        "store": {"graphRoot": "/var/lib/containers/storage"}, "version": {"Version": version},
    }  # fmt: skip
    made.ask = lambda *a, **k: (0, json.dumps(info), "") if a[0] == "info" else (0, "abc\n", "")  # type: ignore[method-assign]
    return made


@pytest.fixture(autouse=True)
def specifications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cdi"
    folder.mkdir()
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setattr(os, "getuid", lambda: 1001)  # root is root inside, too
    monkeypatch.setattr(cdi, "FOLDERS", (folder, tmp_path / "none"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (folder / "nvidia.yaml").write_text("kind: nvidia.com/gpu\ndevices:\n- name: GPU-1\n- name: GPU-2\n- name: '0'\n")
    return folder


def test_a_rootless_users_files_are_the_users_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgroups", lambda: [os.getgid()])
    own = podman().arguments(RUN)
    assert values(own, "--userns") == ["keep-id"] and values(own, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    root = podman().arguments(replace(RUN, user="root"))
    assert values(root, "--userns") == [] and values(root, "--user") == ["0:0"]


@pytest.mark.parametrize(("runtime", "groups"), [("crun", ["keep-groups"]), ("runc", [])])
def test_other_groups_where_the_runtime_can_keep_them(
    monkeypatch: pytest.MonkeyPatch, runtime: str, groups: list[str]
) -> None:
    monkeypatch.setattr(os, "getgroups", lambda: [os.getgid(), 4711])
    assert values(podman(runtime=runtime).arguments(RUN), "--group-add") == groups
    assert values(podman(rootless=False).arguments(RUN), "--group-add") == ["4711"]
    assert values(podman(rootless=False).arguments(RUN), "--userns") == []


def test_gpus_by_uuid_through_cdi() -> None:
    argv = podman().arguments(RUN)
    assert values(argv, "--device") == ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"]
    assert values(argv, "--env") == ["NVIDIA_VISIBLE_DEVICES=void"]  # not the image's own, which may say "all"
    with pytest.raises(errors.HostUnready, match="names GPU GPU-3") as caught:
        podman().arguments(replace(RUN, gpus=("GPU-1", "GPU-3")))
    assert "nvidia-ctk cdi generate" in caught.value.hint


@pytest.mark.parametrize(
    ("gpus", "answer", "flag"),
    [(("GPU-1",), '["/etc/cdi"]', "--device"), (("GPU-1",), "null", "--gpus"), (("GPU-3",), '["/etc/cdi"]', "--gpus")],
    ids=["CDI", "not read by Docker", "not named"],
)
def test_docker_takes_cdi_where_it_reads_it(gpus: tuple[str, ...], answer: str, flag: str) -> None:
    made = Docker(store.Store())
    made.ask = lambda *a, **k: (0, answer, "")  # type: ignore[method-assign]
    argv = made.arguments(replace(RUN, gpus=gpus))
    assert flag in argv and len({"--gpus", "--device"} & set(argv)) == 1


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"kind": "nvidia.com/gpu", "devices": 3}', "- [", '{"kind": "other", "devices": [{"name": "GPU-1"}]}'],
)
def test_a_specification_that_is_none_names_nothing(specifications: Path, content: str) -> None:
    (specifications / "nvidia.yaml").write_text(content)
    (specifications / "other.json").write_text(content)
    assert cdi.missing(["GPU-1"]) == ["GPU-1"]


NO_REGISTRY = 'Error: short-name "{}" did not resolve to an alias and no unqualified-search registries are defined'
NOBODY_TO_ASK = "Error: short-name resolution enforced but cannot prompt without a TTY"
DOCKERS = "docker.io/pytorch/pytorch:2.9"


@pytest.mark.parametrize(
    ("image", "said", "pulled"),
    [
        ("pytorch/pytorch:2.9", NO_REGISTRY, ["pytorch/pytorch:2.9", DOCKERS]),
        ("pytorch/pytorch:2.9", NOBODY_TO_ASK, ["pytorch/pytorch:2.9", DOCKERS]),
        ("python", NOBODY_TO_ASK, ["python", "docker.io/library/python"]),
        ("fedora", "", ["fedora"]),  # which podman knows to be elsewhere
        ("quay.io/short-name", "Error: initializing source docker://quay.io/short-name", ["quay.io/short-name"]),
    ],
)
def test_a_name_without_a_registry_is_the_same_as_docker_s(
    image: str, said: str, pulled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def stream(argv: tuple[str, ...], *_: object, **__: object) -> Result:
        tried.append(argv[-1])
        failed = said and argv[-1] == image
        return Result(125, (said.format(image),)) if failed else Result(0, ())

    monkeypatch.setattr(container, "stream", stream)
    done = podman().pull(image, lambda *_: None, Cancel())
    assert tried == pulled
    assert (done.code == 0) == (image != "quay.io/short-name")


@pytest.mark.parametrize(("version", "good"), [("3.4.4", False), ("4.0.2", False), ("4.1.0", True), ("5.4.2", True)])
def test_the_oldest_that_knows_cdi(version: str, good: bool) -> None:
    if good:
        assert podman(version=version).identify(SPEC) == "abc"
    else:
        with pytest.raises(errors.HostUnready, match=f"podman is {version} here"):
            podman(version=version).identify(SPEC)


def test_a_limit_that_would_be_ignored_is_refused() -> None:
    limited = replace(SPEC, engine_args=("--memory=1g", "--init", "--cpus", "2"))
    with pytest.raises(errors.Refused, match=r"--cpus, --memory$"):
        podman(cgroups="v1").identify(limited)
    assert podman(cgroups="v2").identify(limited) == podman(False, cgroups="v1").identify(limited) == "abc"


def test_a_runtime_folder_that_ends_with_the_login(tmp_path: Path) -> None:
    linger = tmp_path / "systemd/linger"
    assert not forgets("/run/user/1001", "ada", linger)  # no systemd
    linger.parent.mkdir()
    assert forgets("/run/user/1001", "ada", linger) and not forgets("/tmp/podman-run-1001", "ada", linger)
    linger.mkdir()
    (linger / "ada").touch()
    assert not forgets("/run/user/1001", "ada", linger)


# ---- which engine ----------------------------------------------------------------------------------------


class Fake:
    def __init__(self, error: str) -> None:
        self._error = error

    def identify(self, spec: Spec, patience: float = 0) -> str:
        if self._error:
            raise errors.HostUnready(self._error)
        return "abc"


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"docker": "", "podman": ""}, "docker"), ({"docker": "may not", "podman": ""}, "podman"),
        ({"podman": ""}, "podman"), ({"docker": "may not", "podman": "broken"}, "may not"),
        ({}, "there is no container engine on this host"),
    ],
)  # fmt: skip
def test_the_engine_that_the_host_has(monkeypatch: pytest.MonkeyPatch, there: dict[str, str], chosen: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    made: Any = lambda name, found: Fake(there[name])  # noqa: E731
    monkeypatch.setattr(engines, "by_name", made)
    for runtime in ("", "auto"):
        spec = Spec(image="x", runtime=runtime)
        if chosen in ENGINES:
            assert engines.choose(spec, store.Store()) == engines.Choice(chosen, "abc")
        else:
            with pytest.raises(errors.HostUnready, match=chosen):
                engines.choose(spec, store.Store())
    assert engines.choose(Spec(), store.Store()) == engines.Choice("process")


def test_an_engine_that_is_named_is_asked_whether_it_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    named = Spec(image="x", runtime="podman")
    monkeypatch.setattr(engines, "by_name", lambda name, found: Fake(""))
    assert engines.choose(named, store.Store()) == engines.Choice("podman", "abc")
    monkeypatch.setattr(engines, "by_name", lambda name, found: Fake("broken"))
    with pytest.raises(errors.HostUnready, match="broken"):
        engines.choose(named, store.Store())


@pytest.mark.parametrize("runtime", ["", "auto", "docker"])
def test_the_image_is_asked_once_at_a_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str) -> None:
    asked: list[str] = []

    class Counted(Fake):
        def identify(self, spec: Spec, patience: float = 0) -> str:
            asked.append(spec.image)
            return ""  # it is not here: asking again would not help

        def storage(self) -> None:
            return None

    made: Any = lambda name, found: Counted("")  # noqa: E731
    monkeypatch.setattr(engines, "by_name", made)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert session._engine(Spec(image="x", runtime=runtime), store.Store(tmp_path)) == ("docker", "")
    assert asked == ["x"]
