"""The contract of every transport, over a private sshd, and what only fabric has to prove."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import homes
import pytest

from mlbox import errors
from mlbox.client import output, remote, silence, transports
from mlbox.client.state import Config
from mlbox.client.transports import Channel, Transport, keys
from mlbox.client.transports.fabric import connection, login
from mlbox.client.transports.fabric.channel import Channel as FabricChannel
from mlbox.client.transports.fabric.login import Keyring
from mlbox.client.transports.fabric.settings import parts as parts_of
from mlbox.client.transports.fabric.settings import resolve
from mlbox.client.tunnels import Link, SshLink
from tests.client.kit import SSHD, Host, Opened, Server, Sshd, reserved

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="NO SSHD: install openssh-server to test the transports"
)
REMOTE = ("openssh", "fabric")
LIMIT = 120  # seconds for one test
PACKAGE = Path(remote.__file__).resolve().parent.parent
NOISE = (
    'ForceCommand printf \'Welcome!\\n@mlbox:0 {"reply": {}}\\nno line break\'; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
)


class Place:
    """A host of this test's own: an sshd whose sessions have an empty home, and runtime and state folders here."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        for name in ("home", "run", "state"):
            (folder / name).mkdir(mode=0o700)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.sshd = Sshd(folder, f"SetEnv HOME={folder}/home XDG_CACHE_HOME={folder}/home/cache PATH={path}", *settings)
        self.opened: list[str] = []

    def config(self, old: str = "", new: str = "", more: str = "") -> Path:
        """The ssh configuration, or a changed copy of it."""
        text = self.sshd.config.read_text()
        assert old in text
        descriptor, name = tempfile.mkstemp(prefix="config", dir=self.folder)
        with os.fdopen(descriptor, "w") as file:
            file.write(text.replace(old, new) + more)
        return Path(name)

    def transport(self, name: str, config: Path | None = None, host: str = "gpu1") -> Transport:
        if name == "local":
            return transports.make("local", Config())
        return transports.make(host, Config(ssh_config=str(config or self.sshd.config), transport=name))

    def known_hosts(self, text: str) -> Path:
        """A configuration with these known hosts instead."""
        file = self.folder / f"known{len(list(self.folder.iterdir()))}"
        file.write_text(text)
        return self.config(f"{self.folder}/known_hosts", str(file))

    @property
    def key_line(self) -> str:
        return (self.folder / "known_hosts").read_text()

    def close(self) -> None:
        for control in (self.folder / "run/mlbox").glob("*"):
            argv = ["ssh", "-F", str(self.sshd.config), "-o", f"ControlPath={control}", "-O", "exit", "gpu1"]
            subprocess.run(argv, capture_output=True)
        self.sshd.close()
        homes.remove(self.folder)


