"""The main job, over real SSH and real Docker: a session, what works in it, and what it does not give away."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
from aftermath import watched
from labbox import SESSION_IMAGE, SSH_CONFIG, Attached, Laptop, as_root, left_behind, ssh, token
from labkit import gpus as false_gpus
from labkit.inventory import HOSTS
from notebook import Notebook

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
UUIDS = [HOSTS[HOST].gpu_uuid(0), HOSTS[HOST].gpu_uuid(1)]
SECRET = "fritillary-5501"  # of --env; looked for where it must not be
BARE = ("--image", SESSION_IMAGE, "--no-jupyter", "--no-vscode")  # quick to start, when only the rest matters
LISTENING = "ss -Hltn | awk '{print $4}' | sort"

# What a program inside finds through the driver's own library.
NVML = """
import ctypes
nvml = ctypes.CDLL("libnvidia-ml.so.1")
assert nvml.nvmlInit_v2() == 0
count = ctypes.c_uint()
assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
found = []
for index in range(count.value):
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    assert nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
    assert nvml.nvmlDeviceGetUUID(device, name, 96) == 0
    found.append(name.value.decode())
print(*found)
"""


def ssh_config(laptop: Laptop) -> Path:
    return laptop.home / ".local/state/mlbox/ssh_config"


def known_hosts(laptop: Laptop, session: str) -> list[Path]:
    """By the session's name; and by the port of the one client that is attached."""
    by_name, by_port = sorted((ssh_config(laptop).parent / "ssh.d").glob(f"{session}*.known_hosts"), reverse=True)
    return [by_name, by_port]


