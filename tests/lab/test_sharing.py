"""Sharing: a colleague with a login and a key of their own joins by the owner's word, and by nothing else."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websocket
from aftermath import watched
from labbox import PYTHON_IMAGE, SESSION_IMAGE, SSH_CONFIG, Attached, Laptop, as_root, left_behind, ssh
from labkit.inventory import RUN
from notebook import Notebook
from person import HEAR, Person, echoes, joined
from person import person as somebody
from queuelab import awaited
from terminal import at_terminal

from mlbox.core import wire

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

Json = dict[str, Any]
HOST, NAME = "gpu2", "ours"
THEIRS = f"mlbox-{NAME}"  # as a colleague's ssh knows it
OWNER_FOLDER = "/tmp/mlbox-1001.shared"
# A door of one's own with somebody else's session's id, whose keeper says what it likes.
FAKE = """
import json, os, socket, sys
folder = f"/tmp/mlbox-{os.getuid()}.shared/{sys.argv[1]}"
os.makedirs(folder, exist_ok=True); os.chmod(os.path.dirname(folder), 0o755); os.chmod(folder, 0o755)
s = socket.socket(socket.AF_UNIX); s.bind(folder + "/door"); os.chmod(folder + "/door", 0o666); s.listen()
print("up", flush=True)
while True:
    c, _ = s.accept(); c.recv(4096)
    words = {"name": sys.argv[2], "secret": "0" * 32, "services": {"jupyter": {"token": "mine"}}}
    c.sendall(json.dumps(words).encode() + b"\\n"); c.close()
"""


@dataclass(frozen=True)
class Ours:
    """ada's session, with ada attached."""

    laptop: Laptop
    client: Attached
    block: dict[str, str]

    @property
    def id(self) -> str:
        return self.block["id"]

    def tell(self, verb: str, user: str, code: int = 0) -> Json:
        done = self.laptop.run("session", verb, NAME, user, "--host", HOST, "--json")
        assert done.code == code, done.all
        reply = done.json() if code == 0 else {"err": done.err}
        assert isinstance(reply, dict)
        return reply

    def shared_with(self) -> list[str]:
        found = self.laptop.run("session", "info", NAME, "--host", HOST, "--json").json()
        assert isinstance(found, dict)
        return list(found["shared"])


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    with watched(tmp_path_factory.mktemp("ada") / "home", HOST) as laptop:
        try:
            client = laptop.attach("session", HOST, "--image", SESSION_IMAGE, "--gpus", "0", "--name", NAME)
            yield Ours(laptop, client, client.block())
            assert client.stop() == 0
        finally:
            laptop.run("session", "shutdown", NAME, "--host", HOST)


@pytest.fixture(autouse=True)
def clean_hosts() -> None:
    """The session is this file's; fixture `ours` looks after it, and each test that starts another after that one."""


@pytest.fixture
def shared(ours: Ours) -> Iterator[Ours]:
    assert ours.tell("share", "bob")["changed"]
    yield ours
    ours.tell("unshare", "bob")


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with somebody("bob", tmp_path_factory.mktemp("bob") / "home", HOST) as made:
        yield made


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with somebody("noisy", tmp_path_factory.mktemp("noisy") / "home", HOST) as made:
        yield made


def heard_by(user: str, path: str, *question: str) -> str:
    said = ssh(f"{HOST}-{user}", f"python3 -c {shlex.quote(HEAR)} {path} {' '.join(map(shlex.quote, question))}")
    return next(line for line in said.splitlines() if line.startswith("heard"))


def get_nothing(ours: Ours, person: Person) -> None:
    """All that somebody can try who is not let in."""
    user = person.user
    for words in (
        ("attach", ours.id),
        ("info", ours.id),
        ("attach", NAME),
        ("shutdown", ours.id),
        ("attach", f"ada/{NAME}"),
    ):
        done = person.laptop.run("session", *words, "--host", f"{HOST}-{user}")
        assert done.code == 6, done.all
    assert person.laptop.sessions(f"{HOST}-{user}") == []
    listed = as_root(
        HOST, "sh", "-c", f"ls -d {OWNER_FOLDER}/*/* /tmp/mlbox-1001/*/s/* /tmp/mlbox-1001/*.control || true"
    )
    paths = listed.split()
    assert len(paths) >= 6  # nobody but root could name them all
    for path in paths:
        assert "heard b''" in heard_by(user, path), path
        assert "heard b''" in heard_by(user, path, '{"op": "enter", "keys": []}'), path
    root = "/home/ada/.local/share/mlbox"
    for verb, args in (
        ("connect", {"socket": f"/tmp/mlbox-1001/{ours.id[-8:].lower()}/s/ssh.sock"}),
        ("sessions", {"session": ours.id, "reveal": True, "root": root}),
        ("share", {"session": ours.id, "user": user, "lets": True, "root": root}),
        ("share", {"session": ours.id, "user": user, "lets": True}),
    ):
        request = wire.Request(verb, args, "0123456789abcdef").encode().decode().strip()
        program = "python3 -I -S $(ls -t ~/.cache/mlbox/mlbox-*.pyz | head -1) host"
        said = ssh(f"{HOST}-{user}", f"echo {shlex.quote(request)} | {program} 2>&1 || true")
        assert '"error"' in said and '"reply"' not in said, (verb, said)
    for command in (f"ls {OWNER_FOLDER}/*", "cat /tmp/mlbox-1001/*.share", "ls /tmp/mlbox-1001"):
        assert re.search("denied|No such|cannot", ssh(f"{HOST}-{user}", f"{command} 2>&1 || true")), command


