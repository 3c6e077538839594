"""What the guest is told: which services, on which sockets, and no secret where others could read it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mlbox.core import services
from mlbox.core.facts import Facts
from mlbox.core.session import Spec

ALL = Facts(
    python="/opt/mlbox/venv/bin/python", python_version=(3, 11), jupyter_module=True, code_server="/opt/code-server",
    sshd="/usr/sbin/sshd", sftp_server="/usr/lib/openssh/sftp-server", shell="/bin/bash", path="/opt/bin:/bin",
)  # fmt: skip
TOKENS = {"jupyter": "jupyter-t0ken", "vscode": "vscode-t0ken", "guest": "guest-k3y"}


def plan(
    spec: Spec | None = None, facts: Facts = ALL, env: dict[str, str] | None = None, login: str = "ada"
) -> services.Plan:
    return services.plan(
        spec or Spec(authorized_keys=("ssh-ed25519 AAAA a", "ssh-rsa BBBB b")), facts, session="01J0",
        login=login, run="/run/mlbox", folder="/workspace", home="/home/ada",
        prefix="/opt/mlbox", tokens=TOKENS, env=env or {},
    )  # fmt: skip


def test_everything() -> None:
    found = plan()
    assert found.services == {
        "jupyter": {"socket": "jupyter.sock", "token": "jupyter-t0ken"},
        "vscode": {"socket": "vscode.sock", "token": "vscode-t0ken", "folder": "/workspace"},
        "ssh": {"socket": "ssh.sock", "user": "ada", "folder": "/workspace"},
    }
    assert found.files["authorized_keys"] == "ssh-ed25519 AAAA a\nssh-rsa BBBB b\n"
    assert found.guest["jupyter"][:3] == ["/opt/mlbox/venv/bin/python", "-m", "jupyterlab"]
    assert found.guest["ssh"] == {"sshd": "/usr/sbin/sshd", "sftp_server": "/usr/lib/openssh/sftp-server"}
    assert found.guest["key"] == "guest-k3y"
    assert (found.guest["home"], found.guest["timeout"]) == ("/home/ada", 120)


@pytest.mark.parametrize(
    ("spec", "login", "unlocked"),
    [
        (Spec(image="x", runtime="docker", user="root"), "root", True),
        (Spec(image="x", runtime="podman"), "root", True),
        (Spec(image="x", runtime="docker"), "ada", False),
        (Spec(runtime="process"), "root", False),
    ],
    ids=["by choice", "root's own", "ada's", "no container"],
)
def test_only_a_container_s_own_root_is_unlocked(spec: Spec, login: str, unlocked: bool) -> None:
    assert ("unlock" in plan(spec, login=login).guest["ssh"]) is unlocked


def test_what_a_client_is_told() -> None:
    reached = services.reachable(plan(), "/tmp/mlbox-1000/01J0/s", None)
    assert reached["services"]["jupyter"] == {
        "socket": "/tmp/mlbox-1000/01J0/s/jupyter.sock", "token": "jupyter-t0ken",
    }  # fmt: skip
    assert (reached["guest_socket"], reached["guest_key"]) == ("/tmp/mlbox-1000/01J0/s/guest.sock", "guest-k3y")
    assert "via" not in reached
    assert services.reachable(plan(), "/s", {"via": "gpu1"})["via"] == {"via": "gpu1"}
    said = services.described(
        reached, Spec(name="kind-otter", image="i"), absent={"vscode": "no room"}, gpus=("u",), host_key="hk",
        now=5.0, limit=60,
    )  # fmt: skip
    assert said["services"]["ssh"] == {**reached["services"]["ssh"], "host_key": "hk"}
    assert "host_key" not in said["services"]["jupyter"] and "host_key" not in reached["services"]["ssh"]
    assert (said["name"], said["image"], said["gpus"], said["absent"]) == (
        "kind-otter",
        "i",
        ["u"],
        {"vscode": "no room"},
    )
    assert (said["since"], said["ends"], said["guest_key"]) == (5.0, 65.0, "guest-k3y")


def test_without_a_limit_it_has_no_end() -> None:
    reached = services.reachable(plan(), "/s", None)
    assert services.described(reached, Spec(), absent={}, gpus=(), host_key="", now=5.0, limit=0)["ends"] == 0


def test_no_token_in_any_argument_or_in_what_the_guest_prints() -> None:
    found = plan()
    for argv in (found.guest["jupyter"], found.guest["vscode"]):
        assert "t0ken" not in " ".join(argv)
    assert "t0ken" not in json.dumps(found.guest)


def test_jupyter_listens_on_its_socket_alone_with_its_token() -> None:
    config = json.loads(plan().files["jupyter_server_config.json"])
    server = config["ServerApp"]
    assert (server["sock"], server["sock_mode"], server["allow_remote_access"]) == (
        "/run/mlbox/s/jupyter.sock", "0600", False,
    )  # fmt: skip
    assert server["token"] == config["IdentityProvider"]["token"] == "jupyter-t0ken"
    assert not [word for word in plan().guest["jupyter"] if word.startswith(("--port", "--ip"))]


def test_a_jupyter_of_before_its_own_server_does_so_too() -> None:
    """As NVIDIA's images had for years."""
    found = plan(facts=replace(ALL, jupyter_classic=True))
    config = json.loads(found.files["jupyter_server_config.json"])
    server = config.pop("NotebookApp")
    assert (server["sock"], server["sock_mode"], server["token"], server["notebook_dir"]) == (
        "/run/mlbox/s/jupyter.sock", "0600", "jupyter-t0ken", "/workspace",
    )  # fmt: skip
    assert config == {"KernelManager": {"transport": "ipc"}}


