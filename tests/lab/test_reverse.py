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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import workbench
from browser import Browser
from far import NEAR, far_apart
from labbox import PYZ, SESSION_IMAGE, SSH_CONFIG, Attached, Laptop, Result, as_root, first_process, ssh, token
from labkit.inventory import HOSTS, RUN
from notebook import Notebook
from outage import without_network, without_sshd
from pages import execute, open_notebook, open_workbench
from person import HEAR, Person, echoes, joined, person

from mlbox.core import wire

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

Json = dict[str, Any]
WS, VIA = "ws", "gpu1"
UUIDS = [HOSTS[WS].gpu_uuid(0), HOSTS[WS].gpu_uuid(1)]
KEY = "/home/ada/.local/state/mlbox/reverse_ed25519.ws"


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
    assert ssh(VIA, "ss -Hltn | grep -vE ':22 |127[.]0[.]0[.]11:' || true") == ""  # but sshd, and Docker's own DNS
    [listed] = [s for s in lab.laptop.sessions() if s["id"] == id_]
    assert (listed["host"], listed["via"], listed["trouble"]) == (WS, VIA, {})
    told = lab.run("status").out
    assert re.search(r"^ws  1 of 2 GPUs free · seen .* ago, by reverse tunnel through gpu1$", told, re.M), told
    assert "session far  running on GPU 1" in told
    assert f"{id_}  on ws" in lab.run("session", "info", "far").out


_ASK = """
import glob, socket, sys
for path in glob.glob("/run/mlbox/**", recursive=True):
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.settimeout(5)
            s.connect(path)
            s.sendall(sys.argv[1].encode() + bytes([10]))
            print("told" if b"@mlbox" in s.recv(4096) else "asked", path)
        except OSError:
            pass
"""


def test_what_works_inside_does_not_speak_for_the_workstation(lab: Lab, session: Attached) -> None:
    """The laptop's calls come to ws by a socket there, and are answered by a program: neither is the container's."""
    config = str(lab.laptop.home / ".local/state/mlbox/ssh_config")

    def inside(command: str) -> subprocess.CompletedProcess[str]:
        argv = ("ssh", "-F", config, "-o", "BatchMode=yes", "far", command)
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)

    request = wire.Request("sessions", {"root": lab.root}, "0123456789abcdef").encode().decode().strip()
    said = inside(f"python3 -c {shlex.quote(_ASK)} {shlex.quote(request)}")
    assert "asked /run/mlbox/s/ssh.sock\n" in said.stdout and "told" not in said.stdout, said
    assert "Read-only file system" in inside("true >>/run/mlbox/mlbox-host.pyz").stderr
    short = session.block()["id"][-8:].lower()
    assert on_ws(f"ls -d /tmp/mlbox-1001/{short}.calls").strip().endswith(".calls")


def test_nobody_dials_it(lab: Lab) -> None:
    for host in ("gpu1", "gpu2"):
        dial = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{HOSTS[WS].address}/22' 2>&1; echo $?"
        assert ssh(host, dial).split()[-1] != "0"
    with pytest.raises(OSError):
        socket.create_connection((HOSTS[WS].address, 22), 3)
    assert as_root(WS, "ss", "-Hltn", "sport = :22") != ""  # though there is somebody to answer


