"""The user's own SSH: whatever `ssh HOST` can do, `mlbox session HOST` can, and `ssh NAME` after it."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import homes
import pytest
from labbox import SESSION_IMAGE, SSH_CONFIG, Laptop, as_root, first_process, left_behind, ssh
from labkit.inventory import HOSTS
from terminal import Terminal, at_terminal

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
NAME = "reached"
BARE = ("--no-jupyter", "--no-vscode", "--gpus", "0")
PASSPHRASE = "open sesame"
LAB_KEY = SSH_CONFIG.parent / "id_ed25519"
VERIFIED = f"""
  UserKnownHostsFile {SSH_CONFIG.parent}/known_hosts
  StrictHostKeyChecking yes
  HostKeyAlias {HOSTS[HOST].address}
"""


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One session, which each of these laptops joins in its own way."""
    starter = Laptop(tmp_path_factory.mktemp("own") / "home")
    try:
        started = starter.run("session", HOST, "--image", SESSION_IMAGE, *BARE, "--name", NAME, "--detach")
        assert started.code == 0, started.all
        assert starter.run("tunnels", "stop", NAME).code == 0  # they would be joined: this machine is one
        yield
    finally:
        starter.run("session", "shutdown", NAME, "--host", HOST)
        starter.close()
    assert left_behind(HOST) == []


@pytest.fixture(autouse=True)
def clean_hosts() -> None:
    """The session is this file's; fixture `session` looks after it."""


def configure(laptop: Laptop, config: str) -> None:
    """The user's own configuration, with which `ssh far` works."""
    path = laptop.home / "config"
    path.write_text(config)
    laptop.env["MLBOX_SSH_CONFIG"] = str(path)
    argv = ("ssh", "-F", str(path), "-o", "BatchMode=yes", "-G", "far")
    subprocess.run(argv, env=laptop.env, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def by_name(laptop: Laptop, *options: str, name: str = NAME) -> tuple[str, ...]:
    return ("ssh", "-F", str(laptop.home / ".local/state/mlbox/ssh_config"), *options, name, "echo inside $(hostname)")


def prove(laptop: Laptop) -> None:
    """Commands, tunnels, and `ssh NAME` without a client."""
    joined = laptop.attach("session", "far", "-y")
    assert joined.block()["name"] == NAME
    assert "does not answer" not in joined.text
    assert joined.stop() == 0
    argv = by_name(laptop, "-o", "BatchMode=yes")
    done = subprocess.run(argv, env=laptop.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"inside {NAME}\n", done.stderr
    assert laptop.run("status", "far").code == 0


def make_key(path: Path, passphrase: str = "") -> str:
    """Its public half."""
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "own", "-f", str(path)), check=True)
    return path.with_name(f"{path.name}.pub").read_text().strip()


@contextmanager
def welcome(host: str, key: str) -> Iterator[None]:
    """`key` opens the account on that host for a while."""
    ssh(host, f"cp ~/.ssh/authorized_keys ~/.ssh/kept && echo {shlex.quote(key)} >>~/.ssh/authorized_keys")
    try:
        yield
    finally:
        ssh(host, "mv ~/.ssh/kept ~/.ssh/authorized_keys")


@contextmanager
def sshd_setting(host: str, lines: str) -> Iterator[None]:
    path = "/etc/ssh/sshd_config.d/own.conf"
    as_root(host, "sh", "-c", f'printf %s "$1" >{path} && sshd -t && kill -HUP $(cat /run/sshd.pid)', "set", lines)
    try:
        yield
    finally:
        as_root(host, "sh", "-c", f"rm {path}; kill -HUP $(cat /run/sshd.pid)")


# ---- the way there -----------------------------------------------------------------------------------------


def test_a_chain_of_jumps_to_a_name_that_only_the_lab_knows(laptop: Laptop) -> None:
    """`gpu2` is a name on gpu3 only; here nothing resolves it."""
    far = f"Host far\n  HostName {HOST}\n  ProxyJump gpu1,gpu3\n  User ada\n  IdentityFile {LAB_KEY}\n{VERIFIED}"
    configure(laptop, f"Include {SSH_CONFIG}\n{far}")
    prove(laptop)


