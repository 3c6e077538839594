"""What may be asked of a session: checked on the laptop, and again on the host."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core.session import Mount, Spec, check_engine_args, checked_mount, parse_mount
from mlbox.errors import Usage


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"name": "kind-otter"},
        {"image": "pytorch/pytorch:2.9-cuda12.8"},
        {"image": "registry.lab:5000/team/image@sha256:" + "0" * 64},
        {"image": "x", "runtime": "docker", "user": "root"},
        {"runtime": "process"},
        {
            "packages": (
                "numpy>=2,<3",
                "torch @ https://example.org/torch.whl",
                "jax[cuda12]==0.4; python_version>'3.9'",
            )
        },
        {"vscode_extensions": ("ms-python.python", "ms-toolsai.jupyter@2024.1.0")},
        {"extension_files": {"my.ext-1.0_a+b@c.vsix": ""}},
        {"jupyter_version": "4.4.10", "vscode_version": "4.108.1"},
        {"jupyter_version": "5.0.0b1"},
        {"env": {"A_1": "any\ntext ' \"", "_x": ""}},
        {"start_timeout": 5},
        {"start_timeout": 3600},
        {"engine_args": ("--shm-size=8g", "--init")},
    ],
    ids=lambda v: ",".join(v) or "nothing",
)
def test_good_specs_go_over_the_wire_and_come_back(good: dict[str, Any]) -> None:
    spec = Spec(**good)
    assert Spec.from_wire(json.loads(json.dumps(spec.to_wire()))) == spec


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"name": "Kind Otter"}, "can't be a name"),
        ({"name": "../../.ssh/config"}, "can't be a name"),
        ({"gpus": "A100:x"}, "can't be read"),
        ({"runtime": "vm"}, "runtime can't be 'vm'"),
        ({"user": "0"}, "user can't be '0'"),
        ({"jupyter": "maybe"}, "jupyter can't be"),
        ({"vscode": ""}, "vscode can't be"),
        ({"image": "--privileged"}, "not an image's name"),
        ({"image": "a b"}, "not an image's name"),
        ({"image": "a\n"}, "not an image's name"),
        ({"image": "x" * 256}, "not an image's name"),
        ({"runtime": "docker"}, "needs an image"),
        ({"runtime": "process", "image": "x"}, "takes no image"),
        ({"jupyter_version": ">=4"}, "is not a version"),
        ({"vscode_version": "4/../../x"}, "is not a version"),
        ({"vscode_version": "$(id)"}, "is not a version"),
        ({"vscode_version": "4.1@sha256:ab"}, "is not a version"),
        ({"jupyter_version": "4.1@sha256:" + "a" * 64}, "is not a version"),
        ({"env": {"A-B": ""}}, "can't be a variable's name"),
        ({"env": {"A=B": ""}}, "can't be a variable's name"),
        ({"env": {"é": ""}}, "can't be a variable's name"),
        ({"packages": ("--index-url=http://x",)}, "is not a package"),
        ({"packages": (" -r /etc/passwd",)}, "is not a package"),
        ({"packages": ("a\nb",)}, "is not a package"),
        ({"packages": ("a\r--pre",)}, "is not a package"),
        ({"packages": ("a\u2028--pre",)}, "is not a package"),
        ({"packages": ("",)}, "is not a package"),
        ({"vscode_extensions": ("python",)}, "is not an extension"),
        ({"vscode_extensions": ("a.b;id",)}, "is not an extension"),
        ({"vscode_extensions": ('a.b"$(id)',)}, "is not an extension"),
        ({"vscode_extensions": ("--force.x",)}, "is not an extension"),
        ({"extension_files": {"../x.vsix": ""}}, r"is not a \.vsix"),
        ({"extension_files": {"x.zip": ""}}, r"is not a \.vsix"),
        ({"extension_files": {"$(id).vsix": ""}}, r"is not a \.vsix"),
        ({"extension_files": {'a"b.vsix': ""}}, r"is not a \.vsix"),
        ({"extension_files": {"a b.vsix": ""}}, r"is not a \.vsix"),
        ({"extension_files": {"a\n.vsix": ""}}, r"is not a \.vsix"),
        ({"start_timeout": 4}, "5 to 3600"),
        ({"start_timeout": 3601}, "5 to 3600"),
    ],
    ids=lambda v: repr(v)[:40] if isinstance(v, dict) else "",
)
def test_bad_specs_are_usage_errors(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(Usage, match=words):
        Spec(**bad)
    with pytest.raises(Usage, match=words):
        Spec.from_wire(json.loads(json.dumps(bad)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unknown", 1),
        ("__class__", "x"),
        *((f.name, value) for f in fields(Spec) for value in (None, 1.5, True, {"a": 1}, [1])),
        ("start_timeout", "60"),
        ("name", 5),
        ("name", ["a"]),
        ("packages", "numpy"),
        ("env", ["A=b"]),
        ("env", {"A": 1}),
        ("mounts", {"source": "/a", "target": "/b"}),
        ("mounts", ["/a:/b"]),
        ("mounts", [{"source": "/a"}]),
        ("mounts", [{"source": "/a", "target": 5}]),
        ("mounts", [{"source": "/a", "target": "/b", "propagation": "shared"}]),
        ("mounts", [{"source": "/a", "target": "/etc"}]),
    ],
    ids=repr,
)
def test_the_wire_is_not_trusted(name: str, value: Any) -> None:
    with pytest.raises(Usage):
        Spec.from_wire({name: value})


def test_no_nul_in_a_variable() -> None:
    with pytest.raises(Usage):
        Spec(env={"A": "x\0y"})


# ---- mounts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "mount"),
    [
        ("/data:/data", Mount("/data", "/data")),
        ("/data:/data:ro", Mount("/data", "/data", True)),
        ("/data:/data:rw", Mount("/data", "/data")),
        ("~/data:/mnt/data", Mount("~/data", "/mnt/data")),
        ("/a b:/c d", Mount("/a b", "/c d")),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_mounts(value: str, mount: Mount) -> None:
    assert parse_mount(value) == mount


@pytest.mark.parametrize(
    "value",
    ["", "/data", "/data:", ":/data", "data:/data", "./data:/data", "~ada/x:/x", "/a:b", "/a:/b:z", "/a:/b:ro,z",
     "/a:/b:ro:x", "/a:/", "/a://", "/a:/etc", "/a:/etc/", "/a:/x/../etc", "/a://etc", "/a:/etc/passwd",
     "/a:/run/mlbox",
     "/a://run/mlbox", "/a:/opt/mlbox", "/a:/workspace", "/a:/proc", "/a:/sys", "/a:/dev", "/a,b:/c", "/a:/c,ro=no",
     "/a\n:/c"],
    ids=repr,
)  # fmt: skip
def test_bad_mounts(value: str) -> None:
    with pytest.raises(Usage):
        parse_mount(value)


@pytest.mark.parametrize("mount", [Mount("/a:b", "/c"), Mount("/a", "/b:ro")], ids=str)
def test_no_colon_in_a_mount(mount: Mount) -> None:
    with pytest.raises(Usage):
        checked_mount(mount)


# ---- engine arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["", "--shm-size=8g", "--shm-size 8g", "--init", "--init --memory 4g --read-only", "--ulimit memlock=-1",
     "--network none", "--network=bridge", "--oom-score-adj -500", "--label a=b=c", "--init=true"],
    ids=repr,
)  # fmt: skip
def test_safe_engine_arguments(line: str) -> None:
    check_engine_args(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "--privileged", "--privileged=true", "-v /:/host", "-v=/:/host", "-v/:/host", "--volume /:/host",
        "--volume=/:/host", "--mount type=bind,source=/,target=/host", "--network host", "--network=host",
        "--network=container:x", "--network name=host", "--network=name=host", "--network ''", "--net host",
        "--net=host", "--security-opt seccomp=unconfined", "--security-opt=seccomp=unconfined", "--cap-add SYS_ADMIN",
        "--cap-add=ALL", "--pid=host", "--pid host", "--ipc=host", "--uts=host", "--userns=host", "--cgroupns=host",
        "--device /dev/sda", "--device=/dev/kmsg", "--gpus all", "--user 0", "-u 0", "--group-add 0", "-e A=b",
        "--env-file /etc/shadow", "-p 80:80", "--publish-all", "-P", "--entrypoint /bin/sh", "--volumes-from x",
        "--runtime runc", "--add-host=a:b --privileged", "--shm-size=1g --privileged", "--shm-size 1g --privileged",
        "--init --privileged", "--init=true --privileged", "--read-only -v /:/host", "--", "-- --privileged", "''",
        "alpine", "--init alpine", "-it", "-d", "--rm", "--PRIVILEGED", "--privileged --init", " --privileged",
        "--shm-size=1g '--shm-size 1g --privileged'", "-", "—privileged",
    ],
    ids=repr,
)  # fmt: skip
def test_other_engine_arguments_are_refused(line: str) -> None:
    with pytest.raises(Usage, match="not allowed"):
        check_engine_args(shlex.split(line))


@pytest.mark.parametrize("line", ["--memory", "--init --memory", "--network"])
def test_a_missing_value_is_noticed(line: str) -> None:
    """Else the engine would take what follows (the image's name) for it."""
    with pytest.raises(Usage, match="needs a value"):
        check_engine_args(shlex.split(line))


def test_a_value_is_not_taken_for_a_flag() -> None:
    """docker reads the word after --memory as its value whatever it looks like, and so does the check."""
    check_engine_args(["--memory", "--privileged"])
    with pytest.raises(Usage, match="not allowed"):
        check_engine_args(["--memory", "--init", "--privileged"])


def test_a_lab_may_allow_more() -> None:
    check_engine_args(["--device=/dev/fuse"], allowed=["--device"])
    with pytest.raises(Usage) as caught:
        check_engine_args(["--privileged"], allowed=["--device"])
    assert "--device" in caught.value.hint


def test_what_a_lab_allows_hides_nothing() -> None:
    with pytest.raises(Usage, match="not allowed"):
        check_engine_args(["--sig-proxy", "--privileged"], allowed=["--sig-proxy"])


@pytest.mark.parametrize("line", ["--label mlbox.session=x", "--label=mlbox.session"])
def test_mlbox_own_labels_are_its_own(line: str) -> None:
    with pytest.raises(Usage):
        check_engine_args(shlex.split(line))


@given(
    st.lists(st.sampled_from(["--init", "--privileged", "--memory", "--memory=1g", "1g", "-v", "--network", "host"]))
)
def test_what_passes_gives_docker_only_safe_flags(words: list[str]) -> None:
    """Read the words as docker does: a flag, then its value where it has none of its own."""
    try:
        check_engine_args(words)
    except Usage:
        return
    rest = iter(words)
    for word in rest:
        assert word in ("--init", "--memory", "--memory=1g", "--network")
        if word in ("--memory", "--network"):
            value = next(rest)
            assert word != "--network" or value != "host"