def test_another_user_of_the_rendezvous_is_shut_out(lab: Lab, session: Attached) -> None:
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    before = as_root(VIA, "sh", "-c", "stat -c '%i %n' /tmp/mlbox-1001/r.*")
    tries = (f"python3 -c '{connect}'", "cat", "rm -f", "chmod 666", "ln -sfn /tmp/elsewhere", "mv -f -T /tmp/by-bob")
    ssh(f"{VIA}-bob", "touch /tmp/by-bob")
    for path in sockets():
        for attempt in tries:
            done = ssh(f"{VIA}-bob", f"{attempt} {path} 2>&1 && echo done || true")
            assert done.endswith("Permission denied\n"), (attempt, done)
    for attempt in ("ls", "rmdir", "chmod 777", "mv -T /tmp/by-bob", "rm -rf"):
        done = ssh(f"{VIA}-bob", f"{attempt} /tmp/mlbox-1001 2>&1 && echo done || true")
        assert re.search(r"Permission denied|Operation not permitted|cannot (overwrite|remove)", done), (attempt, done)
        assert "done" not in done
    ssh(f"{VIA}-bob", "rm /tmp/by-bob")
    assert as_root(VIA, "sh", "-c", "stat -c '%i %n' /tmp/mlbox-1001/r.*") == before
    block = session.block()
    look = f"""
    ps auxww; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' ' '
    for f in {lab.root}/users/ada/jobs/*/{block["id"]}/* {lab.root}/users/ada/jobs/*/{block["id"]}/attempts/1/*; do
      echo "$f"; cat "$f" | tr '\\0' ' '
    done"""
    seen = ssh(f"{VIA}-bob", f"({look}) 2>&1 || true")
    assert "rendezvous ws" in seen and block["id"] in seen  # that there is one is no secret
    for url in (block["jupyter"], block["vscode"]):
        assert token(url) not in seen
    assert not re.search(r"keeper\.log.*\n(?!cat: )", seen), seen


_BOBS = """
mkdir -m 777 /tmp/bobs-1001 && cd /tmp/bobs-1001 || exit
nohup python3 -c '
import os, socket, sys
os.umask(0)
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()
while True:
    c = s.accept()[0]
    open("heard", "ab").write(c.recv(4096) or b"nothing")
' r.%s.call >/dev/null 2>&1 &
until [ -e r.%s.call ]; do sleep 0.05; done
echo $!
"""


def test_a_folder_that_another_user_made_first_is_not_used(lab: Lab, session: Attached) -> None:
    """As he could after a reboot, when /tmp is empty."""
    short = session.block()["id"][-8:].lower()
    [before] = dialling()
    listener = ssh(f"{VIA}-bob", _BOBS % (short, short)).strip()
    # At once: a tunnel that finds its folder gone dials anew, and would make one of its own.
    as_root(VIA, "sh", "-c", "mv /tmp/mlbox-1001 /tmp/aside-1001; mv /tmp/bobs-1001 /tmp/mlbox-1001")
    try:
        as_root(WS, "kill", "-9", before, check=False)  # it may have found out by itself
        told = f"cat {lab.root}/users/ada/jobs/*/{session.block()['id']}/attempts/1/tunnel.json"
        refusal = "/tmp/mlbox-1001 is not a folder of yours"
        awaited(lambda: refusal in json.loads(as_root(VIA, "sh", "-c", told))["why"])
        for words in (("session", "info", "far"), ("session", "attach", "far", "--detach")):
            refused = lab.laptop.run(*words)
            assert refused.code != 0 and refusal in refused.err, refused.all
        assert ssh(f"{VIA}-bob", "cat /tmp/mlbox-1001/heard 2>/dev/null || true") == ""
    finally:
        ssh(f"{VIA}-bob", f"kill {listener}; rm -rf /tmp/mlbox-1001", check=False)
        as_root(VIA, "sh", "-c", "rm -rf /tmp/mlbox-1001; mv /tmp/aside-1001 /tmp/mlbox-1001")
    works(lab, session)


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with person("bob", tmp_path_factory.mktemp("bob") / "home", VIA) as made:
        yield made


@pytest.fixture
def shared(lab: Lab, session: Attached, bob: Person) -> Iterator[None]:
    done = lab.run("session", "share", "far", "bob")
    id_ = session.block()["id"]
    assert re.search(rf"^  bob comes by {VIA}, where the tunnel from {WS} ends\n.*mlbox attach {id_}$", done.out, re.M)
    yield
    lab.run("session", "unshare", "far", "bob")


def who_may_come(lab: Lab) -> Any:
    return lab.facts("session", "info", "far")["shared"]