def test_so_do_its_kernels_where_no_other_user_can_reach_them() -> None:
    found = plan()
    assert json.loads(found.files["jupyter_server_config.json"])["KernelManager"] == {"transport": "ipc"}
    assert found.guest["env"]["JUPYTER_RUNTIME_DIR"] == "/run/mlbox/kernels"
    longest = f"/tmp/mlbox-4294967295/01234567/kernels/kernel-{'0' * 36}-ipc-12345"
    assert len(longest) < 108  # what a socket's path may have


def test_vscode_listens_on_its_socket_alone() -> None:
    argv = plan().guest["vscode"]
    assert argv[argv.index("--socket") + 1] == "/run/mlbox/s/vscode.sock"
    assert argv[argv.index("--socket-mode") + 1] == "600"
    assert not [word for word in argv if word.startswith(("--bind-addr", "--port", "--host"))]


@pytest.mark.parametrize(
    ("spec", "facts", "expected"),
    [
        (Spec(jupyter="no"), ALL, {"vscode", "ssh"}),
        (Spec(vscode="no"), ALL, {"jupyter", "ssh"}),
        (Spec(), Facts(python="/usr/bin/python3"), set()),
        (Spec(), Facts(jupyter="/conda/bin/jupyter-lab"), {"jupyter"}),
        (Spec(), Facts(code_server="/c"), {"vscode"}),
        (Spec(), Facts(sshd="/s"), {"ssh"}),
    ],
    ids=["no jupyter", "no vscode", "nothing there", "jupyter of another python", "vscode", "ssh"],
)
def test_only_what_is_there_and_wanted(spec: Spec, facts: Facts, expected: set[str]) -> None:
    found = plan(spec, facts)
    assert set(found.services) == expected
    assert {name for name in ("jupyter", "vscode", "ssh") if found.guest[name]} == expected
    assert ("jupyter_server_config.json" in found.files) == ("jupyter" in expected)
    assert ("authorized_keys" in found.files) == ("ssh" in expected)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Spec(), False),
        (Spec(vscode_extensions=("a.b",)), True),
        (Spec(extension_files={"a.vsix": ""}), True),
    ],
    ids=["none", "named", "file"],
)
def test_extensions_of_the_layer_are_used(spec: Spec, expected: bool) -> None:
    assert ("/opt/mlbox/extensions" in plan(spec).guest["vscode"]) == expected


def test_devices_win_over_the_user_s_variables() -> None:
    spec = Spec(jupyter="no", env={"A": "1", "CUDA_VISIBLE_DEVICES": "all"})
    found = plan(spec, env={"CUDA_VISIBLE_DEVICES": "GPU-1"})
    assert found.guest["env"] == {"A": "1", "CUDA_VISIBLE_DEVICES": "GPU-1"}


def passwd(existing: str, uid: int = 1000) -> Any:
    return services.passwd(existing, "ada", uid, 1001, "/home/ada", "/bin/bash").splitlines()


MINE = "ada:x:1000:1001:ada:/home/ada:/bin/bash"


@pytest.mark.parametrize(
    ("existing", "lines"),
    [
        ("", [MINE]),
        ("root:x:0:0:root:/root:/bin/sh\n", ["root:x:0:0:root:/root:/bin/sh", MINE]),
        ("ubuntu:x:1000:1000::/home/ubuntu:/bin/sh", [MINE]),
        ("ada:x:5:5::/x:/bin/sh", [MINE]),
        ("adam:x:10000:5::/x:/bin/sh", ["adam:x:10000:5::/x:/bin/sh", MINE]),
        ("+::::::\n# odd", ["+::::::", "# odd", MINE]),
    ],
    ids=["empty", "root stays", "same uid", "same name", "similar", "odd lines"],
)
def test_passwd(existing: str, lines: list[str]) -> None:
    assert passwd(existing) == lines


def test_root_stays_root_in_passwd() -> None:
    found = services.passwd("root:x:0:0:root:/root:/bin/sh\n", "root", 0, 0, "/root", "/bin/sh")
    assert found == "root:x:0:0:root:/root:/bin/sh\n"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("", "ada:x:1001:\n"),
        ("root:x:0:\nvideo:x:44:ada\n", "root:x:0:\nvideo:x:44:ada\nada:x:1001:\n"),
        ("users:x:1001:\nada:x:9:", "ada:x:1001:\n"),
    ],
    ids=["empty", "others stay", "clashes go"],
)
def test_group(existing: str, expected: str) -> None:
    assert services.group(existing, "ada", 1001) == expected