def test_include_and_match(laptop: Laptop) -> None:
    (laptop.home / "more").mkdir()
    address = f"HostName {HOSTS[HOST].address}\n  IdentityFile {LAB_KEY}\n{VERIFIED}"
    (laptop.home / "more/one.conf").write_text(f'Match originalhost far exec "test %r = ada"\n  {address}')
    configure(laptop, f"Host far\n  User ada\nInclude {laptop.home}/more/*.conf\nHost *\n  User nobody\n")
    prove(laptop)


@pytest.mark.hosts("gpu2", "gpu1")
def test_a_bastion_without_a_shell(laptop: Laptop) -> None:
    """It forwards connections and does nothing else: no shell, no command, no terminal."""
    make = """useradd -m -s /usr/sbin/nologin hop && install -d -m 700 -o hop /home/hop/.ssh &&
      echo "restrict,port-forwarding $1" >/home/hop/.ssh/authorized_keys && chown -R hop /home/hop/.ssh"""
    as_root("gpu1", "sh", "-c", make, "make", LAB_KEY.with_suffix(".pub").read_text().strip())
    try:
        hop = f"Host hop\n  HostName {HOSTS['gpu1'].address}\n  User hop\n  IdentityFile {LAB_KEY}\n"
        hop += f"  UserKnownHostsFile {SSH_CONFIG.parent}/known_hosts\n"
        far = f"Host far\n  HostName {HOST}\n  ProxyJump hop\n  User ada\n  IdentityFile {LAB_KEY}\n{VERIFIED}"
        configure(laptop, hop + far)
        argv = ("ssh", "-F", laptop.env["MLBOX_SSH_CONFIG"], "-o", "BatchMode=yes", "hop", "id")
        refused = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert refused.returncode == 1 and "not available" in refused.stdout
        prove(laptop)
    finally:
        as_root("gpu1", "userdel", "-rf", "hop", check=False)


def test_ipv6(laptop: Laptop) -> None:
    """The lab's network has none, so it is a wire of its own from this machine to gpu2."""
    here, there, inside = "fd77:213::1", "fd77:213::2", str(first_process(HOST))
    wire = ("ip", "link", "add", "mbsix", "type", "veth", "peer", "name", "mbsix", "netns", inside)
    subprocess.run(wire, check=True)
    try:
        for address, words in ((here, ()), (there, ("nsenter", "-t", inside, "-n"))):
            up = (
                "sysctl -qw net.ipv6.conf.mbsix.disable_ipv6=0; ip addr add $1/64 dev mbsix nodad; ip link set mbsix up"
            )
            subprocess.run((*words, "sh", "-c", up, "up", address), check=True)
        far = f"Host far\n  HostName {there}\n  User ada\n  IdentityFile {LAB_KEY}\n{VERIFIED}"
        configure(laptop, far)
        prove(laptop)
        assert f"[{there}]:22" in as_root(HOST, "ss", "-Htn", "state", "all", "sport", "=", ":22")
    finally:
        subprocess.run(("ip", "link", "delete", "mbsix"), check=True)


def test_ipv6_behind_a_jump_host(laptop: Laptop) -> None:
    """gpu2's own loopback, behind gpu2."""
    lo = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
    switch = f"mount -o remount,bind,rw /proc/sys && echo $1 >{lo}; mount -o remount,bind,ro /proc/sys"
    as_root(HOST, "sh", "-c", switch, "switch", "0")
    try:
        far = f"Host far\n  HostName ::1\n  ProxyJump {HOST}\n  User ada\n  IdentityFile {LAB_KEY}\n{VERIFIED}"
        configure(laptop, f"Include {SSH_CONFIG}\n{far}")
        prove(laptop)
        assert "[::1]:22" in as_root(HOST, "ss", "-Htn", "state", "all", "sport", "=", ":22")
    finally:
        as_root(HOST, "sh", "-c", switch, "switch", "1")


# ---- the key -----------------------------------------------------------------------------------------------


def far_with(*lines: str) -> str:
    own = "".join(f"  {line}\n" for line in lines)
    return f"Host far\n  HostName {HOSTS[HOST].address}\n  User ada\n{own}{VERIFIED}"