def test_a_colleague_joins_it_at_the_rendezvous(lab: Lab, session: Attached, bob: Person, shared: None) -> None:
    id_ = session.block()["id"]
    assert who_may_come(lab) == ["bob"]
    (listed,) = bob.laptop.sessions(f"{VIA}-bob")
    assert (listed["id"], listed["owner"]) == (id_, "ada")
    with joined(bob, id_) as (client, block):
        client.wait_for("it is ada's: what you do in it is done as ada")
        assert get(block["vscode"]) == 200
        with Notebook(block["jupyter"]) as notebook:
            assert notebook.run("import os; print(os.environ['MLBOX_SESSION'])") == f"{id_}\n"
            done = bob.inside("mlbox-far", "id -un; echo $MLBOX_SESSION $NVIDIA_VISIBLE_DEVICES")
            assert done.stdout.split() == ["ada", id_, UUIDS[1]], done.stderr

        [before] = dialling()
        as_root(WS, "kill", "-9", before)
        awaited(lambda: dialling() not in ([], [before]))
        awaited(lambda: bob.inside("mlbox-far", "echo in").stdout == "in\n")
        with Notebook(block["jupyter"]) as notebook:  # by the same port
            assert notebook.run("1 + 1") == "2"
        assert client.process.poll() is None


def test_who_is_not_let_in_gets_nothing_at_the_rendezvous(
    lab: Lab, session: Attached, bob: Person, shared: None, tmp_path: Path
) -> None:
    id_ = session.block()["id"]
    door = f"/tmp/mlbox-1001.shared/{id_}"
    ways = as_root(VIA, "sh", "-c", f"ls -d {door}/*").split()
    assert len(ways) == 5  # the door, and bob's to jupyter, vscode, ssh and the guest
    with person("noisy", tmp_path / "home", VIA) as noisy:
        for words in (("attach", id_), ("info", id_), ("attach", "far"), ("shutdown", id_), ("share", id_, "noisy")):
            done = noisy.laptop.run("session", *words, "--host", f"{VIA}-noisy")
            assert done.code == 6, done.all
        assert noisy.laptop.sessions(f"{VIA}-noisy") == []
        for path in (*ways, f"/tmp/mlbox-1001/{id_[-8:].lower()}.control"):
            said = ssh(f"{VIA}-noisy", f"python3 -c {shlex.quote(HEAR)} {path}")
            assert re.search("^heard b''", said, re.M), (path, said)  # behind what the host says to who logs in
        assert "denied" in ssh(f"{VIA}-noisy", f"ls {door} 2>&1 || true")
    for words in (("share", id_, "noisy"), ("shutdown", id_)):
        done = bob.laptop.run("session", *words, "--host", f"{VIA}-bob")
        assert done.code == 3 and "far is ada's session" in done.err, done.all
    assert who_may_come(lab) == ["bob"]


def test_unshare_cuts_what_a_colleague_has_open(lab: Lab, session: Attached, bob: Person) -> None:
    id_ = session.block()["id"]
    lab.run("session", "share", "far", "bob")
    with joined(bob, id_) as (client, _):
        shell = bob.shell("mlbox-far")
        assert echoes(shell)
        keys = f"cat /tmp/mlbox-1001/{id_[-8:].lower()}/conf/via_keys"
        assert bob.key.with_suffix(".pub").read_text().split()[1] in on_ws(keys)
        assert re.search(
            "no longer shared with bob; [0-9]+ connections? ended", lab.run("session", "unshare", "far", "bob").out
        )
        assert shell.wait(60) == 255
        client.wait_for("of yours, or shared with you, is running")
        assert client.process.wait(60) == 0
        assert on_ws(keys) == "" and who_may_come(lab) == []
    assert bob.laptop.run("attach", id_, "--host", f"{VIA}-bob").code == 6
    works(lab, session)


