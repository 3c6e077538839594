"""A host that nobody can dial: it works off the queue by cron, and its sessions meet the laptop at a rendezvous."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labbox import PYZ, SESSION_IMAGE, SSH_CONFIG, Attached, Laptop, Result, as_root, ssh, token
from labkit.inventory import HOSTS, RUN
from outage import without_sshd

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

Json = dict[str, Any]
WS, VIA = "ws", "gpu1"
UUIDS = [HOSTS[WS].gpu_uuid(0), HOSTS[WS].gpu_uuid(1)]
KEY = "/home/ada/.local/state/mlbox/reverse_ed25519"


def on_ws(command: str, user: str = "ada", check: bool = True) -> str:
    """As a person who sits at it."""
    return as_root(WS, "runuser", "-u", user, "--", "bash", "-c", f"cd; {command}", check=check)


def awaited(look: Any, timeout: float = 150) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.2)
    return found


class Lab:
    """A ROOT of its own with ws in it, ws's cron at work, and a laptop that knows of gpu1 and gpu2 only."""

    def __init__(self, laptop: Laptop, root: str) -> None:
        self.laptop, self.root = laptop, root
        config = laptop.home / ".config/mlbox/config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(f'hosts = ["gpu1", "gpu2"]\nroot = "{root}"\n')

    def run(self, *words: str, code: int = 0, **kind: Any) -> Result:
        done = self.laptop.run(*words, **kind)
        assert done.code == code, done.all
        return done

    def facts(self, *words: str) -> Any:
        return self.run(*words, "--json").json()

    def at_ws(self, *words: str) -> str:
        """mlbox, called at ws itself."""
        return on_ws(f"python3 mlbox.pyz {shlex.join(words)} --root {self.root}")

    def state(self, job: str) -> str:
        return str(self.facts("show", job)["job"]["state"])


def sockets() -> list[str]:
    """Of reverse tunnels, on the rendezvous."""
    return ssh(VIA, "find /tmp/mlbox-1001 -name 'r.*' 2>/dev/null || true").split()


def dialling() -> list[str]:
    """The pids of ws's tunnels."""
    return as_root(WS, "pgrep", "-u", "ada", "-f", "^ssh -F none", check=False).split()


def keys_there() -> str:
    return ssh(VIA, "cat ~/.ssh/authorized_keys")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = "/share/lab-reverse"
    as_root(VIA, "rm", "-rf", root)
    before = keys_there()
    shutil.copyfile(PYZ, RUN / "hosts/ws/gpus/mlbox.pyz")
    on_ws("cp /etc/mlbox-lab/mlbox.pyz mlbox.pyz")
    made = Lab(Laptop(tmp_path_factory.mktemp("reverse") / "home"), root)
    made.run("init", "gpu1", "gpu2")
    made.run("queue", "create", "desk")
    made.at_ws("cron", "install", "local")
    try:
        unasked = made.run("host", "add", WS, "--tunnel", "reverse", "--via", VIA, code=2, timeout=400)
        assert "mlbox-reverse-ws" in unasked.err and keys_there() == before  # shown, and not written
        made.run("host", "add", WS, "--tunnel", "reverse", "--via", VIA, "-y")
        ssh(VIA, f'sed -i \'s/"via": "gpu1"}}/"via": "gpu1", queues: [desk, default]}}/\' {root}/lab.yaml')
        yield made
    finally:
        made.laptop.close()
        on_ws("crontab -r; rm -rf mlbox.pyz .local/state/mlbox", check=False)
        (RUN / "hosts/ws/gpus/mlbox.pyz").unlink()
        as_root(VIA, "rm", "-rf", root)
        as_root(VIA, "sed", "-i", "/mlbox-reverse-/d", "/home/ada/.ssh/authorized_keys")


def assert_nothing_left(lab: Lab) -> None:
    assert sockets() == dialling() == []
    assert on_ws("docker ps -aq; ls -d /tmp/mlbox-1001/*/ 2>/dev/null || true") == ""


def test_a_job_runs_on_it_by_cron_alone(lab: Lab) -> None:
    words = ("--gpus", "1", "--on", WS, "--", "sh", "-c", "echo from $(uname -n); sleep 1000")
    done: Any = lab.run("submit", "--json", *words).json()
    job = done["jobs"][0]["id"]
    awaited(lambda: lab.state(job) == "started")
    awaited(lambda: lab.run("logs", job).out == "from ws\n")
    lab.run("cancel", job)  # its keeper finds the word in the log
    awaited(lambda: lab.state(job) == "cancelled")


