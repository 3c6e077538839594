"""Nobody else: another user of the host, and another one of the laptop, try what they can, and get nothing."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from labbox import SESSION_IMAGE, Attached, Laptop, as_root, left_behind, ssh, token
from labkit.inventory import RUN

from mlbox.core import wire

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
NAME = "only-mine"
SECRET = "fritillary-7702"
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
# Bob's, in a session's place: it says what a guest says, as far as he can know, and notes whatever else it hears.
SQUAT = """
cd %s && umask 0
nohup python3 -c '
import os, socket, threading
def serve(name):
    s = socket.socket(socket.AF_UNIX); s.bind(name + ".sock"); s.listen()
    open("up", "a").write(name + chr(10))
    while True:
        threading.Thread(target=talk, args=(name, s.accept()[0]), daemon=True).start()
def talk(name, c):
    while heard := c.recv(4096):
        if b"ping" not in heard:
            open("heard", "ab").write(name.encode() + heard)
        c.sendall(b"{\\"ok\\": true, \\"ready\\": [], \\"proof\\": \\"00\\"}\\n")
for name in ("guest", "jupyter", "vscode", "ssh"):
    threading.Thread(target=serve, args=(name,)).start()
' >/dev/null 2>&1 &
until [ "$(cat up 2>/dev/null | wc -l)" = 4 ]; do sleep 0.05; done
echo $!
"""
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@dataclass(frozen=True)
class Mine:
    laptop: Laptop
    client: Attached
    block: dict[str, str]

    @property
    def boot(self) -> str:
        return f"/tmp/mlbox-1001/{self.block['id'][-8:].lower()}"

    @property
    def secrets(self) -> list[str]:
        return [token(self.block["jupyter"]), token(self.block["vscode"]), SECRET]

    def ports(self) -> list[int]:
        pages = [re.search(r"localhost:(\d+)", self.block[name]) for name in ("jupyter", "vscode")]
        shell = re.search(r"port (\d+)", self.block["ssh"])
        return [int(found[1]) for found in (*pages, shell) if found]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mine]:
    """A session with an attached client, and with the connection that `ssh NAME` leaves."""
    laptop = Laptop(tmp_path_factory.mktemp("mine") / "home")
    try:
        client = laptop.attach(
            "session",
            HOST,
            "--image",
            SESSION_IMAGE,
            "--gpus",
            "0",
            "--name",
            NAME,
            "--env",
            "SECRET",
            "--env",
            f"TYPED={SECRET}",
            SECRET=SECRET,
        )
        made = Mine(laptop, client, client.block())
        argv = ("ssh", "-F", str(laptop.home / ".local/state/mlbox/ssh_config"), "-o", "BatchMode=yes", NAME, "true")
        subprocess.run(argv, env=laptop.env, check=True, stdin=subprocess.DEVNULL)
        yield made
        assert client.stop() == 0
    finally:
        laptop.run("session", "shutdown", NAME, "--host", HOST)
        laptop.close()
    assert left_behind(HOST) == []


@pytest.fixture(autouse=True)
def clean_hosts() -> None:
    """The session is this file's; fixture `mine` looks after it."""


def as_bob(command: str) -> str:
    return ssh(f"{HOST}-bob", f"{command} 2>&1 || true")