def test_a_share_is_taken_back_while_its_tunnel_is_down(lab: Lab, session: Attached, bob: Person) -> None:
    id_ = session.block()["id"]
    lab.run("session", "share", "far", "bob")
    words = ("OUTPUT", "-p", "tcp", "--dport", "22", "--syn", "-j", "DROP")
    as_root(WS, "iptables", "-w", "-I", *words)
    try:
        as_root(WS, "kill", "-9", *dialling())
        awaited(lambda: sockets() == [])
        gone = bob.laptop.run("session", "info", id_, "--host", f"{VIA}-bob")
        assert "nobody answers at the door of ada's session" in gone.err
        assert "far is no longer shared with bob" in lab.run("session", "unshare", id_, "bob").out
    finally:
        as_root(WS, "iptables", "-w", "-D", *words)
    works(lab, session)
    assert bob.laptop.run("attach", id_, "--host", f"{VIA}-bob").code == 6


def test_a_killed_tunnel_is_back_on_the_same_ports(lab: Lab, session: Attached) -> None:
    [before] = dialling()
    as_root(WS, "kill", "-9", before)
    awaited(lambda: dialling() not in ([], [before]))
    works(lab, session)


def test_an_open_page_goes_on_after_the_tunnel_was_killed(lab: Lab, session: Attached, tmp_path: Path) -> None:
    """In a browser, without a reload: the page's own WebSocket finds its kernel again by the new tunnel."""
    block, [before] = session.block(), dialling()
    with Browser(tmp_path / "profile") as browser:
        page = open_notebook(browser, block["jupyter"])
        execute(page, "import os; kept = os.uname().nodename; print(kept, 6 * 7)", "far 42", "reverse-before")
        page.value("window.neverReloaded = true")
        as_root(WS, "kill", "-9", before)
        awaited(lambda: dialling() not in ([], [before]))
        works(lab, session)
        execute(page, "print('still', kept)", "still far", "reverse-after")
        assert page.value("window.neverReloaded") is True
        open_workbench(browser, block["vscode"].split()[0])
    on_ws("rm -rf ~/mlbox/*.ipynb ~/mlbox/.ipynb_checkpoints")


def test_the_rendezvous_sshd_is_restarted(lab: Lab, session: Attached) -> None:
    [before] = dialling()
    with without_sshd(VIA):
        awaited(lambda: before not in dialling())
        awaited(lambda: sockets_as_root() == [])
    works(lab, session)


def sockets_as_root() -> list[str]:
    return as_root(VIA, "find", "/tmp/mlbox-1001", "-name", "r.*").split()


def test_silence_on_the_way_to_the_rendezvous(lab: Lab, session: Attached) -> None:
    """Until ws's ssh gives its connection up. No end tells the other, nobody types anything."""
    block, [before], by = session.block(), dialling(), keeper(session.block()["id"])
    heard = len(session.lines)
    with without_network(WS):
        session.wait_for("tunnel lost", after=heard)
        awaited(lambda: before not in dialling())
    session.wait_for("tunnel is back after .*; the ports are the same", after=heard)
    works(lab, session)
    assert session.process.poll() is None and keeper(block["id"]) == by
    [listed] = [one for one in lab.laptop.sessions() if one["name"] == "far"]
    assert (listed["id"], listed["trouble"]) == (block["id"], {})
    awaited(lambda: len(sockets()) == 5)


