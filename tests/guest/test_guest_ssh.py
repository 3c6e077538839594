"""SSH into a session: the real ssh and sshd over a unix socket."""

from __future__ import annotations

import getpass
import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlbox.guest import logs, ssh

Json = dict[str, Any]
SSHD = shutil.which("sshd", path=f"/usr/sbin:/usr/local/sbin:{os.environ.get('PATH', '')}")
SFTP = next((p for p in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server") if os.path.exists(p)), "")
pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no OpenSSH here")

# Like `nc -U`, which is not everywhere.
_PROXY = """
import os, socket, sys, threading
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def send():
    while True:
        data = os.read(0, 65536)
        if not data:
            return s.shutdown(socket.SHUT_WR)
        s.sendall(data)
threading.Thread(target=send, daemon=True).start()
while True:
    data = s.recv(65536)
    if not data:
        os._exit(0)
    os.write(1, data)
"""
ENVIRONMENT = {
    "PLAIN": "value",
    "QUOTES": """a 'b' "c" `d` $(e) ${f} \\g""",
    "LINES": "first\nsecond\n",
    "SPACES": "  two  spaces ",
    "EMPTY": "",
    "UNICODE": "ünï 漢字",
    "MLBOX_SESSION": "01J0",
    "PATH": "/opt/mlbox/venv/bin:/usr/local/bin:/usr/bin:/bin",
}


def key(path: Path) -> str:
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)), check=True)
    return path.with_suffix(".pub").read_text().strip()


class Session:
    """A served session, and the laptop's way to it."""

    def __init__(self, run: Path, environment: dict[str, str]) -> None:
        self.run_folder, self.folder = run, run / "my folder"
        self.folder.mkdir()
        (run / "conf/authorized_keys").write_text(key(run / "laptop") + "\n")
        config = {
            "run": str(run), "folder": str(self.folder), "shell": "/bin/bash",
            "ssh": {"sshd": SSHD, "sftp_server": SFTP},
        }  # fmt: skip
        said: queue.Queue[Json] = queue.Queue()
        environment = {"HOME": os.environ["HOME"], **environment}  # not the login's, whose .bashrc bash would read
        ssh.serve(config, environment, (os.getuid(), os.getgid()), lambda name, state: said.put({name: state}))
        self.said: Json = said.get(timeout=20)

    def options(self, identity: str = "laptop") -> list[str]:
        (self.run_folder / "known").write_text(f"kind-otter {self.said['ssh'].get('host_key', '')}\n")
        proxy = " ".join(shlex.quote(w) for w in (sys.executable, "-c", _PROXY, str(self.run_folder / "s/ssh.sock")))
        (self.run_folder / "proxy").write_text(f"exec {proxy}\n")
        words = {
            "ProxyCommand": f"sh {self.run_folder}/proxy", "UserKnownHostsFile": str(self.run_folder / "known"),
            "GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes", "HostKeyAlias": "kind-otter",
            "IdentityFile": str(self.run_folder / identity), "IdentitiesOnly": "yes", "IdentityAgent": "none",
            "BatchMode": "yes", "User": getpass.getuser(), "LogLevel": "ERROR",
        }  # fmt: skip
        return ["-F", "/dev/null", *(word for name, value in words.items() for word in ("-o", f"{name}={value}"))]

    def ssh(self, *command: str, identity: str = "laptop", given: str = "") -> subprocess.CompletedProcess[str]:
        argv = ("ssh", *self.options(identity), "kind-otter", *command)
        return subprocess.run(argv, input=given, capture_output=True, text=True, timeout=60)


@pytest.fixture
def session(run: Path) -> Session:
    made = Session(run, ENVIRONMENT)
    assert made.said["ssh"]["state"] == "ready", made.said
    return made


def test_a_command(session: Session) -> None:
    done = session.ssh("echo out; echo err >&2; cat; exit 3", given="in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\nin", "err\n")


