"""Where a rendezvous is, and by which keys it is known: what a laptop tells a host that is to dial it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.client import state
from mlbox.client.commands import host
from mlbox.client.remote import Host
from mlbox.client.transports import fabric, openssh

KEY, OTHER = "ssh-ed25519 " + "A" * 68, "ssh-ed25519 " + "B" * 68


def via(folder: Path, config: str, known: str) -> Host:
    (folder / "known").write_text(known)
    (folder / "config").write_text(f'{config}\n  UserKnownHostsFile "{folder}/known"\n  GlobalKnownHostsFile none\n')
    return Host(openssh.make("gate", state.Config(ssh_config=str(folder / "config"))))


def test_it_is_dialled_as_ssh_does_here(tmp_path: Path) -> None:
    known = f"10.0.0.1 {KEY}\n10.0.0.2 {OTHER}\n@revoked 10.0.0.1 {OTHER}\n"
    found = host._address(via(tmp_path, "Host gate\n  HostName 10.0.0.1\n  User ada", known), "")
    assert found == {"address": "10.0.0.1", "port": 22, "user": "ada", "host_keys": [KEY]}


@pytest.mark.parametrize("config", ["Host gate\n  HostName gate.lab\n  Port 2222", "Host gate\n  HostKeyAlias g"])
def test_hashed_names_ports_and_aliases(tmp_path: Path, config: str) -> None:
    made = via(tmp_path, config, f"[gate.lab]:2222,g {KEY}\n")
    subprocess.run(("ssh-keygen", "-q", "-H", "-f", str(tmp_path / "known")), check=True, capture_output=True)
    assert "gate" not in (tmp_path / "known").read_text()
    assert host._address(made, "")["host_keys"] == [KEY]


@pytest.mark.parametrize(
    ("said", "address", "port"),
    [
        ("inner.lab", "inner.lab", 22), ("inner.lab:2200", "inner.lab", 2200), ("10.0.0.9", "10.0.0.9", 22),
        ("2001:db8::5", "2001:db8::5", 22), ("[::1]:2200", "::1", 2200), ("[fe80::1%eth0]", "fe80::1%eth0", 22),
    ],
)  # fmt: skip
def test_it_may_have_another_address_there(tmp_path: Path, said: str, address: str, port: int) -> None:
    found = host._address(via(tmp_path, "Host gate\n  User ada", f"gate {KEY}\n"), said)
    assert (found["address"], found["port"], found["user"]) == (address, port, "ada")


@pytest.mark.parametrize("said", ["inner:ssh", "inner:", ":22", "inner:70000", "[::1", "[::1]22", "[::1]:", "[]:22"])
def test_what_is_no_address(said: str) -> None:
    with pytest.raises(errors.Usage, match="is no address"):
        host._split(said)


def test_a_host_that_was_never_verified_is_no_rendezvous(tmp_path: Path) -> None:
    with pytest.raises(errors.Unreachable, match="no host key of gate is known"):
        host._address(via(tmp_path, "Host gate", f"another {KEY}\n"), "")


def test_nor_is_one_that_openssh_does_not_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "load", lambda: None)
    with pytest.raises(errors.Usage, match="must be dialled by OpenSSH"):
        host._address(Host(fabric.make("gate", state.Config())), "")