def test_a_rendezvous_two_hundred_milliseconds_away_with_two_percent_lost(
    lab: Lab, session: Attached, bob: Person, shared: None, tmp_path: Path
) -> None:
    """Dialled anew over such a way, the tunnel carries all that it did; a colleague joins over it."""
    address = HOSTS[VIA].address
    begin = f"import socket, time; t = time.time(); socket.create_connection(('{address}', 22)); print(time.time() - t)"
    with far_apart(first_process(WS), first_process(VIA), 0.2, 0.02):
        as_root(WS, "ip", "route", "add", f"{address}/32", "dev", NEAR)
        assert float(on_ws(f'python3 -c "{begin}"')) >= 0.2
        [before] = dialling()
        as_root(WS, "kill", "-9", before)
        awaited(lambda: dialling() not in ([], [before]))
        works(lab, session)
        assert workbench.greets(session.block()["vscode"])
        with Notebook(session.block()["jupyter"]) as notebook:
            assert notebook.run("6 * 7") == "42"
        for number in range(50):
            (tmp_path / f"{number}.txt").write_text(f"{number}")
        config = str(lab.laptop.home / ".local/state/mlbox/ssh_config")
        copied = ("rsync", "-a", "-e", f"ssh -F {config} -o BatchMode=yes", f"{tmp_path}/", "far:/tmp/far/")
        subprocess.run(copied, check=True, stdin=subprocess.DEVNULL, timeout=120)
        with joined(bob, session.block()["id"]):
            assert bob.inside("mlbox-far", "ls /tmp/far/*.txt | wc -l").stdout == "50\n"
        [before] = dialling()
    as_root(WS, "kill", "-9", before)  # whose way is gone
    awaited(lambda: dialling() not in ([], [before]))
    works(lab, session)


