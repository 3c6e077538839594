"""Where a rendezvous is, and by which keys it is known: what a laptop tells a host that is to dial it."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.client import state
from mlbox.client.commands import host
from mlbox.client.remote import Host
from mlbox.client.transports import fabric, openssh
from mlbox.core.reverse import Meeting
from tests.client.kit import SSHD, Sshd

KEY, OTHER = "ssh-ed25519 " + "A" * 68, "ssh-ed25519 " + "B" * 68


def via(folder: Path, config: str, known: str) -> Host:
    (folder / "known").write_text(known)
    (folder / "config").write_text(f'{config}\n  UserKnownHostsFile "{folder}/known"\n  GlobalKnownHostsFile none\n')
    return Host(openssh.make("gate", state.Config(ssh_config=str(folder / "config"))))


def test_it_is_dialled_as_ssh_does_here(tmp_path: Path) -> None:
    known = f"10.0.0.1 {KEY}\n10.0.0.2 {OTHER}\n@revoked 10.0.0.1 {OTHER}\n"
    found = host._address(via(tmp_path, "Host gate\n  HostName 10.0.0.1\n  User ada", known), "")
    keys = [KEY, f"@revoked {OTHER}"]
    assert found == {"address": "10.0.0.1", "port": 22, "user": "ada", "name": "10.0.0.1", "host_keys": keys}


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


@pytest.mark.parametrize("known", [f"another {KEY}\n", f"@revoked * {KEY}\n"])
def test_a_host_that_was_never_verified_is_no_rendezvous(tmp_path: Path, known: str) -> None:
    with pytest.raises(errors.Unreachable, match="no host key of gate is known"):
        host._address(via(tmp_path, "Host gate", known), "")


@pytest.mark.skipif(SSHD is None, reason="NO SSHD: install openssh-server to test what a certificate is good for")
@pytest.mark.parametrize(
    ("settings", "principal", "good"),
    [
        ("HostName localhost", "localhost", True),
        ("HostName 127.0.0.1\n  HostKeyAlias gate.lab", "gate.lab", True),
        ("HostName 127.0.0.1\n  HostKeyAlias gate.lab", "other.lab", False),
    ],
    ids=["address", "alias", "another's"],
)
def test_a_host_that_is_known_by_an_authority(tmp_path: Path, settings: str, principal: str, good: bool) -> None:
    """Its own keys are not: what the laptop tells is enough for who dials it, and for that host only."""
    key = tmp_path / "certified"
    _keygen("-t", "ed25519", "-N", "", "-f", str(tmp_path / "ca"))
    _keygen("-t", "ecdsa", "-N", "", "-f", str(key))
    _keygen("-s", str(tmp_path / "ca"), "-I", "gate", "-h", "-n", principal, f"{key}.pub")
    server = Sshd(tmp_path, f"HostKey {key}", f"HostCertificate {key}-cert.pub")
    try:
        assert server.ready()
        authority = " ".join((tmp_path / "ca.pub").read_text().split()[:2])
        config = f"Host gate\n  {settings}\n  Port {server.port}"
        told = host._address(via(tmp_path, config, f"@cert-authority *.lab,localhost {authority}\n"), "")
        place = Meeting.from_wire({**told, "via": "gate", "user": getpass.getuser(), "folder": "/tmp/mlbox-1"})
        (tmp_path / "carried").write_text(place.known_hosts())
        argv = (*place.dial(str(tmp_path / "id"), str(tmp_path / "carried")), "--", place.address, "true")
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == good, done.stderr
        assert good or "Host key verification failed" in done.stderr
    finally:
        server.close()


def _keygen(*words: str) -> None:
    subprocess.run(("ssh-keygen", "-q", *words), check=True, stdin=subprocess.DEVNULL, capture_output=True)


def test_nor_is_one_that_openssh_does_not_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "load", lambda: None)
    with pytest.raises(errors.Usage, match="must be dialled by OpenSSH"):
        host._address(Host(fabric.make("gate", state.Config())), "")
