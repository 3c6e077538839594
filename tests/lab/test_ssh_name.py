"""`ssh NAME` without an attached client: all that speaks SSH, after a killed client, and to a session that moved."""

from __future__ import annotations

import filecmp
import hashlib
import io
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
import pytest
from labbox import SESSION_IMAGE, Laptop, as_root, left_behind, ssh
from outage import await_share, without_network
from terminal import at_terminal

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
BARE = ("--image", SESSION_IMAGE, "--no-jupyter", "--no-vscode")
LARGE = 1024  # MiB


def awaited(look: Callable[[], Any], patience: float = 120) -> Any:
    """What `look` finds in the end. Another host's work has no event here, so it is looked for."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.2)
    return found


class Shell:
    """What a person types on that laptop, after the one line was put into ~/.ssh/config."""

    def __init__(self, laptop: Laptop) -> None:
        self.laptop = laptop
        self.config = str(laptop.home / ".ssh/config")
        assert laptop.run("ssh-config", "install").code == 0
        ssh_command = f"ssh -F {self.config} -o BatchMode=yes"  # ssh looks in the account's home, not in $HOME
        self.env = {**laptop.env, "GIT_SSH_COMMAND": ssh_command, "RSYNC_RSH": ssh_command}

    def run(self, *argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        program, *rest = argv
        options = ["-F", self.config, "-o", "BatchMode=yes"] if program in ("ssh", "scp", "sftp") else []
        words = [program, *options, *rest]
        return subprocess.run(
            words, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    def said(self, *argv: str, timeout: float = 120) -> str:
        done = self.run(*argv, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@dataclass(frozen=True)
class One:
    shell: Shell
    id: str
    name: str

    @property
    def entry(self) -> Path:
        return self.shell.laptop.home / f".local/state/mlbox/ssh.d/{self.id}.conf"


@pytest.fixture(scope="class")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[One]:
    laptop = Laptop(tmp_path_factory.mktemp("named") / "home")
    try:
        started = laptop.run("session", HOST, *BARE, "--gpus", "0", "--name", "by-name", "--detach", "--json").json()
        assert isinstance(started, dict)
        assert laptop.run("tunnels", "stop", "by-name").code == 0
        yield One(Shell(laptop), started["id"], "by-name")
    finally:
        laptop.run("session", "shutdown", "by-name", "--host", HOST)
        laptop.close()
        ssh(HOST, "rm -rf ~/mlbox/travelled ~/mlbox/many ~/mlbox/large ~/mlbox/repo.git")
    assert left_behind(HOST) == []


class TestWithoutAClient:
    @pytest.fixture(autouse=True)
    def clean_hosts(self) -> None:
        """Not between these tests: fixture `one` ends the session and looks after it."""

    def test_ssh(self, one: One) -> None:
        assert one.shell.said("ssh", one.name, "hostname; id -un; pwd").split() == ["by-name", "ada", "/workspace"]
        assert one.shell.run("ssh", one.name, "exit 7").returncode == 7
        assert one.shell.said("ssh", f"mlbox-{one.name}", "echo $MLBOX_SESSION") in ("", one.id)

    def test_mlbox_ssh_from_a_laptop_that_has_not_seen_it(self, one: One, tmp_path: Path) -> None:
        """And has no line in its SSH configuration. ssh's options and exit code pass through."""
        other = Laptop(tmp_path / "other")
        try:
            found = other.run("ssh", "--host", HOST, one.name, "id -un; cat", input="typed\n")
            assert (found.code, found.out) == (0, "ada\ntyped\n"), found.err
            again = other.run("ssh", one.id, "-o", "BatchMode=yes", "--", "exit", "7")
            assert (again.code, again.out) == (7, "")
            assert "looking for" in found.err and "looking for" not in again.err
            missed = other.run("ssh", "by-nane")
            assert missed.code == 6 and "did you mean by-name?" in missed.err
        finally:
            other.close()

    @pytest.mark.parametrize("program", ["scp", "sftp"])
    def test_files_travel_both_ways(self, one: One, tmp_path: Path, program: str) -> None:
        content = os.urandom(300_000)
        (tmp_path / "up").write_bytes(content)
        if program == "scp":
            one.shell.said("scp", str(tmp_path / "up"), f"{one.name}:/workspace/travelled")
            one.shell.said("scp", f"{one.name}:/workspace/travelled", str(tmp_path / "down"))
        else:
            batch = tmp_path / "batch"
            batch.write_text(f"put {tmp_path}/up /workspace/travelled\nget /workspace/travelled {tmp_path}/down\n")
            one.shell.said("sftp", "-b", str(batch), one.name)
        assert (tmp_path / "down").read_bytes() == content

    def test_rsync_of_ten_thousand_small_files(self, one: One, tmp_path: Path) -> None:
        many, back = tmp_path / "many", tmp_path / "back"
        for number in range(10_000):
            folder = many / f"{number % 100:02}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}").write_text(f"{number}\n" * (number % 7))
        one.shell.said("rsync", "-a", f"{many}/", f"{one.name}:/workspace/many/", timeout=300)
        assert one.shell.said("ssh", one.name, "find /workspace/many -type f | wc -l") == "10000"
        one.shell.said("rsync", "-a", f"{one.name}:/workspace/many/", f"{back}/", timeout=300)
        for folder in many.iterdir():
            names = os.listdir(folder)
            assert filecmp.cmpfiles(folder, back / folder.name, names, shallow=False)[1:] == ([], [])

    def test_rsync_of_a_large_file(self, one: One, tmp_path: Path) -> None:
        digest, large, random = hashlib.sha256(), tmp_path / "large", os.urandom((1 << 20) - 8)
        with large.open("wb") as file:
            for number in range(LARGE):
                block = number.to_bytes(8, "big") + random
                digest.update(block)
                file.write(block)
        before = time.monotonic()
        one.shell.said("rsync", "-W", str(large), f"{one.name}:/workspace/large", timeout=600)
        print(f"{LARGE} MiB by rsync: {LARGE / (time.monotonic() - before):.0f} MiB/s")
        large.unlink()
        assert one.shell.said("ssh", one.name, "sha256sum /workspace/large").split()[0] == digest.hexdigest()

    def test_git_clones_and_pushes(self, one: One, tmp_path: Path) -> None:
        one.shell.said("ssh", one.name, "git init -q --bare /workspace/repo.git")
        work, again = tmp_path / "work", tmp_path / "again"
        url = f"{one.name}:/workspace/repo.git"
        one.shell.said("git", "clone", "-q", url, str(work))
        (work / "train.py").write_text("print(1)\n")
        person = ("-c", "user.name=ada", "-c", "user.email=ada@lab")
        one.shell.said("git", "-C", str(work), "add", ".")
        one.shell.said("git", "-C", str(work), *person, "commit", "-qm", "first")
        one.shell.said("git", "-C", str(work), "push", "-q", "origin", "HEAD:main")
        one.shell.said("git", "clone", "-q", "-b", "main", url, str(again))
        assert (again / "train.py").read_text() == "print(1)\n"

    def test_as_it_is_typed(self, one: One, tmp_path: Path) -> None:
        """By the account's ~/.ssh/config: its home is this laptop's here. Without the line the name means nothing."""
        me, accounts = pwd.getpwuid(os.getuid()), Path("/etc/passwd").read_text()
        own, line = next((line.split(":"), line) for line in accounts.splitlines() if line.startswith(f"{me.pw_name}:"))
        own[5] = str(one.shell.laptop.home)
        (tmp_path / "passwd").write_text(accounts.replace(line, ":".join(own)))
        (tmp_path / "up").write_text("up\n")
        one.shell.said("ssh", one.name, "git init -q --bare /workspace/typed.git")

        def typed(command: str) -> subprocess.CompletedProcess[str]:
            words = 'cd "$1" && mount --bind passwd /etc/passwd && eval "$2"'
            argv = ("unshare", "--mount", "--propagation", "private", "sh", "-c", words, "sh", tmp_path, command)
            return subprocess.run(
                argv, env=one.shell.laptop.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
            )

        for command, said in (
            (f"ssh {one.name} hostname", "by-name\n"),
            (f"scp -q up {one.name}:/workspace/travelled && ssh {one.name} cat /workspace/travelled", "up\n"),
            (f"rsync -a {one.name}:/workspace/travelled down && cat down", "up\n"),
            (f"echo ls /workspace/travelled | sftp -q -b - {one.name} | tail -1 | xargs", "/workspace/travelled\n"),
            (f"git clone -q {one.name}:/workspace/typed.git 2>&1 && ls typed/.git/HEAD", "typed/.git/HEAD\n"),
        ):
            done = typed(command)
            assert done.returncode == 0 and done.stdout.endswith(said), (command, done)
        assert one.shell.laptop.run("ssh-config", "remove").code == 0
        try:
            assert typed(f"ssh {one.name} hostname").returncode == 255
        finally:
            assert one.shell.laptop.run("ssh-config", "install").code == 0
        one.shell.said("ssh", one.name, "rm -rf /workspace/typed.git")

    def test_as_vs_code_s_remote_uses_it(self, one: One, tmp_path: Path) -> None:
        """A script on a shell's input, a SOCKS port that leads inside, and a socket of the session's here."""
        serve = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
        serve += "s.accept()[0].sendall(b'inside')"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ways = ("-D", f"127.0.0.1:{port}", "-L", f"{tmp_path}/s:/run/mlbox/s/guest.sock")
        argv = ["ssh", "-F", one.shell.config, "-T", "-o", "ExitOnForwardFailure=yes", *ways, one.name, "bash"]
        with subprocess.Popen(argv, env=one.shell.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f'echo "$PWD"; python3 -c "{serve}"; exit 3\n'.encode())
            process.stdin.flush()
            assert process.stdout.readline() == b"/workspace\n"
            inside = int(process.stdout.readline())
            with socket.socket(socket.AF_UNIX) as guest:
                guest.settimeout(30)
                guest.connect(f"{tmp_path}/s")
                guest.sendall(b'{"op": "ping"}\n')
                assert b'"ok": true' in guest.recv(4096)
            with socket.create_connection(("127.0.0.1", port), 30) as socks:
                socks.sendall(b"\5\1\0")
                assert socks.recv(2) == b"\5\0"
                socks.sendall(b"\5\1\0\1\x7f\0\0\1" + inside.to_bytes(2, "big"))
                assert socks.recv(10)[:2] == b"\5\0"
                assert socks.recv(6) == b"inside"
            assert process.wait(30) == 3

    def test_a_client_that_is_no_openssh(self, one: One) -> None:
        """As an IDE does that brings its own: it reads the entry, and runs the ProxyCommand on pipes."""
        with open(one.shell.config) as lines:
            assert "Include" in lines.read()
        entry = paramiko.SSHConfig.from_path(str(one.entry)).lookup(one.name)
        client = paramiko.SSHClient()
        client.load_host_keys(entry["userknownhostsfile"])  # and no policy that would take another key
        way = paramiko.ProxyCommand(entry["proxycommand"])
        try:
            client.connect(
                entry["hostkeyalias"], username=entry["user"], key_filename=entry["identityfile"], sock=way,
                allow_agent=False, look_for_keys=False, timeout=60,
            )  # fmt: skip
            _, said, _ = client.exec_command("cat /etc/hostname; exit 7")
            assert said.read() == b"by-name\n" and said.channel.recv_exit_status() == 7
            content = os.urandom(300_000)
            with client.open_sftp() as files:
                files.putfo(io.BytesIO(content), "/workspace/travelled")
                with files.open("/workspace/travelled") as back:
                    assert back.read() == content
        finally:
            client.close()
            way.close()

    def test_many_at_once_share_one_connection(self, one: One) -> None:
        """More than an sshd's ten sessions per connection."""
        argv = ["ssh", "-F", one.shell.config, "-o", "BatchMode=yes", one.name, "read -r line; echo $line"]
        started = [
            subprocess.Popen(argv, env=one.shell.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(14)
        ]
        assert [process.communicate(f"{number}\n", timeout=120)[0] for number, process in enumerate(started)] == [
            f"{number}\n" for number in range(14)
        ]

    def test_the_key_is_the_sessions_and_verified(self, one: One, tmp_path: Path) -> None:
        known = one.entry.with_suffix(".known_hosts")
        kept = known.read_text()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
        try:
            known.write_text(f"{kept.split()[0]} {(tmp_path / 'other.pub').read_text()}")
            done = one.shell.run("ssh", one.name, "true")
            assert done.returncode == 255 and "Host key verification failed" in done.stderr
        finally:
            known.write_text(kept)
        inside = one.shell.said("ssh", one.name, "cat /run/mlbox/guest/ssh_host_ed25519_key.pub")
        assert kept.split()[1:] == inside.split()[:2]

    def test_after_its_client_was_killed(self, one: One) -> None:
        client = one.shell.laptop.attach("session", "attach", one.name)
        client.block()
        client.stop(signal.SIGKILL)
        assert one.shell.said("ssh", one.name, "echo still") == "still"

    def test_a_cut_connection_is_dialled_anew(self, one: One) -> None:
        as_root(HOST, "sh", "-c", "pkill -KILL -u ada -x sshd || true")
        assert awaited(lambda: one.shell.run("ssh", one.name, "echo back").stdout) == "back\n"

    def test_show_says_what_there_is(self, one: One) -> None:
        found = one.shell.laptop.run("ssh-config", "show", "--json").json()
        assert isinstance(found, dict)
        assert found["included"] and [s["names"][:2] for s in found["sessions"]] == [["by-name", "mlbox-by-name"]]

    def test_an_entry_goes_with_the_command_that_learns_of_the_end(self, one: One, tmp_path: Path) -> None:
        other = Laptop(tmp_path / "other")
        assert other.run("session", "shutdown", one.id, "--host", HOST).code == 0
        assert one.entry.exists()
        done = one.shell.run("ssh", one.name, "true")
        assert done.returncode == 255 and "the session has ended: shut down" in done.stderr
        assert "Traceback" not in done.stderr
        assert not one.entry.exists()


def test_a_session_named_like_a_host_is_said(laptop: Laptop) -> None:
    shell = Shell(laptop)
    with Path(shell.config).open("a") as file:
        file.write("Host my-box\n  HostName 192.0.2.1\n")
    started = laptop.run("session", HOST, *BARE, "--gpus", "0", "--name", "my-box", "--detach")
    assert "my-box means something else to ssh here already; the session is mlbox-my-box" in started.err
    assert re.search(r"^SSH: +ssh -F \S+ mlbox-my-box ", started.out, re.M)  # HOME is not the account's here
    assert shell.said("ssh", "mlbox-my-box", "hostname") == "my-box"
    assert "hostname 192.0.2.1" in shell.said("ssh", "-G", "my-box")
    assert laptop.sessions(HOST) and laptop.run("session", "shutdown", "my-box").code == 0
    assert "my-box" not in laptop.run("ssh-config", "show").out


def test_the_line_is_asked_for_at_a_terminal_and_no_is_remembered(laptop: Laptop) -> None:
    (laptop.home / ".local/state/mlbox/asked.json").unlink()
    words = ("session", HOST, *BARE, "--gpus", "0", "--name", "asked", "--detach")
    with at_terminal(laptop, *words) as terminal:
        terminal.wait_for(r"^\+Include ~/\.local/state/mlbox/ssh_config", 180)
        terminal.wait_for(r"add it\?")
        terminal.say("n")
        terminal.wait_for(r"SSH: +ssh -F \S+ asked")
        assert terminal.end() == 0
    assert not (laptop.home / ".ssh/config").exists()
    with at_terminal(laptop, "session", HOST, "--detach", "--yes") as terminal:
        terminal.wait_for(r"SSH: +ssh -F \S+ asked", 180)
        assert terminal.end() == 0 and "add it" not in terminal.text
    assert not (laptop.home / ".ssh/config").exists()


@pytest.fixture
def lab(laptop: Laptop) -> Iterator[Laptop]:
    """A laptop of a lab of two hosts, with a ROOT of its own on the share."""
    root = "/share/lab-ssh-name"
    as_root("gpu1", "rm", "-rf", root)
    config = laptop.home / ".config/mlbox/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'hosts = ["gpu1", "gpu2"]\nroot = "{root}"\n')
    assert laptop.run("init", "gpu1", "gpu2").code == 0
    yield laptop
    for session in laptop.sessions("gpu1", "gpu2"):
        laptop.run("session", "shutdown", str(session["id"]))
    await_share("gpu1")
    as_root("gpu1", "rm", "-rf", root)


_LOSE = """
pkill -KILL -u ada -f mlbox; docker ps -aq --filter label=mlbox.session=$1 | xargs -r docker rm -f
rm -rf /tmp/mlbox-1001/$2 /tmp/mlbox-1001/$2.*
true
"""


def tunnels(laptop: Laptop) -> dict[str, Any]:
    found = laptop.run("tunnels", "list", "--json").json()
    assert isinstance(found, list)
    [only] = found
    return dict(only)


@pytest.mark.hosts("gpu1", "gpu2")
def test_a_session_that_moved_to_another_host(lab: Laptop) -> None:
    """Its host is lost and fenced; it starts again on another, and the same `ssh NAME` finds it there. Its tunnels in
    the background follow on the same ports, and who attaches joins them."""
    shell = Shell(lab)
    lab.run("host", "drain", "gpu2")
    words = ("session", "--queue", "default", *BARE, "--gpus", "1", "--name", "nomad", "--detach", "--json")
    session = lab.run(*words).json()
    assert isinstance(session, dict)
    assert session["host"] == "gpu1" and shell.said("ssh", "nomad", "hostname") == "nomad"
    place = lab.home / f".local/state/mlbox/ssh.d/{session['id']}.json"
    known = place.with_suffix(".known_hosts")
    first, before = known.read_text(), tunnels(lab)
    assert (before["host"], before["state"], before["background"]) == ("gpu1", "up", True)
    assert json.loads(place.read_text())["host"] == "gpu1"
    with without_network("gpu1"):
        as_root("gpu1", "sh", "-c", _LOSE, "lose", session["id"], session["id"][-8:].lower())
        lab.run("host", "fence", "gpu1", "-y", "--host", "gpu2")
        done = shell.run("ssh", "nomad", "true")
        assert done.returncode == 255 and "Traceback" not in done.stderr
        lab.run("host", "resume", "gpu2", "--host", "gpu2")
        awaited(lambda: [s["state"] for s in lab.sessions("gpu2")] == ["started"])
        assert shell.said("ssh", "nomad", "hostname") == "nomad"
        assert json.loads(place.read_text())["host"] == "gpu2"
        assert known.read_text().split()[0] == first.split()[0] and known.read_text() != first
        assert shell.said("ssh", "nomad", "echo there") == "there"

        awaited(lambda: (tunnels(lab)["host"], tunnels(lab)["state"]) == ("gpu2", "up"), 360)  # they look around rarely
        now = tunnels(lab)
        assert (now["pid"], now["ports"], now["background"]) == (before["pid"], before["ports"], True)
        joined = lab.run("session", "attach", "nomad", "--detach", "--json").json()
        assert isinstance(joined, dict)
        port = str(now["ports"]["ssh"])
        assert joined["host"] == "gpu2" and joined["urls"]["ssh"].endswith(f":{port}")
        assert shell.said("ssh", "-p", port, "ada@localhost", "hostname") == "nomad"
        assert tunnels(lab)["pid"] == before["pid"]
    assert lab.run("session", "shutdown", "nomad").code == 0
    awaited(lambda: lab.run("tunnels", "list", "--json").json() == [])


@pytest.mark.hosts("gpu1", "gpu2")
def test_a_host_that_was_only_cut_off_ends_what_moved_on(lab: Laptop) -> None:
    """It was fenced, its session went to another; then it is back with all that ran: that ends, and its GPU is free."""
    lab.run("host", "drain", "gpu2")
    words = ("session", "--queue", "default", *BARE, "--gpus", "1", "--name", "nomad", "--detach", "--json")
    session = lab.run(*words).json()
    assert isinstance(session, dict) and session["host"] == "gpu1"
    lab.run("host", "resume", "gpu2")
    with without_network("gpu1"):
        lab.run("host", "fence", "gpu1", "-y", "--host", "gpu2")
        lab.run("queue", "process", "--host", "gpu2")
        awaited(lambda: [s["state"] for s in lab.sessions("gpu2")] == ["started"])
    ours = f"docker ps -q --filter label=mlbox.session={session['id']}"
    assert as_root("gpu1", "sh", "-c", ours)
    awaited(lambda: lab.sessions("gpu1") == [] and not as_root("gpu1", "sh", "-c", ours))
    awaited(
        lambda: as_root("gpu1", "sh", "-c", f"ls /tmp/mlbox-1001 | grep {session['id'][-8:].lower()} || true") == ""
    )
    status = lab.run("status", "gpu1", "--json").json()
    assert isinstance(status, list) and not any(gpu["holder"] for gpu in status[0]["gpus"])
    assert [s["state"] for s in lab.sessions("gpu2")] == ["started"]
    lab.run("session", "shutdown", "nomad", "--host", "gpu2")