def as_nobody(*argv: str, **env: str) -> str:
    """On this machine, what another user of it sees."""
    done = subprocess.run((*NOBODY, *argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


# ---- on the host -------------------------------------------------------------------------------------------


def test_no_socket_opens(mine: Mine) -> None:
    sockets = ssh(HOST, f"ls -d {mine.boot}/s/*").split()
    assert len(sockets) >= 4
    for path in sockets:
        assert "PermissionError" in as_bob(f"python3 -c {shlex.quote(CONNECT)} {path}"), path
    opened = ssh(HOST, f"python3 -c {shlex.quote(CONNECT)} {mine.boot}/s/ssh.sock && echo in")
    assert opened.split() == ["in"]  # its owner's does


def test_mlbox_itself_is_no_way_around(mine: Mine) -> None:
    """bob's own host part, asked for ada's socket, and with ada's ROOT for her session."""
    bob = Laptop(mine.laptop.home.parent / "bob")
    assert bob.run("status", f"{HOST}-bob").code == 0  # plants it
    root = "/home/ada/.local/share/mlbox"
    for verb, args in (
        ("connect", {"socket": f"{mine.boot}/s/ssh.sock"}),
        ("connect", {"socket": f"/tmp/mlbox-1002/../mlbox-1001/{Path(mine.boot).name}/s/ssh.sock"}),
        ("sessions", {"session": mine.block["id"], "reveal": True, "root": root}),
        ("shutdown", {"session": mine.block["id"], "root": root}),
    ):
        request = wire.Request(verb, args, "0123456789abcdef").encode().decode().strip()
        said = as_bob(f"echo {shlex.quote(request)} | python3 -I -S $(ls -t ~/.cache/mlbox/mlbox-*.pyz | head -1) host")
        assert '"error"' in said and '"reply"' not in said, (verb, said)
        assert not [secret for secret in mine.secrets if secret in said]
    for words in (("attach", NAME), ("info", mine.block["id"]), ("shutdown", NAME)):
        assert bob.run("session", *words, "--host", f"{HOST}-bob").code == 6
    assert len(mine.laptop.sessions(HOST)) == 1


def test_no_file_no_log_no_environment_is_read(mine: Mine) -> None:
    job = f"/home/ada/.local/share/mlbox/users/ada/jobs/*/{mine.block['id']}"
    for path in (
        f"{mine.boot}/conf/session.json", f"{mine.boot}/guest/ssh_host_ed25519_key", f"{mine.boot}/guest/login",
        f"{mine.boot}/log/jupyter.log", f"{job}/spec.json", f"{job}/attempts/1/keeper.log",
        "/home/ada/.local/share/mlbox/users/ada/home/.bashrc",
    ):  # fmt: skip
        said = as_bob(f"cat {path}")
        assert "Permission denied" in said or "No such file" in said, (path, said)
    environments = as_bob("cat /proc/[0-9]*/environ")
    arguments = as_bob("ps auxwwe")
    everything = as_bob("grep -ras fritillary- /tmp /var/tmp /dev/shm /home/ada")
    for said in (environments, arguments, everything):
        assert not [secret for secret in mine.secrets if secret in said]
    assert "jupyter" in arguments  # bob sees that it runs, and with which configuration file


def test_the_folder_for_its_sockets_can_not_be_prepared_by_somebody_else(mine: Mine) -> None:
    """bob makes it first, as a folder open to all, and as a link to one of his."""
    folder = "/tmp/mlbox-1003"  # noisy's, who has no session
    as_root(HOST, "rm", "-rf", folder)  # left by tests in which noisy looked around
    try:
        for make in (f"mkdir -m 777 {folder}", f"mkdir -p -m 777 ~/trap && ln -s ~/trap {folder}"):
            ssh(f"{HOST}-bob", make)
            laptop = Laptop(mine.laptop.home.parent / "noisy")
            done = laptop.run("session", f"{HOST}-noisy", "--runtime", "process", "--gpus", "0", "--no-jupyter",
                              "--no-vscode", "--detach")  # fmt: skip
            assert done.code == 5 and f"{folder} is not a folder of yours" in done.err, done.all
            assert as_bob("ls ~/trap").strip() in ("", "ls: cannot access '/home/bob/trap': No such file or directory")
            as_root(HOST, "rm", "-rf", folder)
    finally:
        as_root(HOST, "rm", "-rf", folder, "/home/bob/trap")


# ---- on the laptop -----------------------------------------------------------------------------------------


def test_its_connections_here_are_closed_to_others(mine: Mine) -> None:
    place = json.loads((mine.laptop.home / f".local/state/mlbox/ssh.d/{mine.block['id']}.json").read_text())
    python = "/usr/bin/python3"
    for path in (place["local"], place["control"]):
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(path)
        assert "PermissionError" in as_nobody(python, "-c", CONNECT, path), path
    assert "Permission denied" in as_nobody("ls", str(Path(place["local"]).parent))


def test_nothing_is_in_this_machines_process_list(mine: Mine) -> None:
    seen = as_nobody("ps", "auxwwe")
    assert str(RUN / "ssh/config") in seen  # there is something to see
    assert not [secret for secret in mine.secrets if secret in seen]


def test_what_is_kept_here_can_not_be_read(mine: Mine) -> None:
    kept = mine.laptop.home / ".local/state/mlbox"
    opened = [folder for folder in (kept, *kept.parents) if folder != Path("/tmp") and Path("/tmp") in folder.parents][
        1:
    ]
    modes = {folder: folder.stat().st_mode for folder in opened}  # pytest's own folders are closed
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o055)
        assert "mlbox" in as_nobody("ls", str(kept.parent))
        assert "Permission denied" in as_nobody("ls", str(kept))
        assert "Permission denied" in as_nobody("cat", str(kept / f"ssh.d/{mine.block['id']}.json"))
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_its_ports_here_ask_for_a_token_or_a_key(mine: Mine) -> None:
    jupyter, vscode, shell = mine.ports()
    for port, paths in ((jupyter, ("/api/kernels", "/api/contents")), (vscode, ("/", "/?folder=/workspace"))):
        for path in paths:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30)
            assert caught.value.code == 403
    argv = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "IdentityFile=none"]
    argv += ["-o", "UserKnownHostsFile=/dev/null", "-p", str(shell), "ada@127.0.0.1", "true"]
    asked = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert "Permission denied (publickey)" in asked.stderr