# ---- the owner's word ---------------------------------------------------------------------------------------


def test_before_it_is_shared_nobody_gets_anything(ours: Ours, bob: Person, noisy: Person) -> None:
    for person in (bob, noisy):
        get_nothing(ours, person)
    assert ours.shared_with() == []


def test_who_can_not_be_let_in_is_said(ours: Ours) -> None:
    assert "no user 'nobody-here' on gpu2" in ours.tell("share", "nobody-here", code=3)["err"]
    assert "ada is you" in ours.tell("share", "ada", code=3)["err"]
    assert ours.laptop.run("session", "share", "no-such", "bob", "--host", HOST).code == 6
    assert ours.shared_with() == []


def test_it_may_be_said_twice(ours: Ours) -> None:
    for verb, people in (("share", ["bob"]), ("unshare", [])):
        assert [ours.tell(verb, "bob")["changed"] for _ in range(2)] == [True, False]
        assert ours.shared_with() == people


# ---- a colleague --------------------------------------------------------------------------------------------


def test_a_colleague_works_in_it(shared: Ours, bob: Person) -> None:
    (listed,) = bob.laptop.sessions(f"{HOST}-bob")
    assert (listed["id"], listed["owner"]) == (shared.id, "ada")
    assert f"{NAME} (ada's)" in bob.laptop.run("session", "list", f"{HOST}-bob").out
    with joined(bob, shared.id) as (client, block):
        assert (block["name"], block["id"]) == (NAME, shared.id)
        client.wait_for("it is ada's: what you do in it is done as ada")
        with Notebook(block["jupyter"]) as notebook:
            assert notebook.run("import os; print(os.environ['MLBOX_SESSION'])") == f"{shared.id}\n"
        assert "vscode" in block
        done = bob.inside(THEIRS, "id -un; echo $MLBOX_SESSION")
        assert done.stdout.split() == ["ada", shared.id], done.stderr
        known = (bob.laptop.home / f".local/state/mlbox/ssh.d/{shared.id}.known_hosts").read_text().split()
        own = ssh(HOST, f"cat /tmp/mlbox-1001/{shared.id[-8:].lower()}/guest/ssh_host_ed25519_key.pub").split()
        assert known[1:3] == own[:2]
        settings = subprocess.run(bob.ssh("-G", THEIRS), env=bob.laptop.env, capture_output=True, text=True, check=True)
        assert "stricthostkeychecking true" in settings.stdout
        assert bob.inside(NAME, "true").returncode == 255  # who names a session takes no name of a colleague's machines
        by_port = client.wait_for(r"\(port (\d+)\)")[1]
        assert bob.inside(f"ssh://ada@localhost:{by_port}", "echo in").stdout == "in\n"
        told = bob.laptop.run("session", "info", NAME).out
        assert "with you" in told and "user:    ada" in told


@contextmanager
def made_inside(person: Person, make: str, undo: str) -> Iterator[None]:
    """Something in /run/mlbox, by a colleague who works in the session, and is its owner there."""
    done = person.inside(THEIRS, f"cd /run/mlbox && {make}")
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        assert person.inside(THEIRS, f"cd /run/mlbox && {undo}").returncode == 0