# ---- a session ---------------------------------------------------------------------------------------------


def keeper(session: str) -> int:
    known = on_ws(f"cat /tmp/mlbox-1001/{session[-8:].lower()}/keeper.pid 2>/dev/null || echo null")
    return int((json.loads(known) or {"pid": 0})["pid"])


def get(url: str) -> int:
    """The HTTP status after redirects; 0 without an answer."""
    done = subprocess.run(
        ("curl", "-s", "-m", "120", "-o", "/dev/null", "-w", "%{http_code}", "-L", "-c", "/dev/null", url),
        capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.fixture(scope="module")
def session(lab: Lab) -> Iterator[Attached]:
    """One for most tests: cron starts it, which takes its time."""
    words = ("--image", SESSION_IMAGE, "--gpus", UUIDS[1], "--name", "far")
    made = lab.laptop.attach("session", "--queue", "desk", *words)
    made.block()
    yield made
    made.stop()
    for left in lab.laptop.sessions():  # after a failure
        lab.run("session", "shutdown", str(left["id"]))


def works(lab: Lab, session: Attached) -> None:
    """Jupyter answers with its token, VS Code, and a command by ssh sees the chosen GPU."""
    block = session.block()
    jupyter = block["jupyter"].replace("/lab?", "/api/status?")
    awaited(lambda: get(jupyter) == 200)  # while the tunnel is dialled anew, a connection is closed
    assert get(jupyter.replace(token(jupyter), "x" * 32)) == 403
    assert get(block["vscode"]) == 200
    config = str(lab.laptop.home / ".local/state/mlbox/ssh_config")
    said = subprocess.run(
        ("ssh", "-F", config, "-o", "BatchMode=yes", "far", "echo $NVIDIA_VISIBLE_DEVICES $MLBOX_SESSION"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert said.stdout.split() == [UUIDS[1], block["id"]], said.stderr


def test_a_session_works_and_is_seen(lab: Lab, session: Attached) -> None:
    works(lab, session)
    id_ = session.block()["id"]
    assert len(sockets()) == 5  # jupyter, vscode, ssh, guest, call
    assert ssh(VIA, "ss -Hltn | grep -vE ':22 |127.0.0' || true") == ""
    [listed] = [s for s in lab.laptop.sessions() if s["id"] == id_]
    assert (listed["host"], listed["via"], listed["trouble"]) == (WS, VIA, {})
    told = lab.run("status").out
    assert re.search(r"^ws  1 of 2 GPUs free · seen .* ago, by reverse tunnel through gpu1$", told, re.M), told
    assert "session far  started on GPU 1" in told
    assert f"{id_}  on ws" in lab.run("session", "info", "far").out


def test_nobody_dials_it(lab: Lab) -> None:
    for host in ("gpu1", "gpu2"):
        dial = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{HOSTS[WS].address}/22' 2>&1; echo $?"
        assert ssh(host, dial).split()[-1] != "0"
    assert as_root(WS, "ss", "-Hltn", "sport = :22") != ""  # though there is somebody to answer


def test_another_user_of_the_rendezvous_can_not_connect(lab: Lab, session: Attached) -> None:
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for path in sockets():
        done = ssh(f"{VIA}-bob", f"python3 -c '{connect}' {path} 2>&1 || true")
        assert done.endswith("Permission denied\n"), done
    assert "Permission denied" in ssh(f"{VIA}-bob", "ls /tmp/mlbox-1001 2>&1 || true")


def test_it_can_not_be_shared_and_says_why(lab: Lab, session: Attached) -> None:
    done = lab.run("session", "share", session.block()["name"], "bob", code=3)
    assert f"its tunnel ends in a folder of yours on {VIA}" in done.err


def test_a_killed_tunnel_is_back_on_the_same_ports(lab: Lab, session: Attached) -> None:
    [before] = dialling()
    as_root(WS, "kill", "-9", before)
    awaited(lambda: dialling() not in ([], [before]))
    works(lab, session)


def test_the_rendezvous_sshd_is_restarted(lab: Lab, session: Attached) -> None:
    [before] = dialling()
    with without_sshd(VIA):
        awaited(lambda: before not in dialling())
        awaited(lambda: sockets_as_root() == [])
    works(lab, session)


def sockets_as_root() -> list[str]:
    return as_root(VIA, "find", "/tmp/mlbox-1001", "-name", "r.*").split()


def test_a_stale_socket_is_replaced(lab: Lab, session: Attached) -> None:
    """The forced command is killed too, so nobody removes the names."""
    [before] = dialling()
    as_root(VIA, "pkill", "-9", "-u", "ada", "-f", "rendezvous ws$")
    as_root(WS, "kill", "-9", before, check=False)  # it may have heard
    awaited(lambda: dialling() not in ([], [before]))
    works(lab, session)


def test_a_killed_keeper_is_replaced_with_its_tunnel(lab: Lab, session: Attached) -> None:
    id_ = session.block()["id"]
    first = keeper(id_)
    as_root(WS, "kill", "-9", str(first))
    awaited(lambda: dialling() == [])  # it does not outlive who holds it
    awaited(lambda: keeper(id_) not in (0, first))  # by cron
    works(lab, session)


def test_another_laptop_joins_and_ends_it(lab: Lab, session: Attached, tmp_path: Path) -> None:
    id_ = session.block()["id"]
    refused = lab.run("host", "remove", WS, "-y", code=3)
    assert "1 job of yours still on ws" in refused.err
    other = Lab(Laptop(tmp_path / "other"), lab.root)
    again = other.laptop.attach("session", "attach", "far")
    assert again.block()["id"] == id_
    assert "far has ended; 1 GPU free again" in other.run("session", "shutdown", "far").out
    session.wait_for("far: the session has ended: shut down")
    assert (session.process.wait(60), again.process.wait(60)) == (0, 0)
    awaited(lambda: sockets() == [])
    assert_nothing_left(lab)
    assert "far had ended already" in lab.run("session", "shutdown", "far").out
    other.laptop.close()


def test_a_session_of_any_host_may_be_met_at_a_rendezvous(lab: Lab) -> None:
    """gpu2 can be dialled; with --tunnel reverse it dials gpu1 all the same."""
    ssh(VIA, f"sed -i '/^  gpu2:/d' {lab.root}/lab.yaml")
    lab.run("host", "add", "gpu2", "--via", VIA, "--host", "gpu2", "-y")
    try:
        words = ("--runtime", "process", "--no-jupyter", "--no-vscode", "--gpus", "0", "--name", "met")
        made = lab.laptop.attach("session", "gpu2", "--tunnel", "reverse", *words)
        id_ = made.block()["id"]
        assert {path.rpartition(".")[2] for path in sockets()} == {"ssh", "guest", "call"}
        config = str(lab.laptop.home / ".local/state/mlbox/ssh_config")
        said = subprocess.run(
            ("ssh", "-F", config, "-o", "BatchMode=yes", "met", "uname -n; echo $MLBOX_SESSION"),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert said.stdout.split() == ["gpu2", id_], said.stderr
        lab.run("session", "shutdown", "met")
        made.wait_for("met: the session has ended: shut down")
        assert made.process.wait(60) == 0
        assert sockets() == []
    finally:
        lab.run("host", "remove", "gpu2", "-y")


# ---- the key -----------------------------------------------------------------------------------------------


@pytest.fixture
def key(lab: Lab, tmp_path: Path) -> Path:
    """Stolen from ws."""
    path = tmp_path / "stolen"
    path.write_text(on_ws(f"cat {KEY}"))
    path.chmod(0o600)
    return path


def with_key(key: Path, host: str, *words: str) -> tuple[str, ...]:
    known = f"UserKnownHostsFile={SSH_CONFIG.parent}/known_hosts"
    options = ("-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", known, "-i", str(key))
    return ("ssh", *options, *words[:-1], f"ada@{HOSTS[host].address}", *([words[-1]] if words[-1] else []))


def said_to(key: Path, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = ("timeout", "20", *with_key(key, host, *words))
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize("host", ["gpu1", "gpu2", "gpu3"])
@pytest.mark.hosts("gpu1", "gpu2", "gpu3")
def test_the_key_forwards_sockets_and_does_nothing_else(lab: Lab, key: Path, tmp_path: Path, host: str) -> None:
    """By OpenSSH 8.4, 9.2 and 10.0."""
    [line] = [one for one in keys_there().splitlines() if "mlbox-reverse-ws" in one]
    if host != VIA:
        lab.run("status", host)  # plants the program
        ssh(host, f"echo {shlex.quote(line)} >>~/.ssh/authorized_keys")
    try:
        _attack(key, host, tmp_path)
    finally:
        if host != VIA:
            ssh(host, "sed -i '/mlbox-reverse-ws/d' ~/.ssh/authorized_keys")


def _attack(key: Path, host: str, tmp_path: Path) -> None:
    for words in (("",), ("id",), ("-tt", "id"), ("01ARYZ6S41TSV4RRFFQ69G5FAV; id",), ("-s", "sftp")):
        done = said_to(key, host, *words)
        assert done.returncode != 0 and "uid=" not in done.stdout + done.stderr, (words, done)
    # TCP, either way, and by SOCKS
    for forward in ("18877:127.0.0.1:22", "127.0.0.1:18877:none.invalid:1"):
        done = said_to(key, host, "-N", "-o", "ExitOnForwardFailure=yes", "-R", forward, "")
        assert "remote port forwarding failed" in done.stderr, done
    assert _through(key, host, tmp_path, "127.0.0.1:22") == b""
    # Sockets of this host's: the container engine's is root's, a session's is its owner's
    listener = ssh(host, _LISTENER).strip()
    for path in ("/var/run/docker.sock", "/tmp/mlbox-1001/target.sock"):
        assert _through(key, host, tmp_path, path) == b""
    ssh(host, f"kill {listener}; rm /tmp/mlbox-1001/target.sock")
    # No file of the user's is replaced by a socket
    before = ssh(host, "cat ~/.ssh/authorized_keys")
    done = said_to(key, host, "-N", "-o", "ExitOnForwardFailure=yes", "-R",
                   "/home/ada/.ssh/authorized_keys:127.0.0.1:22", "")  # fmt: skip
    assert "remote port forwarding failed" in done.stderr
    assert ssh(host, "cat ~/.ssh/authorized_keys") == before
    # And what it is for
    folder, id_ = "/tmp/mlbox-1001/r.q69g5fav", "01ARYZ6S41TSV4RRFFQ69G5FAV"
    argv = with_key(key, host, "-R", f"{folder}.00c0ffee.guest:127.0.0.1:1", f"{id_} 00c0ffee guest")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tunnel:
        assert tunnel.stdout is not None and tunnel.stdout.readline() == b"up\n"
        assert ssh(host, "ls /tmp/mlbox-1001/r.*").split() == [f"{folder}.guest"]
    assert ssh(host, "ls /tmp/mlbox-1001/r.* 2>/dev/null || true") == ""


_LISTENER = """
mkdir -p -m 700 /tmp/mlbox-1001
nohup python3 -c '
import socket
s = socket.socket(socket.AF_UNIX); s.bind("/tmp/mlbox-1001/target.sock"); s.listen()
while True: s.accept()[0].sendall(b"reached")
' >/dev/null 2>&1 &
until [ -e /tmp/mlbox-1001/target.sock ]; do sleep 0.05; done
echo $!
"""


def _through(key: Path, host: str, tmp_path: Path, target: str) -> bytes:
    """What comes out of a socket here that is forwarded to `target` there."""
    path = tmp_path / "forward.sock"
    path.unlink(missing_ok=True)
    argv = with_key(key, host, "-N", "-L", f"{path}:{target}", "")
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            awaited(path.exists, 30)
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(20)
                probe.connect(str(path))
                probe.sendall(b"GET /version HTTP/1.0\r\n\r\n")
                return probe.recv(64)
        except ConnectionResetError:
            return b""
        finally:
            process.kill()  # a SIGTERM may be missed


def test_remove_takes_the_line_out_and_the_key_goes(lab: Lab, key: Path) -> None:
    before = keys_there()
    lab.run("host", "remove", WS, "-y")
    assert keys_there() == "".join(f"{one}\n" for one in before.splitlines() if "mlbox-reverse-ws" not in one)
    assert "Permission denied" in said_to(key, VIA, "id").stderr
    awaited(lambda: on_ws(f"ls {KEY} 2>/dev/null || true") == "")  # by its cron
    assert "out_of_reach" in json.dumps(lab.facts("status")) and "reverse tunnel" not in lab.run("status").out
    assert "no host ws" in lab.run("host", "remove", WS, "-y", code=6).err