def test_a_certificate(laptop: Laptop) -> None:
    """The host knows the authority alone."""
    key, authority = laptop.home / "id", laptop.home / "ca"
    make_key(key)
    public = make_key(authority)
    sign = ("ssh-keygen", "-q", "-s", str(authority), "-I", "ada", "-n", "ada", f"{key}.pub")
    subprocess.run(sign, check=True, stderr=subprocess.DEVNULL)
    as_root(HOST, "sh", "-c", 'echo "$1" >/etc/ssh/own_ca.pub', "write", public)
    with sshd_setting(HOST, "TrustedUserCAKeys /etc/ssh/own_ca.pub\n"):
        configure(laptop, far_with(f"IdentityFile {key}", f"CertificateFile {key}-cert.pub", "IdentitiesOnly yes"))
        prove(laptop)
    as_root(HOST, "rm", "/etc/ssh/own_ca.pub")


@pytest.fixture
def agent(laptop: Laptop) -> Iterator[str]:
    """A key that is in an agent and in no file; its public half."""
    key = laptop.home / "id"
    public = make_key(key)
    socket = laptop.home / "agent"
    with subprocess.Popen(("ssh-agent", "-D", "-a", str(socket)), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        laptop.env["SSH_AUTH_SOCK"] = str(socket)
        subprocess.run(("ssh-add", "-q", str(key)), env=laptop.env, check=True)
        for file in (key, Path(f"{key}.pub")):
            file.unlink()
        yield public
        process.terminate()


def test_a_key_that_only_an_agent_has(laptop: Laptop, agent: str) -> None:
    with welcome(HOST, agent):
        configure(laptop, far_with())
        prove(laptop)


def asked(terminal: Terminal, question: str) -> int:
    return len(re.findall(question, terminal.text))


def answer(terminal: Terminal, question: str, word: str, until: str, most: int) -> None:
    """Each time that it is asked, at most so often, until something else comes."""
    for _ in range(most):
        if terminal.wait_for(f"{question}|{until}")[0] in re.findall(until, terminal.text):
            return
        terminal.say(word)
    terminal.wait_for(until)


def test_a_passphrase_is_asked_for_at_the_terminal_once_per_connection(laptop: Laptop) -> None:
    key, question = laptop.home / "id", "Enter passphrase for key .*: "
    public = make_key(key, PASSPHRASE)
    with welcome(HOST, public):
        configure(laptop, far_with(f"IdentityFile {key}", "IdentitiesOnly yes"))
        with at_terminal(laptop, "session", "far", "-y") as terminal:
            answer(terminal, question, PASSPHRASE, "session is running", 2)
            terminal.wait_for(r"\[shutdown\]")
            assert asked(terminal, question) == 2  # the connection for commands, and the tunnels' own
            terminal.say("d")
            assert terminal.end() == 0
        assert laptop.run("tunnels", "stop", NAME).code == 0
        with Terminal(by_name(laptop), laptop.env) as terminal:
            answer(terminal, question, PASSPHRASE, f"inside {NAME}", 2)  # to the host, and into the session
            assert terminal.end() == 0
        with Terminal(by_name(laptop), laptop.env) as terminal:
            answer(terminal, question, PASSPHRASE, f"inside {NAME}", 1)  # the connection to the host is there
            assert terminal.end() == 0


def test_a_passphrase_is_asked_for_in_a_window(laptop: Laptop) -> None:
    key, count = laptop.home / "id", laptop.home / "asked"
    public = make_key(key, PASSPHRASE)
    window = laptop.home / "askpass"
    window.write_text(f'#!/bin/sh\necho "$1" >>{count}\necho "{PASSPHRASE}"\n')
    window.chmod(0o700)
    laptop.env.update(SSH_ASKPASS=str(window), SSH_ASKPASS_REQUIRE="force")
    with welcome(HOST, public):
        configure(laptop, far_with(f"IdentityFile {key}", "IdentitiesOnly yes"))
        joined = laptop.attach("session", "far", "-y")
        assert joined.block()["name"] == NAME
        assert joined.stop() == 0
        assert len(count.read_text().splitlines()) == 2


# ---- two factors -------------------------------------------------------------------------------------------

QUESTION = "Password: "


@pytest.fixture
def bob() -> Iterator[str]:
    """noeng as bob, whom it asks for a key, and then what PAM asks for: here his password."""
    as_root("noeng", "sh", "-c", "echo bob:second | chpasswd")
    setting = (
        "KbdInteractiveAuthentication yes\nMatch User bob\n  AuthenticationMethods publickey,keyboard-interactive\n"
    )
    try:
        with sshd_setting("noeng", setting):
            as_root("noeng", "pkill", "-KILL", "-u", "bob", check=False)  # a connection from before asks nothing
            yield "noeng-bob"
    finally:
        as_root("noeng", "pkill", "-KILL", "-u", "bob", check=False)
        as_root("noeng", "usermod", "-p", "!", "bob")
        as_root("noeng", "sh", "-c", "rm -rf /home/bob/mlbox /home/bob/.local /home/bob/.cache")


@pytest.mark.hosts("noeng")
def test_a_second_factor_is_asked_for_once_per_connection(laptop: Laptop, bob: str) -> None:
    alone = laptop.run("status", bob)
    assert alone.code == 4 and "there is nobody to answer" in alone.out, alone.all
    with at_terminal(laptop, "session", bob, "--runtime", "process", *BARE, "--name", "two-factors") as terminal:
        answer(terminal, QUESTION, "second", "session is running", 2)
        terminal.wait_for(r"\[shutdown\]")
        assert asked(terminal, QUESTION) == 2
        for questions in (1, 0):  # it has a connection of its own, which stays
            with Terminal(by_name(laptop, name="two-factors"), laptop.env) as shell:
                answer(shell, QUESTION, "second", "inside noeng", questions)
                assert shell.end() == 0 and asked(shell, QUESTION) == questions
        terminal.say("shutdown")
        terminal.wait_for("two-factors has ended")
        assert terminal.end() == 0 and asked(terminal, QUESTION) == 2


@pytest.fixture
def alone(laptop: Laptop) -> Iterator[None]:
    """No other laptop of this machine's user sees its tunnels, and after a failure none is left."""
    runtime = laptop.env["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="mb", dir="/tmp")
    yield
    laptop.run("tunnels", "stop", "--all")
    homes.remove(runtime)


@pytest.mark.hosts("noeng")
@pytest.mark.usefixtures("alone")
def test_tunnels_that_need_a_second_factor_again_say_so_and_attach_mends_them(laptop: Laptop, bob: str) -> None:
    with at_terminal(laptop, "session", bob, "--runtime", "process", *BARE, "--name", "twice") as terminal:
        answer(terminal, QUESTION, "second", "session is running", 2)
        terminal.wait_for(r"\[shutdown\]")
        assert laptop.run("port", "add", "twice", "16006:6006").code == 0
        _cut(bob)
        told = r"the login needs somebody who can be asked; at a terminal: mlbox session attach twice"
        terminal.wait_for(rf"still trying, rarely: .*Permission denied \(keyboard-interactive\).*; {told}")
        terminal.say("d")
        assert terminal.end() == 0
    [before] = owners(laptop)
    assert (before["state"], before["background"], before["barred"]) == ("reconnecting", True, True)
    assert re.search(told, laptop.run("tunnels", "list").out)
    assert re.search(told, (laptop.home / ".local/state/mlbox/tunnels.log").read_text())

    with at_terminal(laptop, "session", "attach", "twice", "--detach") as terminal:
        answer(terminal, QUESTION, "second", "session is running", 2)
        assert terminal.end() == 0
        [after] = owners(laptop)
        assert (after["state"], after["background"], after["barred"]) == ("up", True, False)
        assert after["ports"] == before["ports"] and after["pid"] != before["pid"]
        with socket.create_connection(("127.0.0.1", after["ports"]["ssh"]), timeout=60) as connection:
            assert connection.recv(4) == b"SSH-"
    with at_terminal(laptop, "session", "shutdown", "twice") as terminal:
        terminal.wait_for("twice has ended")
        assert terminal.end() == 0


def _cut(host: str) -> None:
    """All of that user's connections; not the session's own sshd, which has no sshd above it."""
    machine, user = host.split("-")
    as_root(machine, "pkill", "-KILL", "-u", user, "-f", "^sshd: ", check=False)


def owners(laptop: Laptop) -> list[Any]:
    found = laptop.run("tunnels", "list", "--json").json()
    assert isinstance(found, list)
    return found