def test_who_works_inside_does_not_reach_the_owner_s_host(shared: Ours, bob: Person) -> None:
    """Names in /run/mlbox are looked up by the owner's keeper on the host, where a link leads elsewhere."""
    with joined(bob, shared.id):
        for file in ("mlbox-host.pyz", "keeper.lock", "conf/authorized_keys", "conf/session.json", "conf/x", "x"):
            done = bob.inside(THEIRS, f"true >>/run/mlbox/{file}")
            assert done.returncode != 0 and "Read-only file system" in done.stderr, (file, done)
        [way] = as_root(HOST, "sh", "-c", f"ls {OWNER_FOLDER}/{shared.id}/*.jupyter").split()
        question = "GET /version HTTP/1.0\r\n\r"
        assert "heard b'HTTP/1." in heard_by("bob", way, question)
        swap = "cd s && mv jupyter.sock jupyter.real && ln -s /var/run/docker.sock jupyter.sock"
        with made_inside(bob, swap, "cd s && mv jupyter.real jupyter.sock"):
            assert "heard b''" in heard_by("bob", way, question)
            hers = shared.block["jupyter"].replace("/lab?", "/api/status?")
            with urllib.request.urlopen(hers, timeout=60) as answer:  # by sshd, which follows links
                assert b"kernels" in answer.read()
        assert "heard b'HTTP/1." in heard_by("bob", way, question)

        trap = "ln -s /home/ada/.ssh/authorized_keys x.log; mkfifo y.log; ln -s /dev/zero z.log"
        with made_inside(bob, f"cd log && {{ {trap}; }}", "cd log && rm x.log y.log z.log"):
            request = wire.Request("sessions", {"session": shared.id, "logs": True}, "0123456789abcdef").encode()
            program = "timeout 60 python3 -I -S $(ls -t ~/.cache/mlbox/mlbox-*.pyz | head -1) host"
            for user in (HOST, f"{HOST}-bob"):
                said = ssh(user, f"echo {shlex.quote(request.decode().strip())} | {program}")
                logs = json.loads(re.findall(r"\{.*\}", said)[-1])["reply"]["logs"]
                assert logs["jupyter"] and [logs[name] for name in "xyz"] == ["", "", ""], logs


def test_a_colleague_s_menu_has_no_shutdown(shared: Ours, bob: Person) -> None:
    with at_terminal(bob.laptop, "attach", shared.id) as terminal:
        terminal.wait_for(r"the session stays\)\s+> ")
        terminal.say("shutdown")
        terminal.wait_for("only its owner ends it")
        terminal.say("d")
        assert terminal.end() == 0
    bob.laptop.run("tunnels", "stop", NAME)


def test_a_colleague_can_neither_end_nor_share_it(shared: Ours, bob: Person) -> None:
    for words in (("shutdown", shared.id), ("share", shared.id, "noisy"), ("unshare", shared.id, "ada")):
        done = bob.laptop.run("session", *words, "--host", f"{HOST}-bob")
        assert done.code == 3 and f"{NAME} is ada's session" in done.err, done.all
    assert shared.shared_with() == ["bob"]


def test_a_third_user_gets_nothing_meanwhile(shared: Ours, bob: Person, noisy: Person) -> None:
    with joined(bob, shared.id) as (_, block):
        get_nothing(shared, noisy)
        with Notebook(block["jupyter"]) as notebook:
            assert notebook.run("1 + 1") == "2"


def test_unshare_cuts_what_is_open_and_the_owner_goes_on(ours: Ours, bob: Person, noisy: Person) -> None:
    ada = Person("ada", ours.laptop, RUN / "ssh/id_ed25519")
    ours.tell("share", "bob")
    with joined(bob, ours.id) as (client, block), Notebook(ours.block["jupyter"]) as hers:
        his = Notebook(block["jupyter"])
        his.__enter__()
        assert (his.run("2"), hers.run("3")) == ("2", "3")
        shells = {"ada": ada.shell(NAME), "bob": bob.shell(THEIRS)}
        assert all(map(echoes, shells.values()))

        said = ours.tell("unshare", "bob")
        assert said["changed"] and said["ended"] >= 2
        assert shells["bob"].wait(60) == 255
        with pytest.raises((websocket.WebSocketException, OSError)):
            his.run("2")
        client.wait_for("of yours, or shared with you, is running")
        assert client.process.wait(60) == 0
        assert echoes(shells["ada"]) and hers.run("3") == "3"

        assert bob.inside(THEIRS, "true").returncode == 255
        assert bob.key.with_suffix(".pub").read_text().split()[1] not in ssh(
            HOST, f"cat /tmp/mlbox-1001/{ours.id[-8:].lower()}/conf/*_keys"
        )
        for person in (bob, noisy):
            get_nothing(ours, person)
    shells["ada"].kill()
    shells["ada"].communicate()


def test_a_killed_keeper_s_successor_lets_the_same_colleague_in(shared: Ours, bob: Person) -> None:
    with joined(bob, shared.id) as (client, block):
        pid = f"/tmp/mlbox-1001/{shared.id[-8:].lower()}/keeper.pid"
        before = json.loads(ssh(HOST, f"cat {pid}"))["pid"]
        ssh(HOST, f"kill -KILL {before}; while kill -0 {before} 2>/dev/null; do sleep 0.05; done")
        assert shared.shared_with() == ["bob"]  # a call of the owner's: another keeper takes over
        awaited(lambda: bob.inside(THEIRS, "echo in").stdout == "in\n")
        with Notebook(block["jupyter"]) as notebook:
            assert notebook.run("1 + 1") == "2"
        assert client.process.poll() is None  # no keeper for a moment was no end of sharing