def test_ssh_by_name_waits_for_a_tunnel_that_is_down(lab: Lab, session: Attached) -> None:
    """Its sockets are gone from the rendezvous, so it is looked for, and found as soon as they are back."""
    id_ = session.block()["id"]
    words = ("OUTPUT", "-p", "tcp", "--dport", "22", "--syn", "-j", "DROP")
    as_root(WS, "iptables", "-w", "-I", *words)
    try:
        [before] = dialling()
        as_root(WS, "kill", "-9", before)
        awaited(lambda: sockets() == [])
        config = str(lab.laptop.home / ".local/state/mlbox/ssh_config")
        argv = ("ssh", "-F", config, "-o", "BatchMode=yes", "far", "echo $MLBOX_SESSION")
        asked = subprocess.Popen(argv, env=lab.laptop.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        awaited(lambda: b"\0".join((b"ssh-config", b"proxy", id_.encode())) in _commands(lab.laptop))
        assert asked.poll() is None
    finally:
        as_root(WS, "iptables", "-w", "-D", *words)
    assert asked.communicate(timeout=120)[0].split() == [id_]
    works(lab, session)


def _commands(laptop: Laptop) -> bytes:
    """The command lines of what this laptop runs."""
    mark, found = f"HOME={laptop.home}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes())
    return b"\n".join(found)


def test_a_laptop_that_never_saw_it_asks_for_it_on_its_host(lab: Lab, session: Attached, tmp_path: Path) -> None:
    id_ = session.block()["id"]
    other = Lab(Laptop(tmp_path / "stranger"), lab.root)
    joined = other.laptop.attach("session", "attach", "far", "--host", WS)
    assert joined.block()["id"] == id_
    assert joined.stop() == 0
    stranger = Lab(Laptop(tmp_path / "another"), lab.root)
    assert f"{id_}  on ws" in stranger.run("session", "info", "far", "--host", WS).out
    assert [one["id"] for one in stranger.run("session", "list", WS, "--json").json()] == [id_]  # type: ignore[attr-defined]
    assert [one["name"] for one in stranger.run("session", "list", "gpu1", WS, "--json").json()] == ["far"]  # type: ignore[attr-defined]
    refused = stranger.run("session", "info", "near", "--host", WS, code=6)
    assert "no session 'near' is running on ws, which is met at gpu1" in refused.err
    other.laptop.close()


def test_the_tunnels_end_at_the_rendezvous_is_killed(lab: Lab, session: Attached) -> None:
    """Its names are stale then, for nobody removes them; and ssh stays for the connections that are open."""
    [before] = dialling()
    port = urlsplit(session.block()["jupyter"]).port
    with socket.create_connection(("127.0.0.1", port or 0)) as tab:
        tab.sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert tab.recv(4096).startswith(b"HTTP/1.1 200")
        as_root(VIA, "pkill", "-9", "-u", "ada", "-f", "rendezvous ws ")
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
    other.run("session", "share", "far", "bob")
    assert "far has ended; 1 GPU free again" in other.run("session", "shutdown", "far").out
    session.wait_for("far: the session has ended: shut down")
    assert (session.process.wait(60), again.process.wait(60)) == (0, 0)
    awaited(lambda: sockets() == [])
    awaited(lambda: not re.search("[.](share|control)$", ssh(VIA, "ls /tmp/mlbox-1001"), re.M))
    assert_nothing_left(lab)
    assert "no session of yours is running on ws\n" in lab.run("session", "list", WS).err
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
        assert [one["host"] for one in lab.laptop.sessions()] == ["gpu2"]  # and the list forgets no `ssh met`
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


@pytest.fixture(scope="module")
def known(lab: Lab) -> str:
    """The id of a job that waits in the lab's ROOT: for one that is not there the key gets no names."""
    lab.run("queue", "create", "held")
    lab.run("queue", "pause", "held")
    done: Any = lab.run("submit", "--json", "--no-code", "--gpus", "0", "--queue", "held", "--", "true").json()
    return str(done["jobs"][0]["id"])


@pytest.mark.parametrize("host", ["gpu1", "gpu2", "gpu3"])
@pytest.mark.hosts("gpu1", "gpu2", "gpu3")
def test_the_key_forwards_sockets_and_does_nothing_else(
    lab: Lab, key: Path, tmp_path: Path, host: str, known: str
) -> None:
    """By OpenSSH 8.4, 9.2 and 10.0."""
    [line] = [one for one in keys_there().splitlines() if "mlbox-reverse-ws" in one]
    if host != VIA:
        lab.run("status", host)  # plants the program
        ssh(host, f"echo {shlex.quote(line)} >>~/.ssh/authorized_keys")
    try:
        _attack(key, host, tmp_path, known)
    finally:
        if host != VIA:
            ssh(host, "sed -i '/mlbox-reverse-ws/d' ~/.ssh/authorized_keys")


def _attack(key: Path, host: str, tmp_path: Path, id_: str) -> None:
    for words in (("",), ("id",), ("-tt", "id"), (f"{id_}; id",), ("-s", "sftp")):
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
    # No names of a session by an id that only ends as its own does
    folder, forged = f"/tmp/mlbox-1001/r.{id_[-8:].lower()}", "0" * 18 + id_[-8:]
    named = ("-R", f"{folder}.00c0ffee.guest:127.0.0.1:1")
    assert f"there is no session {forged} in " in said_to(key, host, *named, f"{forged} 00c0ffee guest").stdout
    # And what it is for
    argv = with_key(key, host, *named, f"{id_} 00c0ffee guest")
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
        except (BrokenPipeError, ConnectionResetError):  # refused before or after the words were sent
            return b""
        finally:
            process.kill()  # a SIGTERM may be missed


_BY_KEY = """
cd; known=$(mktemp); echo "{host_key}" >$known
by_key() {{
  timeout 60 ssh -F none -i {key} -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile=$known "$@" </dev/null
}}
"""
_SOCKS = """
import socket, sys, time
for _ in range(200):
    try: s = socket.create_connection(("127.0.0.1", 18879)); break
    except OSError: time.sleep(0.05)
s.settimeout(10)
s.sendall(b"\\5\\1\\0"); s.recv(2); s.sendall(b"\\5\\1\\0\\1\\x7f\\0\\0\\1\\0\\x16")
got = b""
while len(got) < 14:
    data = s.recv(64)
    if not data: break
    got += data
print("SSH-" if b"SSH-" in got else "refused")
"""


def test_the_workstation_itself_gets_nothing_more_by_it(lab: Lab, known: str) -> None:
    """All that ssh can be asked for, with the key where it lies, while the request itself is a good one too."""
    address, good = f"ada@{HOSTS[VIA].address}", f"{known} 00c0ffee guest"
    [known] = re.findall(
        rf"^{HOSTS[VIA].address} (ssh-ed25519 \S+)", (SSH_CONFIG.parent / "known_hosts").read_text(), re.M
    )
    prelude = _BY_KEY.format(key=KEY, host_key=f"{HOSTS[VIA].address} {known}")

    def said(script: str) -> str:
        return on_ws(f"{prelude} {script} 2>&1 || true")

    only = "this key holds the reverse tunnels of mlbox's sessions, and does nothing else"
    for words in ("", "id", "scp -t /tmp"):
        done = said(f"by_key {address} {words}")
        assert only in done and "uid=" not in done, (words, done)
    assert said(f"by_key -s {address} sftp; echo ended with $?") == "ended with 2\n"  # a subsystem's words go nowhere
    assert "PTY allocation request failed" in said(f"by_key -tt {address} id")
    # Forwards: local, by SOCKS, by stdin, and listening there
    assert "SSH-" not in said(f"by_key -W 127.0.0.1:22 {address}")
    assert said(f"by_key -N -D 127.0.0.1:18879 {address} & python3 -c '{_SOCKS}'; kill %1; wait").startswith("refused")
    for listening in ("18877:127.0.0.1:22", "0:127.0.0.1:22", "0.0.0.0:18877:127.0.0.1:22"):
        done = said(f"by_key -N -o ExitOnForwardFailure=yes -R {listening} {address}")
        assert "remote port forwarding failed" in done, done
    # X11 and the agent, beside a good request
    with _sshd_that_forwards_x11() as port:
        there = f"-p {port} -o HostKeyAlias={HOSTS[VIA].address}"
        assert "X11 forwarding request failed" in said(f"DISPLAY=:7 by_key {there} -Y {address} '{good}'")
    there = f"/tmp/mlbox-1001/r.{good[18:26].lower()}"
    forward = f"-A -R {there}.00c0ffee.guest:127.0.0.1:1 {address}"
    held = f"eval $(ssh-agent); sleep 60 | by_key {forward} '{good}'; kill $SSH_AGENT_PID"
    held = prelude.replace("</dev/null", "") + held
    on_ws(f"nohup bash -c {shlex.quote(held)} >/dev/null 2>&1 & true")
    try:
        awaited(lambda: f"{there}.guest" in sockets())
        assert ssh(VIA, "find /tmp -user ada -name 'agent.*' 2>/dev/null || true") == ""
    finally:
        on_ws("pkill -f '^ssh.*00c0ffee'; pkill -x ssh-agent; pkill -fx 'sleep 60'", check=False)
    awaited(lambda: f"{there}.guest" not in sockets())


@contextmanager
def _sshd_that_forwards_x11() -> Iterator[int]:
    """One more on the rendezvous. It wants to see an xauth, and to bind all of the loopback addresses, of which a host
    without IPv6 has but one."""
    as_root(VIA, "sh", "-c", "[ -e /usr/bin/xauth ] || install -m 755 /bin/true /usr/bin/xauth")
    as_root(VIA, "/usr/sbin/sshd", "-p", "2222", "-o", "AddressFamily=inet", "-o", "PidFile=/run/sshd-x11.pid")
    try:
        yield 2222
    finally:
        as_root(
            VIA, "sh", "-c", "kill $(cat /run/sshd-x11.pid); ! cmp -s /bin/true /usr/bin/xauth || rm /usr/bin/xauth"
        )


def test_remove_takes_the_line_out_and_the_key_goes(lab: Lab, key: Path) -> None:
    before = keys_there()
    lab.run("host", "remove", WS, "-y")
    assert keys_there() == "".join(f"{one}\n" for one in before.splitlines() if "mlbox-reverse-ws" not in one)
    assert "Permission denied" in said_to(key, VIA, "id").stderr
    awaited(lambda: on_ws(f"ls {KEY} 2>/dev/null || true") == "")  # by its cron
    assert "out_of_reach" in json.dumps(lab.facts("status")) and "reverse tunnel" not in lab.run("status").out
    assert "no host ws" in lab.run("host", "remove", WS, "-y", code=6).err