@contextlib.contextmanager
def placed(*settings: str) -> Iterator[Place]:
    place = Place(Path(tempfile.mkdtemp(prefix="mb", dir="/tmp")), *settings)
    before = {name: os.environ.get(name) for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME")}
    os.environ.update(XDG_RUNTIME_DIR=f"{place.folder}/run", XDG_STATE_HOME=f"{place.folder}/state")
    os.environ["XDG_CACHE_HOME"] = f"{place.folder}/home/cache"
    try:
        if not place.sshd.ready():
            pytest.skip("NO SSHD: it does not start here")
        yield place
    finally:
        place.close()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """What waits for ever fails."""

    def expired(*_: object) -> None:
        pytest.fail(f"not done after {LIMIT} s")  # no Exception, that somebody might take for a lost connection

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with placed() as place:
        login = ["ssh", "-F", str(place.sshd.config), "-o", "BatchMode=yes", "gpu1", "true"]
        refused = subprocess.run(login, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if refused.returncode:
            pytest.skip(f"NO SSHD: this account can't log in to itself: {refused.stderr.strip()}")
        yield place


@pytest.fixture(scope="module", params=[*REMOTE, "local"])
def transport(request: pytest.FixtureRequest, place: Place) -> Transport:
    return place.transport(request.param)


@pytest.fixture(scope="module", params=REMOTE)
def far(request: pytest.FixtureRequest, place: Place) -> Transport:
    return place.transport(request.param)


def run(transport: Transport, command: str, data: bytes = b"") -> tuple[int, bytes, str]:
    channel = transport.open(command)
    sender = threading.Thread(target=feed, args=(channel, data), daemon=True)
    sender.start()
    out = b"".join(iter(channel.read, b""))
    sender.join()
    code = channel.wait()
    said = channel.errors()
    channel.kill()
    return code, out, said


def feed(channel: Channel, data: bytes) -> None:
    channel.write(data)
    channel.close_input()


def line(channel: Channel) -> bytes:
    out = b""
    while not out.endswith(b"\n"):
        block = channel.read()
        assert block, out
        out += block
    return out


def failure(transport: Transport) -> errors.MlboxError:
    """What a person is told where no connection can be had; transports tell it at open(), or by code 255."""
    try:
        channel = transport.open("true")
    except errors.MlboxError as error:
        return error
    try:
        code = channel.wait()
        assert code == 255
        return transport.failure(code, channel.errors())
    finally:
        channel.kill()


def await_(condition: Callable[[], bool]) -> None:
    """A limit, not an expectation."""
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# Commands


@pytest.mark.parametrize("code", [0, 7, 97, 127])
def test_output_error_output_and_exit_code_are_intact(transport: Transport, code: int) -> None:
    command = f"exec sh -c 'printf \"a\\0b\\r\\n\"; echo oops >&2; exit {code}'"
    assert run(transport, command) == (code, b"a\0b\r\n", "oops\n")


def test_four_megabytes_there_and_back(transport: Transport) -> None:
    data = os.urandom(4_000_000)
    code, out, _ = run(transport, "exec cat", data)
    assert code == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_much_error_output_blocks_nothing_and_its_end_is_kept(transport: Transport) -> None:
    script = (
        "i=0; while [ $i -lt 60000 ]; do echo 0123456789012345678901234567890123456789012345678 $i; i=$((i+1)); done"
    )
    code, out, said = run(transport, f"exec sh -c '{{ {script}; }} >&2; echo done'")
    assert (code, out) == (0, b"done\n")
    assert said.endswith(" 59999\n")
    assert len(said) <= 16384


def test_output_comes_while_the_command_runs(transport: Transport) -> None:
    channel = transport.open("exec sh -c 'echo first; read line; echo got $line; read line'")
    assert line(channel) == b"first\n"
    channel.write(b"this\n")
    assert line(channel) == b"got this\n"
    channel.kill()


def test_the_end_of_input_is_seen(transport: Transport) -> None:
    channel = transport.open("exec sh -c 'cat; echo end'")
    channel.write(b"something\n")
    assert line(channel) == b"something\n"
    channel.close_input()
    assert line(channel) == b"end\n"
    assert channel.wait() == 0
    channel.kill()


def test_kill_ends_the_command_by_the_end_of_its_input(transport: Transport) -> None:
    channel = transport.open("exec sh -c 'echo $$; exec cat'")
    pid = int(line(channel))
    channel.kill()
    await_(lambda: gone(pid))
    channel.kill()  # any number of times


def test_writing_to_a_command_that_has_ended(transport: Transport) -> None:
    channel = transport.open("exec true")
    channel.wait()
    with pytest.raises(errors.Unreachable):
        for _ in range(100):
            channel.write(b"x" * 65536)
    channel.kill()


def test_two_at_once_over_one_connection(far: Transport) -> None:
    far.open("exec true").wait()  # of two that find none each makes one
    channels = [far.open("exec sh -c 'echo $SSH_CONNECTION; exec cat'") for _ in range(2)]
    first, second = (line(channel) for channel in channels)
    assert first == second
    for channel, word in zip(reversed(channels), (b"two\n", b"one\n")):
        channel.write(word)
        assert line(channel) == word
    for channel in channels:
        channel.kill()


def test_more_at_once_than_sshd_allows_on_one_connection(far: Transport) -> None:
    channels = [far.open("exec sh -c 'echo up; exec cat'") for _ in range(14)]
    assert [line(channel) for channel in channels] == [b"up\n"] * 14
    for channel in channels:
        channel.kill()


def test_a_command_ended_by_a_signal_is_no_success(far: Transport) -> None:
    assert run(far, "exec sh -c 'kill -9 $$'")[0] == 255


def test_a_connection_that_ends_is_told_and_made_anew(far: Transport) -> None:
    channel = far.open("exec sh -c 'echo $PPID; exec cat'")
    os.kill(int(line(channel)), signal.SIGKILL)
    assert channel.read() == b""
    assert channel.wait() == 255
    assert type(far.failure(255, channel.errors())) is errors.Unreachable  # it may have been done
    with pytest.raises(errors.Unreachable):
        for _ in range(100):
            channel.write(b"x" * 65536)
    channel.kill()
    assert run(far, "exec echo again") == (0, b"again\n", "")


# The user's own words for a host


@pytest.mark.parametrize("name", REMOTE)
def test_a_host_whose_shell_is_a_command_of_the_user_s_own_runs_ours(place: Place, name: str) -> None:
    there = place.transport(name, place.config(more="RemoteCommand tmux new -A\nRequestTTY yes\n"))
    assert run(there, "exec echo ours") == (0, b"ours\n", "")


@pytest.mark.parametrize("name", REMOTE)
def test_a_port_that_the_user_forwards_is_left_to_the_user_s_own_ssh(place: Place, name: str) -> None:
    with reserved() as port, socket.socket() as probe:
        there = place.transport(name, place.config(more=f"LocalForward 127.0.0.1:{port} 127.0.0.1:9\n"))
        assert run(there, "exec true")[0] == 0
        assert probe.connect_ex(("127.0.0.1", port)) != 0


# Refusals


@pytest.mark.parametrize("name", REMOTE)
def test_an_unknown_host_key_is_refused(place: Place, name: str) -> None:
    error = failure(place.transport(name, place.known_hosts("")))
    assert isinstance(error, errors.Unreachable)
    assert "gpu1's host key is not known" in error.message


@pytest.mark.parametrize("name", REMOTE)
def test_a_changed_host_key_is_refused(place: Place, name: str) -> None:
    other = (place.folder / "id.pub").read_text()
    error = failure(place.transport(name, place.known_hosts(f"[127.0.0.1]:{place.sshd.port} {other}")))
    assert isinstance(error, errors.Unreachable)
    assert "gpu1 showed another host key" in error.message


@pytest.mark.parametrize("name", REMOTE)
def test_a_port_where_nobody_listens(place: Place, name: str) -> None:
    with reserved() as port:
        error = failure(place.transport(name, place.config(f"Port {place.sshd.port}", f"Port {port}")))
    assert isinstance(error, errors.NotConnected)
    assert "gpu1: no SSH server answers there" in error.message


@pytest.mark.parametrize("name", REMOTE)
def test_a_name_that_is_none(place: Place, name: str) -> None:
    error = failure(place.transport(name, place.config("HostName 127.0.0.1", "HostName no.invalid")))
    assert isinstance(error, errors.NotConnected)
    assert "gpu1: there is no such host" in error.message


@pytest.mark.parametrize("name", REMOTE)
def test_a_login_that_is_refused(place: Place, name: str) -> None:
    error = failure(place.transport(name, place.config(f"{place.folder}/id", "/nonexistent")))
    assert type(error) is errors.NotLetIn
    assert "gpu1: the login was refused" in error.message


def test_a_refusal_is_told_where_the_user_s_ssh_is_quiet(place: Place, tmp_path: Path) -> None:
    there = place.transport("openssh", place.config(f"{place.folder}/id", "/nonexistent", "LogLevel QUIET\n"))
    error = failure(there)
    assert type(error) is errors.NotLetIn
    assert "gpu1: the login was refused" in error.message
    ended = threading.Event()
    link = there.link({"guest": "/tmp/guest.sock"}, tmp_path / "l", 2)
    link.start(ended.set)
    assert ended.wait(LIMIT)
    assert "Permission denied" in link.stderr()


@pytest.mark.parametrize("name", REMOTE)
def test_public_keys_are_those_of_the_configuration(place: Place, name: str) -> None:
    there = place.transport(name)
    assert there.identity_files() == (f"{place.folder}/id",)
    assert (place.folder / "id.pub").read_text().strip() in there.public_keys()


@pytest.mark.parametrize("name", REMOTE)
def test_a_key_whose_name_has_words_of_sshs(place: Place, name: str) -> None:
    file = place.folder / f"id-{getpass.getuser()}-gpu1-127.0.0.1-{place.sshd.port}-%"
    shutil.copy(place.folder / "id.pub", f"{file}.pub")
    shutil.copy(place.folder / "id", file)
    there = place.transport(name, place.config(f"{place.folder}/id", f"{place.folder}/id-%r-%n-%h-%p-%%"))
    assert there.identity_files() == (str(file),)
    assert run(there, "exec true")[0] == 0


@contextlib.contextmanager
def an_agent(place: Place) -> Iterator[str]:
    """One without a key; its socket. What an earlier one said is forgotten, as by the next command."""
    keys._said.cache_clear()
    socket = f"{place.folder}/agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        asking = {**os.environ, "SSH_AUTH_SOCK": socket}  # the file is there before anybody listens
        await_(lambda: subprocess.run(("ssh-add", "-l"), env=asking, capture_output=True).returncode == 1)  # no keys
        yield socket
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("name", REMOTE)
def test_who_logs_in_without_a_key_has_one_for_sessions(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and most desktops always have an agent; with a password or Kerberos nothing is in it."""
    there = place.transport(name, place.config(f"{place.folder}/id", "/nonexistent"))
    with an_agent(place) as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        (file,) = there.identity_files()
        assert there.public_keys() == (Path(f"{file}.pub").read_text().strip(),)


def test_a_key_that_only_the_agent_has_whom_the_configuration_names(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = (place.folder / "id.pub").read_text().strip()
    with an_agent(place) as socket:
        add = ["ssh-add", "-q", f"{place.folder}/id"]
        subprocess.run(add, check=True, capture_output=True, env={**os.environ, "SSH_AUTH_SOCK": socket})
        monkeypatch.setenv("SSH_AUTH_SOCK", "/nonexistent")
        monkeypatch.setenv("PASSWORDS", socket)
        for agent in (socket, "$PASSWORDS"):
            config = place.config(f"{place.folder}/id", "/nonexistent", f"IdentityAgent {agent}\n")
            there = place.transport("openssh", config)
            assert (there.agent(), there.identity_files()) == (agent, ())
            assert there.public_keys() == (public,)


def test_a_command_asks_for_each_key_once(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(place.folder / "id", tmp_path / "bare")  # its public half has to be asked for
    asked = tmp_path / "asked"
    for program in ("ssh-keygen", "ssh-add"):
        fake = tmp_path / program
        fake.write_text(f'#!/bin/sh\necho {program} >>{asked}\nexec {shutil.which(program)} "$@"\n')
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_AUTH_SOCK", f"{tmp_path}/no-agent")
    there = place.transport("openssh", place.config(f"{place.folder}/id", f"{tmp_path}/bare"))
    for _ in range(2):
        assert there.identity_files() == (f"{tmp_path}/bare",)
        assert len(there.public_keys()) == 1
    assert sorted(asked.read_text().split()) == ["ssh-add", "ssh-keygen"]


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "two words"])
@pytest.mark.parametrize("kind", REMOTE)
def test_a_name_that_would_be_an_option(place: Place, kind: str, name: str) -> None:
    with pytest.raises(errors.Usage):
        place.transport(kind, host=name)


@pytest.mark.parametrize(
    ("ciphers", "ours"),
    [
        ("chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com", True),  # until 9.9
        ("chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr", True),  # from 10.0
        ("aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr", False),  # a system's policy
        ("chacha20-poly1305@openssh.com", False),
    ],
)
def test_ciphers_that_somebody_chose_are_left_alone(tmp_path: Path, ciphers: str, ours: bool) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host gpu1\n  Ciphers {ciphers}\n")
    link = transports.make("gpu1", Config(ssh_config=str(config))).link({"guest": "/r/guest.sock"}, tmp_path, 2)
    assert isinstance(link, SshLink)
    assert ("Ciphers=^aes128-gcm@openssh.com" in link.argv) == ours


# The host part


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The host part as it is in this checkout, without its wheels."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        for file in sorted(PACKAGE.rglob("*.py")):
            made.write(file, file.relative_to(PACKAGE.parent))
        made.writestr("__main__.py", "import sys\nfrom mlbox.entry import main\nsys.exit(main())\n")
    monkeypatch.setattr(remote, "host_part", content.getvalue)
    return content.getvalue()


def kinds(monkeypatch: pytest.MonkeyPatch, there: Transport) -> list[str]:
    """Collects what is opened: each is one connection's round trip."""
    opened: list[str] = []
    original = there.open

    def recording(command: str) -> Channel:
        opened.append("plant" if "fromhex" in command else "run")
        return original(command)

    monkeypatch.setattr(there, "open", recording)
    return opened


def test_the_host_part_is_planted_once(
    place: Place, transport: Transport, part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", tempfile.mkdtemp(dir=place.folder))
    opened = kinds(monkeypatch, transport)
    there = remote.Host(transport)
    assert there.call("status", {})["cpus"] > 0
    assert opened == ["plant"]
    assert there.call("status", {})["cpus"] > 0
    assert opened == ["plant", "run"]
    (planted,) = (place.folder / "home/cache/mlbox").glob(f"mlbox-{hashlib.sha256(part).hexdigest()}.pyz")
    planted.unlink()
    assert there.call("status", {})["cpus"] > 0
    assert opened == ["plant", "run", "run", "plant"]


def test_an_error_of_the_host_arrives_as_it_was(transport: Transport, part: bytes) -> None:
    with pytest.raises(errors.Usage, match="knows no 'nonsense'"):
        remote.Host(transport).call("nonsense", {})


def test_a_home_that_hangs_is_said_and_given_up(
    place: Place, transport: Transport, part: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host part's file is there, and reading it does not come back."""
    monkeypatch.setenv("XDG_STATE_HOME", tempfile.mkdtemp(dir=place.folder))
    there = remote.Host(transport)
    there.call("status", {})
    monkeypatch.setattr(silence, "TOLD", 0.1)
    monkeypatch.setattr(silence, "GIVEN_UP", 0.5)
    file = place.folder / f"home/cache/mlbox/mlbox-{hashlib.sha256(part).hexdigest()}.pyz"
    file.unlink()
    os.mkfifo(file)
    told: list[str] = []
    try:
        for on_progress in (None, lambda facts: told.append(facts["text"])):
            with pytest.raises(
                errors.HostUnready, match=f"{transport.host} has not said a word for 0 s: your home there hangs"
            ):
                there.call("status", {}, on_progress)
    finally:
        for _ in range(2):  # who waits there hears the end
            with contextlib.suppress(OSError):
                os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        file.unlink()
    words = f"waiting for a first word of {transport.host}: does your home folder there hang?"
    assert told == [words] and words in capsys.readouterr().err
    monkeypatch.setattr(silence, "GIVEN_UP", 60.0)
    assert there.call("status", {})["cpus"] > 0


@pytest.mark.parametrize("name", REMOTE)
def test_noise_before_the_reply_does_not_matter(part: bytes, name: str) -> None:
    with placed(NOISE) as noisy:
        transport = noisy.transport(name)
        assert run(transport, "echo x")[1].startswith(b"Welcome!\n")
        there = remote.Host(transport)
        assert [there.call("status", {})["cpus"] for _ in range(2)] == [os.cpu_count()] * 2


# Tunnels


class Session:
    """A session's sockets where the host part allows them, and a link to them."""

    def __init__(self, transport: Transport) -> None:
        own = Path(f"/tmp/mlbox-{os.getuid()}")
        own.mkdir(mode=0o700, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="t", dir=own))
        self.host = Host(self.folder)
        self.servers = [Server(self.folder / "store.sock", self._store), Server(self.folder / "who.sock", self._who)]
        self.peers: list[int] = []
        self.ended = threading.Event()
        forwards = {**self.host.paths(), **{name: f"{self.folder}/{name}.sock" for name in ("store", "who", "nobody")}}
        self.transport, self.forwards = transport, forwards
        self.link = self.make(1)

    def make(self, generation: int) -> Link:
        return self.transport.link(self.forwards, self.folder / "l", generation)

    def _store(self, connection: socket.socket) -> None:
        data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        connection.sendall(hashlib.sha256(data).digest() + data)

    def _who(self, connection: socket.socket) -> None:
        """Notes who has connected, and then neither speaks nor ends."""
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.peers.append(struct.unpack("3i", peer)[0])
        self.host.over.wait()

    def up(self) -> None:
        self.link.start(self.ended.set)
        await_(lambda: self.link.ready() or self.ended.is_set())
        assert self.link.ready(), self.link.stderr()

    def connect(self, service: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(30)
        sock.connect(self.link.path(service))
        return sock

    def close(self) -> None:
        self.link.close()
        self.host.over.set()
        for server in [*self.host.servers.values(), *self.servers]:
            server.close()
        homes.remove(self.folder)


@pytest.fixture
def session(transport: Transport, part: bytes) -> Iterator[Session]:
    session = Session(transport)
    yield session
    session.close()


@pytest.fixture
def over_fabric(place: Place, part: bytes) -> Iterator[Session]:
    session = Session(place.transport("fabric"))
    yield session
    session.close()


def test_a_link_carries_bytes_both_ways(session: Session) -> None:
    session.up()
    assert session.link.alive()
    with session.connect("echo") as sock:
        for word in (b"one", b"\0\r\n@mlbox:", os.urandom(100)):
            sock.sendall(word)
            assert sock.recv(100, socket.MSG_WAITALL if len(word) == 100 else 0) == word


def test_a_link_plants_the_host_part_where_it_is_missing(place: Place, over_fabric: Session) -> None:
    shutil.rmtree(place.folder / "home/cache", ignore_errors=True)
    over_fabric.up()
    for _ in range(2):
        with over_fabric.connect("deaf") as sock:
            assert sock.recv(5, socket.MSG_WAITALL) == b"hello"


def test_a_service_that_speaks_first(session: Session) -> None:
    session.up()
    with session.connect("deaf") as sock:
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"


def test_eight_megabytes_and_a_half_close(session: Session) -> None:
    session.up()
    data = os.urandom(8_000_000)
    with session.connect("store") as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        back = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    assert back == hashlib.sha256(data).digest() + data


def test_thirty_connections_at_once(session: Session) -> None:
    session.up()
    socks = [session.connect("echo") for _ in range(30)]
    for number, sock in enumerate(socks):
        sock.sendall(b"%08d" % number)
    assert [int(sock.recv(8, socket.MSG_WAITALL)) for sock in socks] == list(range(30))
    for sock in socks:
        sock.close()


def test_a_service_that_is_not_there_refuses_and_the_link_lives(session: Session) -> None:
    session.up()
    with contextlib.suppress(ConnectionError, FileNotFoundError), session.connect("nobody") as sock:
        assert sock.recv(1) == b""
    with session.connect("echo") as sock:
        sock.sendall(b"yes")
        assert sock.recv(3, socket.MSG_WAITALL) == b"yes"


def test_closing_a_link_ends_its_connections_and_leaves_no_file(session: Session) -> None:
    session.up()
    sock = session.connect("echo")
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    session.link.close()
    session.link.close()
    if session.transport.host != transports.LOCAL:
        assert sock.recv(1) == b""
        assert list((session.folder / "l").iterdir()) == []
        assert not session.link.alive()
        assert session.ended.wait(30)
    sock.close()


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells who has connected")
def test_a_silent_service_does_not_hold_the_host_part_after_the_caller_is_gone(over_fabric: Session) -> None:
    over_fabric.up()
    with over_fabric.connect("who"):
        await_(lambda: bool(over_fabric.peers))
        assert not gone(over_fabric.peers[0])
        over_fabric.link.close()
        await_(lambda: gone(over_fabric.peers[0]))


def test_the_host_part_joins_only_the_users_own_session_sockets(
    place: Place, over_fabric: Session, tmp_path: Path
) -> None:
    outside = Server(place.folder / "o.sock", lambda connection: connection.sendall(b"secret"))
    over_fabric.forwards["outside"] = f"{place.folder}/o.sock"
    over_fabric.link = over_fabric.make(2)
    over_fabric.up()
    with over_fabric.connect("outside") as sock:
        assert sock.recv(6) == b""
    assert "is not a session's socket" in over_fabric.link.stderr()
    outside.close()


def test_a_link_that_cannot_come_up_says_why(place: Place, part: bytes) -> None:
    session = Session(place.transport("fabric", place.config(f"{place.folder}/id", "/nonexistent")))
    session.link.start(session.ended.set)
    assert session.ended.wait(30)
    assert "Permission denied" in session.link.stderr()
    assert not session.link.ready()
    session.close()


def test_a_link_whose_connection_dies_has_ended(over_fabric: Session) -> None:
    over_fabric.up()
    with over_fabric.connect("who") as sock:
        await_(lambda: bool(over_fabric.peers))
        status = Path(f"/proc/{over_fabric.peers[0]}/stat").read_text().rpartition(")")[2].split()
        os.kill(int(status[1]), signal.SIGKILL)
        assert sock.recv(1) == b""
    assert over_fabric.ended.wait(30)
    assert not over_fabric.link.alive()


def test_tunnels_over_fabric(over_fabric: Session) -> None:
    with Opened(over_fabric.make) as opened:
        assert opened.tunnels.wait_up(30), opened.events.seen
        with opened.connect() as sock:
            assert opened.echoes(sock)


def test_slow_tunnels_are_told_once(place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    transport = place.transport("fabric")
    for generation in (1, 2):
        transport.link({}, tmp_path, generation)
    assert capsys.readouterr().err.count("slow") == 1


# fabric alone: its traps


def fabric_login(place: Place, config: Path, host: str = "gpu1") -> bool:
    return run(place.transport("fabric", config, host), "exec echo in")[1] == b"in\n"


def test_no_setting_makes_fabric_take_an_unknown_key(place: Place) -> None:
    config = place.known_hosts("")
    config.write_text(config.read_text().replace("StrictHostKeyChecking yes", "StrictHostKeyChecking no"))
    error = failure(place.transport("fabric", config))
    assert "not known" in error.message
    assert place.key_line.split()[2] in error.hint  # what to add, once its administrator has confirmed it


def test_keys_that_fabric_knows(place: Place) -> None:
    _, kind, key, *_ = place.key_line.split()
    hashed = place.known_hosts(place.key_line)
    file = hashed.read_text().split("UserKnownHostsFile ")[1].split("\n")[0]
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert place.key_line.split()[0] not in Path(file).read_text()
    assert fabric_login(place, hashed)
    assert fabric_login(place, place.known_hosts(f"nobody,[127.0.*]:{place.sshd.port} {kind} {key}\n"))
    alias = place.known_hosts(f"lab-gpu {kind} {key}\n")
    alias.write_text(alias.read_text() + "HostKeyAlias lab-gpu\n")
    assert fabric_login(place, alias)


@pytest.mark.parametrize(
    "before", ["@revoked * {key}\n* {key}\n", "[127.0.*]:*,!{name} {key}\n", "@cert-authority * {key}\n"]
)
def test_keys_that_fabric_does_not_take(place: Place, before: str) -> None:
    name, _, key = place.key_line.strip().partition(" ")
    error = failure(place.transport("fabric", place.known_hosts(before.format(name=name, key=key))))
    assert isinstance(error, errors.Unreachable)
    assert "Host key verification failed" in error.message


def test_the_kind_of_key_that_is_known_is_asked_for(place: Place, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", f"{tmp_path}/rsa"], check=True)
    with placed(f"HostKey {tmp_path}/rsa") as other:
        key = (tmp_path / "rsa.pub").read_text()
        assert fabric_login(other, other.known_hosts(f"[127.0.0.1]:{other.sshd.port} {key}"))


@pytest.mark.parametrize("ssh", [True, False])
def test_a_jump_host_and_a_proxy_command(place: Place, monkeypatch: pytest.MonkeyPatch, ssh: bool) -> None:
    more = f"Host gpu2\nProxyJump gpu1\nHost gpu3\nProxyCommand ssh -F {place.sshd.config} -W %h:%p gpu1\n"
    config = place.config("Host gpu1", "Host gpu?", more)
    if not ssh:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fabric_login(place, config, "gpu2")
    assert fabric_login(place, config, "gpu3")


def test_a_jump_host_that_is_its_own(place: Place) -> None:
    with pytest.raises(errors.Usage, match="circle"):
        place.transport("fabric", place.config(more="ProxyJump gpu1\n")).open("true")


def test_a_proxy_command_that_ends(place: Place) -> None:
    error = failure(place.transport("fabric", place.config(more="ProxyCommand false\n")))
    assert isinstance(error, errors.Unreachable)
    assert "gpu1" in error.message


def test_without_an_ssh_include_is_followed(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "a.conf").write_text(f"Include {place.sshd.config}\nHost other\nUser wrong\n")
    (tmp_path / "b.conf").write_text("User nobody-here\nHost gpu1\nPort 1\n")
    config = tmp_path / "config"
    config.write_text(
        f"Host elsewhere\nInclude {tmp_path}/b.conf\nHost *\nInclude {tmp_path}/a*.conf {tmp_path}/none\n"
    )
    assert fabric_login(place, config)
    found = resolve("elsewhere", str(config))
    assert (found.user, found.port, found.hostname) == ("nobody-here", 22, "elsewhere")


def test_both_readers_of_the_configuration_agree(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    config = place.config(more="Host gpu9\nHostName h.example\nHostKeyAlias k\nIdentityFile ~/.ssh/x\n")
    for name in ("gpu1", "gpu9", "someone@gpu9"):
        by_ssh = resolve(name, str(config))
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "which", lambda name: None)
            assert resolve(name, str(config)) == by_ssh


def test_a_configuration_that_cannot_be_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(errors.Usage, match="can't be read"):
        resolve("gpu1", str(place.config(more="Nonsense\n")))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gpu1", ("", "gpu1", 0)),
        ("me@gpu1", ("me", "gpu1", 0)),
        ("me@corp@gpu1:2222", ("me@corp", "gpu1", 2222)),
        ("ssh://me@gpu1:22/", ("me", "gpu1", 22)),
        ("fe80::1", ("", "fe80::1", 0)),
        ("me@[fe80::1]:2222", ("me", "fe80::1", 2222)),
    ],
)
def test_the_parts_of_a_name(name: str, parts: tuple[str, str, int]) -> None:
    assert parts_of(name) == parts


def test_a_silent_connection_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ASK", 0.05)
    transport = place.transport("fabric")
    channel = transport.open("exec sh -c 'echo $PPID; exec cat'")
    server = int(line(channel))
    os.kill(server, signal.SIGSTOP)
    monkeypatch.setattr(connection, "_SILENT", 0.5)
    try:
        assert channel.read() == b""
        assert channel.wait() == 255
        assert "no answer" in transport.failure(255, channel.errors()).message
    finally:
        os.kill(server, signal.SIGKILL)


def test_a_quiet_connection_is_asked_and_answers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ASK", 0.05)
    channel = place.transport("fabric").open("exec sh -c 'echo up; exec cat'")
    assert isinstance(channel, FabricChannel)
    assert line(channel) == b"up\n"
    before = time.monotonic()
    await_(lambda: channel._connection._sock.heard > before)
    channel.kill()


def test_the_socket_does_not_wait_to_fill_packets(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    original = socket.create_connection

    def recording(*arguments: Any) -> socket.socket:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(socket, "create_connection", recording)
    transport = place.transport("fabric")
    assert run(transport, "exec true")[0] == 0
    assert [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in made] == [1]


def test_a_key_with_a_passphrase(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(place.folder / "id", tmp_path / "id")
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open!", "-f", f"{tmp_path}/id"], check=True)
    config = place.config(f"{place.folder}/id", f"{tmp_path}/id")
    assert "the login was refused" in failure(place.transport("fabric", config)).message  # nobody is there to be asked
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "open!"

    monkeypatch.setattr(output, "may_ask", lambda: True)
    monkeypatch.setattr(getpass, "getpass", answer)
    transport = place.transport("fabric", config)
    channels = [transport.open("exec cat") for _ in range(9)]  # two connections
    assert len(asked) == 1
    for channel in channels:
        channel.kill()


def test_two_threads_that_want_one_locked_key_ask_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "open!", "-f", f"{tmp_path}/locked"], check=True)
    keyring, asked, both = Keyring(), list[str](), threading.Barrier(2)

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "open!"

    def locked(file: str, passphrase: str | None) -> object:
        key = real(file, passphrase)
        if passphrase is None:
            both.wait(20)  # both have found that it is locked
        return key

    real = login._read_key
    monkeypatch.setattr(login, "_read_key", locked)
    monkeypatch.setattr(getpass, "getpass", answer)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: keyring.load(f"{tmp_path}/locked", True), range(2))
    assert first is second is not None and len(asked) == 1


def test_who_has_no_passphrase_to_give_goes_on_without_that_key(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "open!", "-f", f"{tmp_path}/locked"], check=True)
    shown: list[bool] = []

    def end_of_input(prompt: str) -> str:
        shown.append(output.Progress._shown is not None and output.Progress._shown._still > 0)
        raise EOFError

    monkeypatch.setattr(output, "may_ask", lambda: True)
    monkeypatch.setattr(getpass, "getpass", end_of_input)
    monkeypatch.setattr(output, "_plain", lambda stream: False)
    with output.Progress("asking"):
        transport = place.transport("fabric", place.config(f"{place.folder}/id", f"{tmp_path}/locked"))
        assert "the login was refused" in failure(transport).message
    assert shown == [True]  # nothing is drawn over the question


def test_keys_of_an_agent(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(place.folder / "id.pub", tmp_path / "id.pub")
    (tmp_path / "id").write_text("not readable here")
    with an_agent(place) as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        subprocess.run(["ssh-add", "-q", f"{place.folder}/id"], check=True, capture_output=True)
        assert fabric_login(place, place.config(f"{place.folder}/id", f"{tmp_path}/id"))
        strange = place.config(f"{place.folder}/id", "/nonexistent")
        assert "refused" in failure(place.transport("fabric", strange)).message  # IdentitiesOnly
        strange.write_text(strange.read_text().replace("IdentitiesOnly yes", "IdentitiesOnly no"))
        assert fabric_login(place, strange)


def test_without_fabric_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fabric", None)
    with pytest.raises(errors.Usage, match="needs the Python package fabric") as raised:
        transports.make("gpu1", Config(transport="fabric"))
    assert "pip install fabric" in raised.value.hint


def test_importing_the_transport_loads_no_fabric() -> None:
    program = "import sys, mlbox.client.transports.fabric; sys.exit('paramiko' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_nothing_of_paramikos_logging_reaches_stderr(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        config = place.config(f"Port {place.sshd.port}", f"Port {mute.getsockname()[1]}")
        program = f"""\
from mlbox.client import transports
from mlbox.client.state import Config
from mlbox.errors import Unreachable
try:
    transports.make("gpu1", Config(ssh_config={str(config)!r}, transport="fabric")).open("true")
except Unreachable as error:
    print(error.message)
"""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = mute.accept()
        connection.sendall(b"HTTP/1.0 400 no\r\n\r\n")
        connection.close()
        out, said = child.communicate()
    assert "gpu1" in out
    assert said == ""