def test_its_ports_here_take_nobody_else(mine: Mine) -> None:
    """Not even with the token: who sends it may have read it from a screen."""
    pages = [mine.block[name].split()[0].replace("localhost", "127.0.0.1") for name in ("jupyter", "vscode")]
    for page in pages:
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert browser.open(page, timeout=30).status == 200
        refused = as_nobody("curl", "--silent", "--show-error", "--max-time", "30", page)
        assert re.search("reset by peer|Empty reply", refused), refused
    port = str(mine.ports()[2])
    argv = ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    refused = as_nobody("ssh", *argv, "-p", port, "ada@127.0.0.1", "true")
    assert re.search("reset by peer|Connection closed", refused), refused


def test_who_answers_in_the_sessions_place_is_sent_nothing(mine: Mine) -> None:
    """As another user could after a reboot, when /tmp is empty, while tunnels in the background dial anew."""
    sockets = f"{mine.boot}.s"
    given = f"mv {sockets} {sockets}.aside && install -d -o bob -m 777 {sockets} && chmod 711 /tmp/mlbox-1001"
    as_root(HOST, "sh", "-c", given)
    squatter = as_bob(SQUAT % sockets).strip()
    try:
        mine.client.wait_for(r"tunnel lost \(something else answers in the session's place\)")
        with socket.create_connection(("127.0.0.1", mine.ports()[0]), 30) as browser:
            browser.sendall(f"GET /api/status?token={mine.secrets[0]} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            holders = mine.laptop.run("tunnels", "list", "--json").json()
            assert isinstance(holders, list)
            for process in psutil.Process(holders[0]["pid"]).children(recursive=True):
                process.kill()
            mine.client.wait_for("something else answers in the session's place; nothing is sent there")
        assert as_root(HOST, "ls", sockets).split() == ["guest.sock", "jupyter.sock", "ssh.sock", "up", "vscode.sock"]
    finally:
        as_bob(f"kill {squatter}")
        as_root(HOST, "sh", "-c", f"rm -rf {sockets} && mv {sockets}.aside {sockets} && chmod 700 /tmp/mlbox-1001")
    mine.client.wait_for("tunnel is back")
    address = f"http://127.0.0.1:{mine.ports()[0]}/api/status?token={mine.secrets[0]}"
    assert urllib.request.urlopen(address, timeout=60).status == 200
