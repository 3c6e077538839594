"""`ssh NAME` for attached sessions: what is written, and what the real ssh makes of it."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlbox.client import ssh_config, state
from mlbox.errors import MlboxError

ID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKFGcLNm3cJkOlm3cQgvRzRjHJzI0SqGpDtE7N9kXf3d"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "my home"  # a blank, as in macOS's "Application Support"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    yield folder


def add(name: str = "kind-otter", port: int = 8022, user: str = "ada", host_key: str = KEY, session: str = ID) -> None:
    ssh_config.add(session, name, port, user, host_key, ["/keys/id one", "/keys/two"])


def resolved(*arguments: str) -> dict[str, list[str]]:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh here")
    done = subprocess.run(
        ("ssh", "-T", "-G", "-F", str(ssh_config.top()), *arguments), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def test_a_session_by_its_name(home: Path) -> None:
    add()
    found = resolved("kind-otter")
    assert (found["hostname"], found["port"], found["user"]) == (["127.0.0.1"], ["8022"], ["ada"])
    assert [alias.upper() for alias in found["hostkeyalias"]] == [f"MLBOX-{ID}"]
    assert found["stricthostkeychecking"] == ["true"]
    assert [v.strip('"') for v in found["userknownhostsfile"]] == [
        f"{home}/state/mlbox/ssh.d/kind-otter.{os.getpid()}.known_hosts"
    ]
    assert found["identityfile"][:2] == ["/keys/id one", "/keys/two"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_session_by_its_port(home: Path, host: str) -> None:
    add()
    known = f"{home}/state/mlbox/ssh.d/kind-otter.{os.getpid()}.known_hosts"
    assert [v.strip('"') for v in resolved("-p", "8022", host)["userknownhostsfile"]] == [known]
    assert known not in "".join(resolved("-p", "8023", host)["userknownhostsfile"])


def test_other_hosts_are_left_alone() -> None:
    add()
    found = resolved("gpu1")
    assert (found["hostname"], found["port"]) == (["gpu1"], ["22"])
    assert "hostkeyalias" not in found


def test_two_sessions_at_once() -> None:
    add()
    add("calm-owl", 8023, "root", session="01ARYZ6S41TSV4RRFFQ69G5FAW")
    assert (resolved("kind-otter")["port"], resolved("calm-owl")["port"]) == (["8022"], ["8023"])
    ssh_config.remove("kind-otter")
    assert resolved("kind-otter")["hostname"] == ["kind-otter"]
    assert resolved("calm-owl")["port"] == ["8023"]


def test_the_host_key_is_known_by_session_and_by_port() -> None:
    add()
    known = (state.home() / f"ssh.d/kind-otter.{os.getpid()}.known_hosts").read_text()
    assert known == f"mlbox-{ID},[localhost]:8022,[127.0.0.1]:8022 {KEY}\n"
    if shutil.which("ssh-keygen"):
        for name in (f"mlbox-{ID}", "[localhost]:8022"):
            subprocess.run(
                ("ssh-keygen", "-F", name, "-f", str(state.home() / f"ssh.d/kind-otter.{os.getpid()}.known_hosts")),
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip


def test_files_come_and_go() -> None:
    folder = state.home() / "ssh.d"
    ssh_config.remove("kind-otter")  # one that was never there
    add()
    assert sorted(p.name for p in folder.iterdir()) == [
        f"kind-otter.{os.getpid()}.conf",
        f"kind-otter.{os.getpid()}.known_hosts",
    ]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
    add(port=9000)
    assert resolved("kind-otter")["port"] == ["9000"]
    ssh_config.remove("kind-otter")
    assert list(folder.iterdir()) == []
    assert resolved("kind-otter")["hostname"] == ["kind-otter"]


@pytest.mark.parametrize(
    "how", ['Include "{top}"', '  include  "~/state/mlbox/ssh_config" other', "Include other\nInclude {top}"]
)
def test_what_to_type(home: Path, how: str) -> None:
    add()
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text("# Include " + str(ssh_config.top()) + "\n")
    assert ssh_config.words("kind-otter", 8022, "ada").startswith("ssh -F ")
    (home / ".ssh/config").write_text(how.format(top=str(ssh_config.top())) + "\n")
    short = ssh_config.words("kind-otter", 8022, "ada") == "ssh kind-otter    (or: ssh -p 8022 ada@localhost)"
    assert short == ('"' in how or " " not in str(ssh_config.top()))


def test_a_killed_client_s_entry_goes_and_another_client_s_stays() -> None:
    add()
    dead = subprocess.Popen(("true",))
    dead.wait()
    folder = state.home() / "ssh.d"
    (folder / f"kind-otter.{dead.pid}.conf").write_text("Host kind-otter\n")
    (folder / f"kind-otter.{os.getppid()}.conf").write_text("")
    add()
    ssh_config.remove("kind-otter")
    assert [p.name for p in folder.iterdir()] == [f"kind-otter.{os.getppid()}.conf"]


def test_what_to_type_can_be_typed() -> None:
    assert shlex.split(ssh_config.words("kind-otter", 8022, "ada"))[:4] == [
        "ssh",
        "-F",
        str(ssh_config.top()),
        "kind-otter",
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        {"user": "ada\n  ProxyCommand touch hacked"},
        {"host_key": f"{KEY}\n* {KEY}"},
        {"name": "x\n  ProxyCommand touch hacked\nHost y"},
        {"name": "../../../elsewhere"},
        {"name": "*"},
        {"session": f"{ID},github.com"},
    ],
    ids=["user", "host key", "name", "path", "pattern", "id"],
)
def test_a_hostile_host_s_words_are_refused(hostile: dict[str, str]) -> None:
    with pytest.raises(MlboxError):
        add(**hostile)  # type: ignore[arg-type]
    folder = state.home() / "ssh.d"
    assert not folder.exists() or list(folder.iterdir()) == []