# ---- in another's name --------------------------------------------------------------------------------------


def test_its_door_can_not_be_prepared_by_somebody_else(ours: Ours, bob: Person) -> None:
    as_root(HOST, "rm", "-rf", OWNER_FOLDER)
    try:
        for make in (f"mkdir -m 777 {OWNER_FOLDER}", f"mkdir -p ~/trap/{ours.id} && ln -s ~/trap {OWNER_FOLDER}"):
            ssh(f"{HOST}-noisy", make)
            assert f"{OWNER_FOLDER} is not a folder of yours" in ours.tell("share", "bob", code=3)["err"]
            assert bob.laptop.run("attach", ours.id, "--host", f"{HOST}-bob").code == 6
            as_root(HOST, "rm", "-rf", OWNER_FOLDER)
        assert ours.shared_with() == []
    finally:
        as_root(HOST, "rm", "-rf", OWNER_FOLDER, "/home/noisy/trap")


def test_another_s_door_with_its_id_is_not_taken_for_it(ours: Ours, bob: Person, noisy: Person) -> None:
    argv = ("ssh", "-F", str(SSH_CONFIG), f"{HOST}-noisy", f"exec python3 -c {shlex.quote(FAKE)} {ours.id} {NAME}")
    fake = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    noisy.open.append(fake)
    fresh = Laptop(bob.laptop.home.parent / "fresh")  # of bob's, which knows nothing yet
    fresh.env.update({name: bob.laptop.env[name] for name in ("MLBOX_SSH_CONFIG", "XDG_RUNTIME_DIR")})
    at = ("--host", f"{HOST}-bob")
    try:
        assert fake.stdout is not None
        assert "up" in iter(lambda: fake.stdout.readline().decode().strip(), "")  # type: ignore[union-attr]
        ours.tell("share", "bob")
        for wanted in (ours.id, NAME):
            done = fresh.run("attach", wanted, *at)
            assert done.code == 6 and f"ada/{NAME}" in done.err and f"noisy/{NAME}" in done.err, done.all
        with joined(bob, f"ada/{ours.id}", *at) as (_, block):
            assert "token=mine" not in block["jupyter"]
        ours.tell("unshare", "bob")
        done = bob.laptop.run("attach", ours.id, *at)  # this laptop knows whose it was
        assert done.code == 3 and "was ada's, and now noisy offers one by its id" in done.err, done.all
        assert bob.inside(THEIRS, "true").returncode == 255
        told = fresh.run("session", "info", ours.id, *at).out  # that one hears whose it is
        assert "user:    noisy" in told and "with you" in told
    finally:
        ours.tell("unshare", "bob")
        fresh.close()
        as_root(HOST, "pkill", "-u", "noisy", "-f", ours.id, check=False)
        as_root(HOST, "rm", "-rf", "/tmp/mlbox-1003.shared")


# ---- elsewhere ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "words"),
    [
        pytest.param("gpu3", ("--runtime", "podman", "--image", PYTHON_IMAGE), id="podman"),
        pytest.param("noeng", ("--runtime", "process"), id="process"),
    ],
)
def test_in_podman_and_without_a_container(host: str, words: tuple[str, ...], tmp_path: Path) -> None:
    name, ada = f"on-{host}", Laptop(tmp_path / "ada")
    plain = ("--gpus", "0", "--no-jupyter", "--no-vscode", "--name", name, "--detach")
    try:
        with somebody("bob", tmp_path / "bob", host) as bob:
            started = ada.run("session", host, *words, *plain, timeout=400)
            assert started.code == 0, started.all
            done = ada.run("session", "share", name, "bob")
            assert done.code == 0 and ("whatever you can on" in done.all) == (host == "noeng"), done.all
            attach = re.search(r"mlbox (attach \w+)", done.out)
            assert attach is not None
            assert bob.laptop.run(*attach[1].split(), "--detach").code == 0
            shell = bob.shell(f"mlbox-{name}")
            assert echoes(shell)
            assert ada.run("session", "unshare", name, "bob").code == 0
            assert shell.wait(60) == 255 and bob.inside(f"mlbox-{name}", "true").returncode == 255
            assert ada.run("session", "share", name, "bob").code == 0
            bob.laptop.run("tunnels", "stop", "--all")
    finally:
        ada.run("session", "shutdown", name)
        ada.close()
    assert left_behind(host) == []  # an end is the end of sharing too