def test_the_environment_is_the_session_s_own(session: Session) -> None:
    done = session.ssh(f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'")
    found = json.loads(done.stdout)
    assert {name: found.get(name) for name in ENVIRONMENT} == ENVIRONMENT


def test_a_shell_starts_in_the_session_s_folder_with_its_environment(session: Session) -> None:
    done = session.ssh(given='pwd; printf "%s\\n" "$QUOTES" "$0"\n')
    assert done.stdout.splitlines() == [str(session.folder), ENVIRONMENT["QUOTES"], "/bin/bash"]


def test_its_log_has_a_bound(session: Session) -> None:
    log = session.run_folder / "log/ssh.log"
    with log.open("ab") as file:
        file.write(b"a connection\n" * (logs.LIMIT // 10))
    assert session.ssh("true").returncode == 0
    assert log.stat().st_size < logs.LIMIT
    assert log.read_text().startswith("a connection\n") and "Accepted" in log.read_text()


def test_a_command_s_own_quotes_arrive(session: Session) -> None:
    assert session.ssh("""printf '%s|' "a  b" 'c"d' $((1 + 1))""").stdout == 'a  b|c"d|2|'


def test_sftp(session: Session, tmp_path: Path) -> None:
    if not SFTP or shutil.which("sftp") is None:
        pytest.skip("no sftp here")
    (tmp_path / "up").write_bytes(bytes(range(256)) * 1000)
    batch = f'put "{tmp_path}/up" there\nget there "{tmp_path}/down"\npwd\n'
    argv = ("sftp", "-b", "-", *session.options(), "kind-otter")
    done = subprocess.run(argv, input=batch, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
    assert (session.folder / "there").exists()


def test_many_commands_at_once_over_one_connection(session: Session) -> None:
    """As editors that keep one, and ControlMaster, do; ten is what a server allows by itself."""
    control = ("-S", str(session.run_folder / "c"))
    master = subprocess.Popen(("ssh", *control, "-M", *session.options(), "kind-otter", "echo up; cat"),
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert master.stdin is not None and master.stdout is not None and master.stdout.readline() == b"up\n"
    argv = ("ssh", *control, "-o", "ProxyCommand=false", *session.options(), "kind-otter", "echo up; cat")
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(11)]
    said = [process.communicate(timeout=60)[0] for process in started]
    master.communicate(timeout=60)
    assert said == [b"up\n"] * 11


def test_another_key_is_refused(session: Session) -> None:
    key(session.run_folder / "stranger")
    done = session.ssh("echo in", identity="stranger")
    assert (done.returncode, done.stdout) == (255, "")
    assert "Permission denied (publickey)" in done.stderr


def test_another_host_key_is_refused_by_the_laptop(session: Session) -> None:
    other = key(session.run_folder / "other").split()
    session.said["ssh"]["host_key"] = " ".join(other[:2])
    done = session.ssh("echo in")
    assert (done.returncode, done.stdout) == (255, "")
    assert "Host key verification failed" in done.stderr


def test_a_key_let_in_later_opens_it(session: Session) -> None:
    public = key(session.run_folder / "second")
    with (session.run_folder / "conf/authorized_keys").open("a") as file:
        file.write(public + "\n")
    assert session.ssh("echo in", identity="second").stdout == "in\n"


def test_a_host_key_that_can_t_be_kept_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        ssh._host_key(tmp_path / "gone", (os.getuid(), os.getgid()))


def test_the_host_key_stays_and_is_private(session: Session) -> None:
    path = session.run_folder / "guest/ssh_host_ed25519_key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert ssh._host_key(session.run_folder / "guest", (os.getuid(), os.getgid())) == session.said["ssh"]["host_key"]


def test_an_sshd_that_does_not_start_is_said(run: Path) -> None:
    config = {"run": str(run), "folder": "/", "shell": "/bin/sh", "ssh": {"sshd": "/bin/false", "sftp_server": ""}}
    said: list[Json] = []
    ssh.serve(config, {}, (os.getuid(), os.getgid()), lambda name, state: said.append({name: state}))
    assert (said[0]["ssh"]["state"], said[0]["ssh"]["why"]) == ("failed", "sshd ended without an answer")


@pytest.mark.parametrize(
    "names",
    [
        ["A_1", "BASH_FUNC_x%%", "a.b", "1a", "a-b", ""],
        ["é"],
    ],
    ids=["odd", "not ASCII"],
)
def test_odd_names_of_variables_do_not_end_a_login(run: Path, names: list[str]) -> None:
    session = Session(run, {**ENVIRONMENT, **dict.fromkeys(names, "() { :; }")})
    assert session.ssh("echo in").stdout == "in\n"


def test_a_command_sees_nothing_of_how_it_came(run: Path) -> None:
    assert Session(run, ENVIRONMENT).ssh("echo ${SSH_ORIGINAL_COMMAND-unset}").stdout == "unset\n"


@pytest.mark.parametrize(
    ("sent", "own", "seen"),
    [("UTF-8", {}, "unset"), ("C.UTF-8", {}, "C.UTF-8"), ("UTF-8", {"LC_CTYPE": "C.UTF-8"}, "C.UTF-8")],
)
def test_a_mac_s_locale_that_linux_does_not_know(run: Path, sent: str, own: dict[str, str], seen: str) -> None:
    made = Session(run, {**ENVIRONMENT, **own})
    argv = ("ssh", *made.options(), "-o", f"SetEnv=LC_CTYPE={sent}", "kind-otter", "echo ${LC_CTYPE-unset}")
    assert subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout == f"{seen}\n"


def test_a_value_that_is_not_utf_8(run: Path) -> None:
    assert Session(run, {**ENVIRONMENT, "RAW": os.fsdecode(b"\xff")}).ssh("echo in").stdout == "in\n"


def test_root_is_let_in_where_its_password_is_locked(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    ssh.unlock(shadow)
    assert not shadow.exists()
    for before, after in (("!locked", "*"), ("!", "*"), ("*", "*"), ("$6$x", "$6$x")):
        shadow.write_text(f"bin:!:1\nroot:{before}:19:0:::\nada:!:1\n")
        ssh.unlock(shadow)
        assert shadow.read_text() == f"bin:!:1\nroot:{after}:19:0:::\nada:!:1\n"