def ssh_inside(laptop: Laptop, *words: str, program: str = "ssh") -> subprocess.CompletedProcess[str]:
    """A program of OpenSSH's with the configuration that mlbox wrote, as a person would call it."""
    argv = [program, "-F", str(ssh_config(laptop)), "-o", "BatchMode=yes", *words]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def said_inside(laptop: Laptop, name: str, command: str) -> str:
    done = ssh_inside(laptop, name, command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def container(session: str, form: str = "{{json .}}") -> str:
    found = ssh(HOST, f"docker ps -aq --filter label=mlbox.session={session}").split()
    assert len(found) == 1
    return ssh(HOST, f"docker inspect --format {shlex.quote(form)} {found[0]}").strip()


def status_of(url: str, **headers: str) -> int:
    """The HTTP status, redirects not followed."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def files_with(folder: Path, words: str) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and words.encode() in p.read_bytes()]


def words_of(facts: object) -> Any:
    assert isinstance(facts, dict)
    return facts


@dataclass(frozen=True)
class One:
    """A running session, the laptop it was started from, and what the host listened on before it."""

    laptop: Laptop
    session: Attached
    block: dict[str, str]
    listening: str

    @property
    def name(self) -> str:
        return self.block["name"]

    @property
    def port(self) -> str:
        return self.block["ssh"].partition("(port ")[2].rstrip(")")

    def inside(self, command: str) -> str:
        return said_inside(self.laptop, self.name, command)


@pytest.fixture(scope="class")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[One]:
    laptop = Laptop(tmp_path_factory.mktemp("one") / "home")
    listening = ssh(HOST, LISTENING)
    ssh(HOST, "mkdir -p ~/look ~/touch && echo seen >~/look/file")
    session = laptop.attach(
        "session", HOST, "--gpus", "1", "--image", SESSION_IMAGE, "--name", "the-one", "--env", "SECRET",
        "--env", "TOLD=in the open", "--mount", "~/look:/look:ro", "--mount", "~/touch:/touch",
        "--engine-args", "--shm-size=96m --cpus 1.5", SECRET=SECRET,
    )  # fmt: skip
    try:
        yield One(laptop, session, session.block(), listening)
        assert session.stop() == 0
        assert laptop.run("session", "shutdown", "the-one").code == 0
    finally:
        laptop.close()
        laptop.run("session", "shutdown", "the-one", "--host", HOST)
        false_gpus.set_gpus(HOST, false_gpus.default_gpus(HOST))
        ssh(HOST, "rm -rf ~/look ~/touch")
    assert left_behind(HOST) == []


class TestOneSession:
    """Many looks at one session."""

    @pytest.fixture(autouse=True)
    def clean_hosts(self) -> None:
        """Not between these tests: fixture `one` ends the session and looks after it."""

    # ---- what it says, and what works in it ----------------------------------------------------------

    def test_the_block(self, one: One) -> None:
        assert one.name == "the-one"
        assert {"jupyter", "vscode", "ssh"} <= set(one.block)
        assert one.block["jupyter"].startswith("http://localhost:")
        assert f"ssh -F {ssh_config(one.laptop)} the-one" in one.block["ssh"]
        first = one.session.wait_for(r"^  gpu2: ")[0]
        line = next(text for text in one.session.lines if text.startswith(first))
        assert "2 GPUs, 2 free · image is here · starting on GPU 0 (NVIDIA H100 80GB HBM3" in line

    def test_a_notebook_cell_runs_through_the_tunnel(self, one: One) -> None:
        with Notebook(one.block["jupyter"]) as notebook:
            assert notebook.run("6 * 7") == "42"
            assert notebook.run("import os; os.getuid(), os.getcwd()") == "(1001, '/workspace')"
            assert notebook.run("os.environ['SECRET'], os.environ['TOLD']") == f"('{SECRET}', 'in the open')"
            assert notebook.run("os.environ['NVIDIA_VISIBLE_DEVICES']") == repr(UUIDS[0])
            with pytest.raises(AssertionError, match="ZeroDivisionError"):
                notebook.run("1 / 0")

    def test_jupyter_wants_its_token(self, one: One) -> None:
        url = one.block["jupyter"]
        base = url.partition("/lab")[0]
        assert status_of(f"{base}/api/kernels?") == 403
        assert status_of(f"{base}/api/kernels?token=wrong") == 403
        assert status_of(f"{base}/lab?") == 302  # to its login page
        assert status_of(f"{base}/api/kernels?token={token(url)}") == 200

    def test_vscode_wants_its_token(self, one: One) -> None:
        url = one.block["vscode"].split()[0]
        base = url.partition("/?")[0]
        assert status_of(f"{base}/?folder=/workspace") == 403
        assert status_of(f"{base}/?tkn=wrong&folder=/workspace") == 403
        assert status_of(url) == 302
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        with browser.open(url, timeout=60) as answer:
            page = answer.read().decode()
            assert "tkn=" not in answer.url
        assert "code-server" in page and "workbench" in page

    def test_ssh_by_name_as_oneself(self, one: One) -> None:
        assert one.inside("whoami; id -u; id -g; pwd; echo $HOME").split() == [
            "ada", "1001", "1001", "/workspace", "/home/ada",
        ]  # fmt: skip
        assert one.inside("echo $SECRET $TOLD") == f"{SECRET} in the open"
        assert ssh_inside(one.laptop, one.name, "exit 7").returncode == 7

    def test_ssh_by_port_with_ones_own_key(self, one: One) -> None:
        done = ssh_inside(one.laptop, "-p", one.port, "ada@localhost", "hostname")
        assert (done.returncode, done.stdout.strip()) == (0, "the-one"), done.stderr

    def test_ssh_lets_nobody_else_in_and_asks_no_password(self, one: One, tmp_path: Path) -> None:
        done = ssh_inside(one.laptop, "-v", "-o", "PubkeyAuthentication=no", one.name, "true")
        assert done.returncode == 255
        offered = {line.partition("continue: ")[2] for line in done.stderr.splitlines() if "continue: " in line}
        assert offered == {"publickey"}
        key = tmp_path / "stranger"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        host_key = str(known_hosts(one.laptop, one.block["id"])[1])
        argv = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(key)]
        argv += ["-o", f"UserKnownHostsFile={host_key}", "-p", one.port, "ada@localhost", "true"]
        stranger = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert stranger.returncode == 255
        assert "Permission denied (publickey)" in stranger.stderr

    def test_ssh_verifies_the_sessions_host_key(self, one: One, tmp_path: Path) -> None:
        other = tmp_path / "other"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
        ways = ((one.name,), ("-p", one.port, "ada@localhost"))
        for known, words in zip(known_hosts(one.laptop, one.block["id"]), ways):
            kept = known.read_text()
            try:
                key = " ".join(other.with_suffix(".pub").read_text().split()[:2])
                known.write_text(f"{kept.split()[0]} {key}\n")
                done = ssh_inside(one.laptop, *words, "true")
                assert done.returncode == 255
                assert "Host key verification failed" in done.stderr
            finally:
                known.write_text(kept)
        assert one.inside("echo in") == "in"

    @pytest.mark.parametrize("program", ["scp", "sftp"])
    def test_files_travel_both_ways(self, one: One, tmp_path: Path, program: str) -> None:
        content = os.urandom(300_000)
        (tmp_path / "up").write_bytes(content)
        if program == "scp":
            pairs = [(str(tmp_path / "up"), f"{one.name}:travelled"), (f"{one.name}:travelled", str(tmp_path / "down"))]
            for source, target in pairs:
                done = ssh_inside(one.laptop, source, target, program="scp")
                assert done.returncode == 0, done.stderr
        else:
            batch = tmp_path / "batch"
            batch.write_text(f"put {tmp_path}/up /workspace/travelled\nget /workspace/travelled {tmp_path}/down\n")
            done = ssh_inside(one.laptop, "-b", str(batch), one.name, program="sftp")
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "down").read_bytes() == content
        assert ssh(HOST, "stat -c '%U %s' ~/mlbox/travelled; rm ~/mlbox/travelled").split() == ["ada", "300000"]

    def test_what_is_written_in_the_workspace_is_ones_own_on_the_host(self, one: One) -> None:
        one.inside("echo from inside >/workspace/written")
        assert ssh(HOST, "stat -c %U:%G ~/mlbox/written; cat ~/mlbox/written; rm ~/mlbox/written").split("\n")[:2] == [
            "ada:ada", "from inside",
        ]  # fmt: skip

    def test_mounts_are_as_asked(self, one: One) -> None:
        assert one.inside("cat /look/file") == "seen"
        assert one.inside("touch /look/x 2>&1 || true").endswith("Read-only file system")
        one.inside("echo back >/touch/file")
        assert ssh(HOST, "cat ~/touch/file; stat -c %U ~/touch/file").split() == ["back", "ada"]

    def test_a_second_laptop_joins(self, one: One, tmp_path: Path) -> None:
        """With a key of its own, which the session did not know when it started."""
        key = tmp_path / "id"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key), "-C", "second"], check=True)
        public = key.with_suffix(".pub").read_text().strip()
        config = tmp_path / "config"
        lines = [
            f"Host {HOST}", f"HostName {HOSTS[HOST].address}", "User ada", f"IdentityFile {key}", "IdentitiesOnly yes",
            f"UserKnownHostsFile {SSH_CONFIG.parent}/known_hosts", "StrictHostKeyChecking yes",
        ]  # fmt: skip
        config.write_text("\n  ".join(lines) + "\n")
        ssh(HOST, f"cp ~/.ssh/authorized_keys ~/.ssh/kept && echo {shlex.quote(public)} >>~/.ssh/authorized_keys")
        try:
            with watched(tmp_path / "second") as second:
                self._join_from(second, one, config)
        finally:
            ssh(HOST, "mv ~/.ssh/kept ~/.ssh/authorized_keys")
        assert one.inside("echo still") == "still"

    def _join_from(self, second: Laptop, one: One, config: Path) -> None:
        second.env["MLBOX_SSH_CONFIG"] = str(config)
        joined = second.attach("session", "attach", "--host", HOST)
        block = joined.block()
        assert (block["name"], block["id"]) == (one.name, one.block["id"])
        assert block["jupyter"] != one.block["jupyter"]  # this machine's other port, the same token
        assert token(block["jupyter"]) == token(one.block["jupyter"])
        assert said_inside(second, one.name, "hostname") == "the-one"
        with Notebook(block["jupyter"]) as notebook:
            assert notebook.run("1 + 1") == "2"
        assert joined.stop() == 0
        assert "the-one goes on" in joined.text
        assert said_inside(second, one.name, "hostname") == "the-one"  # without a client, too
        assert not list((ssh_config(second).parent / "ssh.d").glob("*.*.*"))

    def test_session_again_joins_it(self, one: One, tmp_path: Path) -> None:
        again = Laptop(tmp_path / "again")
        try:
            joined = again.attach("session", HOST, "--image", SESSION_IMAGE, "-y")
            assert joined.block()["id"] == one.block["id"]
            assert "joining the-one, which is running already (--new starts another)" in joined.text
            assert joined.stop() == 0
        finally:
            again.close()
        facts = words_of(again.run("session", HOST, "-y", "--detach", "--json").json())
        assert (facts["id"], facts["host"]) == (one.block["id"], HOST)

    # ---- the facts -----------------------------------------------------------------------------------

    def test_list_info_and_status_tell_it(self, one: One) -> None:
        [listed] = one.laptop.sessions(HOST)
        told = words_of(one.laptop.run("session", "info", one.name, "--json").json())
        for facts in (listed, told):
            assert facts["id"] == one.block["id"]
            assert (facts["name"], facts["state"], facts["user"]) == ("the-one", "started", "ada")
            assert (facts["gpus"], facts["image"], facts["runtime"]) == ([UUIDS[0]], SESSION_IMAGE, "docker")
        shown = one.laptop.run("session", "list", HOST)
        assert shown.code == 0 and one.block["id"] in shown.out and SESSION_IMAGE in shown.out

        reply = one.laptop.run("status", HOST, "--json").json()
        assert isinstance(reply, list)
        assert reply[0]["sessions"][0]["name"] == "the-one"
        first, second = reply[0]["gpus"]
        assert (first["uuid"], second["uuid"]) == (UUIDS[0], UUIDS[1])
        assert (first["holder"]["user"], first["holder"]["name"]) == ("ada", "the-one")
        assert second["holder"] is None
        plain = one.laptop.run("status", HOST).out
        assert "1 of 2 GPUs free" in plain and "leased to ada's session the-one" in plain

    def test_others_see_who_holds_the_gpu_but_not_the_session(self, one: One, tmp_path: Path) -> None:
        bob = Laptop(tmp_path / "bob")
        reply = bob.run("status", f"{HOST}-bob", "--json").json()
        assert isinstance(reply, list)
        assert reply[0]["sessions"] == []
        assert reply[0]["gpus"][0]["holder"]["user"] == "ada"
        refused = bob.run("session", "attach", one.name, "--host", f"{HOST}-bob")
        assert refused.code == 6, refused.all

    def test_a_warm_status_is_one_ssh_command(self, one: One, tmp_path: Path) -> None:
        called, real = tmp_path / "called", shutil.which("ssh")
        (tmp_path / "bin").mkdir()
        wrapper = tmp_path / "bin/ssh"
        wrapper.write_text(f'#!/bin/sh\necho "$*" >>{called}\nexec {real} "$@"\n')
        wrapper.chmod(0o755)
        one.laptop.run("status", HOST)
        warm = one.laptop.run("status", HOST, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
        assert warm.code == 0 and "H100" in warm.out
        calls = called.read_text().splitlines()
        network = [call for call in calls if " -G " not in call]
        assert len(network) == 1, calls
        assert len(calls) - len(network) <= 1  # `ssh -G` reads the configuration, and dials nobody

    # ---- what it does not give away ------------------------------------------------------------------

    def test_only_the_leased_gpu_is_inside(self, one: One) -> None:
        assert one.inside("echo $NVIDIA_VISIBLE_DEVICES") == UUIDS[0]
        assert one.inside(f"python3 -c {shlex.quote(NVML)}") == UUIDS[0]

    def test_the_container_is_locked_down(self, one: One) -> None:
        facts = json.loads(container(one.block["id"]))
        host = facts["HostConfig"]
        assert facts["NetworkSettings"]["Ports"] in ({}, None)
        assert (
            not host["PortBindings"] and not host["PublishAllPorts"] and not host["Privileged"] and not host["CapAdd"]
        )
        assert host["NetworkMode"] in ("default", "bridge")
        assert "no-new-privileges" in host["SecurityOpt"]
        assert facts["Config"]["User"].startswith("1001:")
        assert (host["ShmSize"], host["NanoCpus"]) == (96 << 20, 1_500_000_000)
        assert not [mount["Source"] for mount in facts["Mounts"] if mount["Source"].endswith(".sock")]
        assert one.inside("grep -E 'NoNewPrivs|CapEff' /proc/self/status").split() == [
            "CapEff:", "0000000000000000", "NoNewPrivs:", "1",
        ]  # fmt: skip

    def test_nothing_listens_on_the_hosts_network(self, one: One) -> None:
        assert ssh(HOST, LISTENING) == one.listening
        inside = one.inside("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == \"0A\" {print $2}'").split()
        assert all(address.startswith("0100007F:") for address in inside), inside  # a kernel's own, on its loopback

    def test_its_sockets_are_its_owners_alone(self, one: One) -> None:
        folder = f"/tmp/mlbox-1001/{one.block['id'][-8:].lower()}"
        assert ssh(HOST, f"stat -c %a:%U /tmp/mlbox-1001 {folder} {folder}/s").split()[0] == "700:ada"
        sockets = ssh(HOST, f"ls {folder}/s").split()
        assert {"jupyter.sock", "vscode.sock", "ssh.sock", "guest.sock"} <= set(sockets)
        connect = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        for other in (f"{HOST}-bob", f"{HOST}-noisy"):
            seen = ssh(other, f"ls {folder} 2>&1; ls /tmp/mlbox-1001 2>&1; cat {folder}/conf/session.json 2>&1; true")
            assert seen.count("Permission denied") == 3, seen
            for name in sockets:
                tried = ssh(other, f"python3 -c {shlex.quote(connect)} {folder}/s/{name} 2>&1 || true")
                assert "PermissionError" in tried, (other, name, tried)
        assert ssh(HOST, f"python3 -c {shlex.quote(connect)} {folder}/s/guest.sock && echo in").split() == ["in"]

    def test_no_secret_is_in_any_process_list_or_file_that_stays(self, one: One) -> None:
        secrets = [token(one.block["jupyter"]), token(one.block["vscode"]), SECRET]
        assert all(len(secret) > 10 for secret in secrets)
        job = f"~/.local/share/mlbox/users/ada/jobs/*/{one.block['id']}"
        places = {
            "bob's view of all processes": ssh(f"{HOST}-bob", "ps auxwwe"),
            "ada's view of all arguments": ssh(HOST, "ps auxww"),
            "spec, events and keeper.log": ssh(HOST, f"cat {job}/spec.json {job}/ev/* {job}/attempts/1/keeper.log"),
            "docker inspect": container(one.block["id"]),
            "this machine's arguments": subprocess.check_output(["ps", "auxww"], text=True),
        }
        logs = ssh(HOST, f"docker logs {container(one.block['id'], '{{.Id}}')} 2>&1 || true")
        assert "does not support reading" in logs  # the engine keeps no copy
        assert "the-one" in places["docker inspect"] and "SECRET" in places["spec, events and keeper.log"]
        for place, text in places.items():
            assert not [secret for secret in secrets if secret in text], place
        assert not [found for secret in secrets for found in files_with(one.laptop.home, secret)]

    def test_what_is_kept_here_is_private(self, one: One) -> None:
        kept = one.laptop.home / ".local/state/mlbox"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o700
        assert {p.name for p in kept.iterdir()} >= {"hosts.json", "last.json", "sessions.json", "ssh_config"}


# ---- choosing and sharing GPUs -----------------------------------------------------------------------


def test_two_sessions_get_different_gpus_and_a_third_hears_what_would_fit(laptop: Laptop) -> None:
    by_uuid = laptop.run("session", HOST, *BARE, "--gpus", UUIDS[1], "--name", "first", "--detach", "--json")
    assert words_of(by_uuid.json())["gpus"] == [UUIDS[1]]
    by_name = laptop.run("session", HOST, *BARE, "--gpus", "H100:1", "--name", "second", "--detach", "--json")
    assert words_of(by_name.json())["gpus"] == [UUIDS[0]]

    third = laptop.run("session", HOST, *BARE, "--gpus", "1", "--new", "--detach")
    assert third.code == 3
    assert "0 of 2 are free" in third.err and "leased to ada's session first" in third.err
    assert "what would fit: 0 of 2 NVIDIA H100 80GB HBM3 free" in third.err
    other = laptop.run("session", HOST, *BARE, "--gpus", "A100:1", "--new", "--detach")
    assert other.code == 3 and "you asked for 1 A100 GPU, and there are 0" in other.err

    same = laptop.run("session", HOST, *BARE, "--gpus", "0", "--name", "first", "--new", "--detach")
    assert same.code == 3 and "you have a session first here already" in same.err
    assert {str(s["name"]) for s in laptop.sessions(HOST)} == {"first", "second"}
    unclear = laptop.run("session", "shutdown", "--host", HOST)
    assert unclear.code == 6 and "first" in unclear.err and "second" in unclear.err
    ended = words_of(laptop.run("session", "shutdown", "first", "--json").json())
    assert ended["freed"] == [UUIDS[1]]
    assert laptop.run("session", "shutdown", "second").code == 0
    assert laptop.sessions(HOST) == []


def test_a_gpu_that_anybody_uses_is_not_taken(laptop: Laptop) -> None:
    pid = int(ssh(f"{HOST}-bob", "setsid sleep 600 >/dev/null 2>&1 </dev/null & echo $!"))
    try:
        false_gpus.change(HOST, "0", lambda gpu: replace(gpu, procs=(false_gpus.Proc(pid, 2048),)))
        refused = laptop.run("session", HOST, *BARE, "--gpus", "2", "--detach")
        assert refused.code == 3
        assert f"used by bob's sleep (pid {pid})" in refused.err
        started = laptop.run("session", HOST, *BARE, "--gpus", "1", "--detach", "--json")
        assert words_of(started.json())["gpus"] == [UUIDS[1]]
    finally:
        ssh(f"{HOST}-bob", f"kill {pid}")


def test_without_gpus_none_is_seen(laptop: Laptop) -> None:
    session = laptop.attach("session", HOST, *BARE, "--gpus", "0")
    name = session.block()["name"]
    assert "starting without a GPU" in session.text
    assert said_inside(laptop, name, "echo $NVIDIA_VISIBLE_DEVICES") == "void"
    assert ssh_inside(laptop, name, f"python3 -c {shlex.quote(NVML)}").returncode != 0
    assert session.stop() == 0


# ---- how it is asked for -----------------------------------------------------------------------------


def test_a_file_asks_flags_win_and_answers_are_remembered(laptop: Laptop, tmp_path: Path) -> None:
    asked = tmp_path / "session.yaml"
    asked.write_text(
        f"host: {HOST}\nimage: {SESSION_IMAGE}\ngpus: 2\nname: from-file\njupyter: false\nvscode: false\n"
        f"env:\n  TOLD: by-the-file\n  SECRET: {SECRET}\n"
    )
    started = laptop.run("session", "-f", str(asked), "--gpus", "1", "--name", "from-flag", "--detach", "--json")
    facts = words_of(started.json())
    assert (facts["name"], facts["gpus"], facts["image"]) == ("from-flag", [UUIDS[0]], SESSION_IMAGE)
    assert SECRET not in started.all
    assert not files_with(laptop.home, SECRET)

    next_time = words_of(laptop.run("session", HOST, "--dry-run", "--json").json())["spec"]
    assert (next_time["image"], next_time["gpus"], next_time["jupyter"]) == (SESSION_IMAGE, "1", "no")
    assert (next_time["env"], next_time["name"]) == ({}, "")
    shown = laptop.run("session", HOST, "--env", f"SECRET={SECRET}", "--dry-run")
    assert SECRET not in shown.all and "***" in shown.out

    joined = laptop.attach("session", "attach", "from-flag")
    joined.block()
    assert said_inside(laptop, "from-flag", "echo $TOLD") == "by-the-file"
    assert joined.stop() == 0


@pytest.mark.parametrize("argument", ["--privileged", "-v /:/host", "--pid=host", "--network host", "--cap-add ALL"])
def test_engine_arguments_that_would_hand_out_the_host_are_refused(laptop: Laptop, argument: str) -> None:
    refused = laptop.run("session", HOST, *BARE, f"--engine-args={argument}", "--detach")
    assert refused.code == 2, refused.all
    assert "not allowed" in refused.err


def test_the_hosts_own_check_refuses_what_a_laptop_let_through(laptop: Laptop) -> None:
    """A laptop that lies about engine arguments or mounts comes no further than the host's door."""
    for mount in ("/etc:/look", "~/.ssh/../../../etc:/look", "/var/run/docker.sock:/look", "/root:/look:ro"):
        refused = laptop.run("session", HOST, *BARE, "--mount", mount, "--detach")
        assert refused.code in (2, 3), refused.all
    assert laptop.sessions(HOST) == []


def test_ports_that_are_taken_here_are_passed_over_and_said(laptop: Laptop) -> None:
    with contextlib.ExitStack() as stack:
        taken, free = stack.enter_context(socket.socket()), socket.socket()
        for found in (taken, free):
            found.bind(("127.0.0.1", 0))
        taken.listen()
        wanted, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        config = laptop.home / ".config/mlbox/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(f'hosts = ["{HOST}"]\n[ports]\njupyter = {wanted}\nssh = {other}\n')
        session = laptop.attach("session", "--image", SESSION_IMAGE, "--gpus", "0", "--no-vscode")
        block = session.block()
        port = urllib.parse.urlsplit(block["jupyter"]).port
        assert port is not None and port > wanted
        assert f"port {wanted} is taken here; Jupyter is on {port}" in session.text
        assert block["ssh"].endswith(f"(port {other})")
        with urllib.request.urlopen(block["jupyter"], timeout=60) as answer:
            assert answer.status == 200
        assert session.stop() == 0


def test_json_carries_the_urls(laptop: Laptop) -> None:
    session = laptop.attach("session", HOST, "--image", SESSION_IMAGE, "--gpus", "1", "--no-vscode", "--json")
    session.wait_for(r"^}$")
    begin = session.lines.index("{")
    facts = json.loads("\n".join(session.lines[begin : session.lines.index("}") + 1]))
    assert set(facts["urls"]) == {"jupyter", "ssh"} and facts["gpus"] == [UUIDS[0]]
    with urllib.request.urlopen(facts["urls"]["jupyter"], timeout=60) as answer:
        assert answer.status == 200
    assert session.stop() == 0


def test_the_containers_root_by_choice(laptop: Laptop) -> None:
    session = laptop.attach("session", HOST, "--image", SESSION_IMAGE, "--gpus", "1", "--user", "root")
    block = session.block()
    assert said_inside(laptop, block["name"], "id -u; echo $HOME").split() == ["0", "/root"]
    with Notebook(block["jupyter"]) as notebook:
        assert notebook.run("import os; os.getuid()") == "0"
    facts = json.loads(container(block["id"]))
    assert "no-new-privileges" in facts["HostConfig"]["SecurityOpt"] and not facts["HostConfig"]["Privileged"]
    assert session.stop() == 0
    assert laptop.run("session", "shutdown", block["name"]).code == 0


# ---- its end -----------------------------------------------------------------------------------------


def test_shutdown_from_another_laptop_is_noticed(laptop: Laptop, tmp_path: Path) -> None:
    session = laptop.attach("session", HOST, *BARE, "--gpus", "1")
    block = session.block()
    ended = Laptop(tmp_path / "other").run("session", "shutdown", block["id"], "--host", HOST)
    assert ended.code == 0, ended.all
    assert "1 GPU free again" in ended.all
    assert session.process.wait(60) == 0
    assert f"{block['name']}: the session has ended: shut down" in session.text
    assert laptop.run("session", "info", block["id"], "--host", HOST).code == 6


def test_the_hosts_files_after_the_end(laptop: Laptop) -> None:
    words = ("--image", SESSION_IMAGE, "--gpus", "1", "--detach", "--json")
    started = words_of(laptop.run("session", HOST, *words).json())
    tokens = [token(started["urls"][name]) for name in ("jupyter", "vscode")]
    assert [status_of(started["urls"][name]) for name in ("jupyter", "vscode")] == [200, 302]
    assert laptop.run("session", "shutdown", started["name"]).code == 0
    job = f"~/.local/share/mlbox/users/ada/jobs/*/{started['id']}"
    events = [json.loads(line)["event"]["event"] for line in ssh(HOST, f"cat {job}/ev/*").splitlines()]
    assert events == ["submitted", "claimed", "started", "finished"]
    assert "guest.log" in ssh(HOST, f"ls {job}/attempts/1/log")
    assert ssh(HOST, f"cat {job}/attempts/1/keeper.log") == ""
    for secret in tokens:
        assert as_root(HOST, "grep", "-rlF", "-D", "skip", secret, "/home", "/tmp", "/share", check=False) == ""
        assert files_with(laptop.home, secret) == []
