"""The process that holds a session's tunnels, over real ssh to a private sshd: who owns the ports, who joins, what a
killed one leaves, and what brings more ports of the session."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import homes
import psutil
import pytest
from queuebox import until
from terminal import Terminal

import mlbox
from mlbox import cli
from mlbox.client import attached as attached_module
from mlbox.client import journal, owners, sessions, state
from mlbox.client.attached import Attached, block
from mlbox.client.commands import attach
from mlbox.client.reach import Reach
from mlbox.client.talk import Talk
from mlbox.core.port import Port
from mlbox.errors import MlboxError
from mlbox.guest import control
from tests.client.kit import SSHD, Host, Sshd, reserved

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="NO SSHD: install openssh-server to test the tunnels"
)
ID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
_LONG = 60.0  # s


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = homes.fresh(tmp_path / "home", monkeypatch)
    runtime = tempfile.mkdtemp(prefix="mb", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    yield folder
    for owner in owners.living():
        os.kill(owner.pid, signal.SIGKILL)
        assert owners.await_end(owner.session)
    homes.remove(runtime)


class Inside:
    """A session whose guest is real; its Jupyter is an echo."""

    def __init__(self, sshd: Sshd, folder: Path) -> None:
        self.folder = folder
        self.config = state.Config(ssh_config=str(sshd.config), ports={"jupyter": 0})
        control.serve(folder / "g.sock", lambda: ["jupyter"], (os.getuid(), os.getgid()), "k3y")
        jupyter = {"socket": str(folder / "echo.sock"), "token": "t0ken"}
        self.reach = Reach(ID, "kind-otter", "gpu1", "", {"jupyter": jupyter}, str(folder / "g.sock"), "k3y")
        self.said: queue.Queue[str] = queue.Queue()

    def attach(self, *ports: Port) -> Attached:
        attached = Attached(self.reach, self.config, ports, self.said.put)
        attached.dial()
        attached.wait_up(self.reach)
        return attached

    def program(self, stay: str = "sys.stdin.readline()") -> str:
        """Of a client in a process of its own, which does `stay` once all is up."""
        return f"""\
import sys
from pathlib import Path
from mlbox.client import state
from mlbox.client.attached import Attached
from mlbox.client.reach import Reach
from mlbox.client.talk import Talk
reach = Reach(**{self.reach.to_wire()!r})
config = state.Config(ssh_config={self.config.ssh_config!r}, ports={{"jupyter": 0}})
attached = Attached(reach, config, (), lambda words: None)
attached.dial()
attached.wait_up(reach)
print(attached.ports["jupyter"], flush=True)
{stay}
attached.close()
"""


@pytest.fixture
def inside(sshd: Sshd, host: Host) -> Inside:
    return Inside(sshd, host.folder)


class Leaves:
    """A console at which ^C is pressed at once."""

    def __init__(self, *_: object) -> None:
        pass

    def run(self) -> str:
        return "leave"


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(b"hello")
        return sock.recv(5) == b"hello"


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 20).close()
    except ConnectionRefusedError:
        return True
    return False


def only() -> owners.Owner:
    [owner] = owners.living()
    return owner


def await_state(wanted: str) -> owners.Owner:
    deadline = time.monotonic() + _LONG
    while (owner := only()).state != wanted:
        assert time.monotonic() < deadline, owner
        time.sleep(0.05)  # a note in a file: there is no event to await
    return owner


def ssh_of(owner: owners.Owner) -> psutil.Process:
    [found] = [p for p in psutil.Process(owner.pid).children(recursive=True) if "-N" in p.cmdline()]
    return found


def folders() -> list[str]:
    return [path.name for path in state.runtime().glob("t*")]


def mlbox_says(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


# ---- who owns the ports ----------------------------------------------------------------------------------


def test_a_second_client_joins_and_the_last_one_ends_it(inside: Inside) -> None:
    first = inside.attach()
    pid = only().pid
    second = inside.attach()
    assert (second.ports, block(second, {})) == (first.ports, block(first, {}))
    assert only().pid == pid
    assert first.close()
    assert answers(second.ports["jupyter"])
    assert not second.close()
    assert not owners.living() and not folders()
    assert is_refused(second.ports["jupyter"])


def test_who_stays_in_the_background_keeps_ports_and_connections(inside: Inside) -> None:
    client = inside.attach()
    with socket.create_connection(("127.0.0.1", client.ports["jupyter"]), 20) as open_all_along:
        client.stay()
        client.close()
        assert only().background
        open_all_along.sendall(b"still")
        assert open_all_along.recv(5) == b"still"
    again = inside.attach()
    assert again.ports == client.ports
    again.close()  # it joined what is in the background: its leaving changes nothing
    assert answers(again.ports["jupyter"])


def test_clients_that_come_at_once_have_one_owner(inside: Inside) -> None:
    found: list[Attached] = []
    threads = [threading.Thread(target=lambda: found.append(inside.attach())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({client.ports["jupyter"] for client in found}) == 1
    only()
    for client in found:
        client.close()
    assert owners.living() == []


def test_nobody_is_left_when_the_client_is_killed(inside: Inside) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(mlbox.__file__).parents[1])}
    argv = (sys.executable, "-c", inside.program())
    client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert client.stdout is not None
    port = int(client.stdout.readline())
    assert answers(port)
    client.kill()
    client.communicate()
    assert owners.await_end(ID, _LONG)
    assert not owners.living() and not folders()
    assert is_refused(port)


def test_the_end_of_the_terminal_is_not_the_end(inside: Inside) -> None:
    """SIGHUP and SIGINT for all that ran in it, ssh included."""
    client = inside.attach()
    client.stay()
    owner = only()
    ssh = ssh_of(owner)
    assert os.getsid(owner.pid) == owner.pid
    for process in (psutil.Process(owner.pid), ssh):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
    client.close()
    assert answers(owner.ports["jupyter"])
    assert (only().pid, ssh_of(owner).pid) == (owner.pid, ssh.pid)
    for number in (0, 1, 2):
        assert os.readlink(f"/proc/{owner.pid}/fd/{number}") == os.devnull


def test_who_knows_of_a_new_start_takes_over_the_ports(inside: Inside) -> None:
    """The process in the background has not heard of it yet."""
    first = inside.attach(Port(0, 6006))
    first.stay()
    before = only()
    folder = inside.folder / "anew"
    folder.mkdir()
    control.serve(folder / "g.sock", lambda: ["jupyter"], (os.getuid(), os.getgid()), "k3y-2")
    inside.reach = replace(inside.reach, guest_socket=str(folder / "g.sock"), guest_key="k3y-2")
    again = inside.attach()
    assert first.ended.wait(_LONG) and "dialled anew" in first.why
    after = only()
    assert after.pid != before.pid and after.background
    assert (after.ports, after.extra) == (before.ports, before.extra)
    assert answers(again.ports["jupyter"])
    again.close()


def test_another_name_of_its_host_is_no_new_start(inside: Inside) -> None:
    first = inside.attach()
    inside.reach = replace(inside.reach, host="gpu1.lab")
    second = inside.attach()
    assert second.ports == first.ports and not first.ended.is_set()
    first.close()
    second.close()


# ---- what a killed one leaves ------------------------------------------------------------------------------


def test_a_killed_owner_leaves_nothing_that_confuses(inside: Inside) -> None:
    client = inside.attach()
    client.stay()
    killed = only()
    os.kill(killed.pid, signal.SIGKILL)
    assert client.ended.wait(_LONG) and "is gone" in client.why
    client.close()
    assert folders() != []  # nobody was left to remove it
    assert not owners.living() and not folders()
    again = inside.attach()
    assert only().pid != killed.pid
    again.close()


@pytest.mark.parametrize("way", ["swept", "taken"])
def test_a_killed_owner_s_ssh_ends_where_no_system_sees_to_it(home: Path, way: str) -> None:
    """It is known by the sockets in that folder, not by a pid. Another session's stays, and whatever only names it."""
    folder = owners.folder_of(ID)
    folder.mkdir()
    (folder / "owner.json").write_text("{}")
    last = (
        ("-L", f"{folder}/1-guest:/g.sock"), ("-L", f"{folder}x/1-guest:/g.sock"), (f"{folder}/owner.json",),
    )  # fmt: skip
    argv = (sys.executable, "-c", "import time; print(flush=True); time.sleep(600)", "-N")
    left, other, named = (subprocess.Popen((*argv, *words), stdout=subprocess.PIPE) for words in last)
    try:
        for process in (left, other, named):  # until then ps may not see its words: it is in the middle of its exec
            assert process.stdout is not None and process.stdout.readline() == b"\n"
        if way == "swept":
            owners.living()
        else:
            taken = owners.take(ID)
            assert taken is not None
            os.close(taken[1])
        assert left.wait(20) == -signal.SIGTERM
        assert other.poll() is named.poll() is None
    finally:
        for process in (left, other, named):
            process.kill()
            process.communicate()


def test_its_pid_is_not_believed_when_another_process_has_it(inside: Inside) -> None:
    """A note that a living process has written about itself, in a folder that nobody has locked."""
    folder = owners.folder_of(ID)
    folder.mkdir()
    owners.Owner(ID, "kind-otter", "gpu1", os.getpid(), {}, {}, folder=str(folder)).write()
    assert not owners.living() and not folders()


def test_a_folder_is_one_owner_s(home: Path) -> None:
    taken = owners.take(ID)
    assert taken is not None
    folder, descriptor = taken
    assert owners.take(ID) is None
    (folder / "left").write_text("")
    owners.living()
    assert (folder / "left").exists()  # a sweep leaves alone what is locked
    os.close(descriptor)
    assert not owners.await_end(ID, 0.0) or owners.await_end(ID)
    got: list[tuple[Path, int]] = []

    def is_ours() -> bool:
        got.extend(filter(None, [owners.take(ID)]))
        return bool(got)

    until(is_ours)  # a child of another thread's, just forked, may hold it for a moment more
    assert list(folder.iterdir()) == []
    os.close(got[0][1])


def test_an_owner_that_does_not_hear_is_killed_when_it_is_to_stop(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(owners, "_KILL_AFTER", 0.5)
    client = inside.attach()
    client.stay()
    os.kill(only().pid, signal.SIGSTOP)
    assert "are ended" in mlbox_says("tunnels", "stop", "kind-otter", capsys=capsys)
    assert not owners.living() and not folders()
    client.close()


# ---- outages -----------------------------------------------------------------------------------------------


def test_it_comes_back_on_the_same_port_and_tells_and_notes_it(inside: Inside) -> None:
    client = inside.attach()
    client.stay()
    ssh_of(only()).kill()
    assert "tunnel lost" in inside.said.get(timeout=_LONG)
    assert "tunnel is back" in inside.said.get(timeout=_LONG)
    assert answers(client.ports["jupyter"])
    assert await_state("up").ports == client.ports
    client.close()
    log = (state.home() / "tunnels.log").read_text()
    assert "kind-otter" in log and "tunnel lost" in log and "tunnel is back" in log
    assert "t0ken" not in log


def test_reconnecting_is_shown_with_its_reason(inside: Inside, sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    client = inside.attach()
    before = sshd.config.read_text()
    sshd.config.write_text(before.replace(f"Port {sshd.port}", "Port 1"))
    try:
        ssh_of(only()).kill()
        assert "tunnel lost" in inside.said.get(timeout=_LONG)
        assert "still trying" in inside.said.get(timeout=_LONG)
        owner = await_state("reconnecting")
        assert "Connection refused" in owner.why
        shown = mlbox_says("tunnels", "list", capsys=capsys)
        assert "reconnecting for" in shown and "Connection refused" in shown
        [facts] = json.loads(mlbox_says("tunnels", "list", "--json", capsys=capsys))
        assert (facts["session"], facts["state"], facts["pid"]) == ("kind-otter", "reconnecting", owner.pid)
    finally:
        sshd.config.write_text(before)
    assert await_state("up").why == ""
    client.close()


@pytest.mark.parametrize(
    ("remains", "words"),
    [(False, "its tunnels have ended"), (True, "and its tunnels stay up")],
    ids=["last", "other"],
)
def test_who_leaves_is_told_what_becomes_of_the_tunnels(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], remains: bool, words: str
) -> None:
    other = inside.attach() if remains else None
    monkeypatch.setattr(sessions, "enter", lambda host, session: None)
    monkeypatch.setattr(attach, "Console", Leaves)
    session = {"id": ID, "name": "kind-otter"}
    assert attach.work(None, inside.attach(), session, attach.Manner(yes=True)) == 0  # type: ignore[arg-type]
    assert f"detached; kind-otter goes on, {words} (" in capsys.readouterr().err
    if other is not None:
        other.close()


def test_a_session_of_an_older_mlbox_has_no_key(inside: Inside) -> None:
    inside.reach = replace(inside.reach, guest_key="")
    assert "guest_key" not in inside.reach.to_wire()
    client = inside.attach()
    assert answers(client.ports["jupyter"])
    client.close()


def test_the_session_s_end_is_its_end(inside: Inside, capsys: pytest.CaptureFixture[str]) -> None:
    client = inside.attach()
    client.stay()
    owners.end(only(), "ended", "the session has ended: shut down")
    assert client.ended.wait(_LONG) and client.why == "the session has ended: shut down"
    client.close()
    assert folders() == []


def test_the_console_s_prompt_comes_again_after_a_message(inside: Inside) -> None:
    program = inside.program("from mlbox.client.console import Console; print(Console(attached, str).run())")
    environment = {**os.environ, "PYTHONPATH": str(Path(mlbox.__file__).parents[1])}
    with Terminal([sys.executable, "-c", program], environment) as terminal:
        terminal.wait_for(r"\n> ")
        ssh_of(only()).kill()
        terminal.wait_for(r"tunnel lost \(.*\); reconnecting\n> ")
        terminal.wait_for(r"tunnel is back.*\n> ")
        terminal.say("d")
        terminal.wait_for("^detach$")
        assert terminal.end() == 0


def test_a_colleague_s_console_offers_no_end_of_the_session(inside: Inside) -> None:
    program = inside.program(
        "from mlbox.client.console import Console; print(Console(attached, str, ours=False).run())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mlbox.__file__).parents[1])}
    with Terminal([sys.executable, "-c", program], environment) as terminal:
        terminal.wait_for(r"the session stays\)\n> ")
        terminal.say("h")
        terminal.wait_for(r"h, help +this\n> ")
        terminal.say("shutdown")
        terminal.wait_for(r"only its owner ends it; d leaves it\n> ")
        terminal.say("d")
        terminal.wait_for("^detach$")
        assert terminal.end() == 0


# ---- more ports --------------------------------------------------------------------------------------------


def test_a_port_inside_is_refused_until_somebody_listens_and_works_then(inside: Inside) -> None:
    with reserved() as port:
        client = inside.attach()
        local = client.add(Port(0, port))
        # The refusal may come before connect() has returned.
        with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", local), 20) as refused:
            refused.recv(1)
        with (
            socket.create_server(("127.0.0.1", port)) as service,
            socket.create_connection(("127.0.0.1", local), 20) as sock,
        ):
            sock.sendall(b"hello")
            served, _ = service.accept()
            with served:
                assert served.recv(5) == b"hello"
                served.sendall(b"there")
                assert sock.recv(5) == b"there"
        client.close()


def test_a_taken_port_is_said_and_the_next_one_used(inside: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1]
        client = inside.attach(Port(wanted, 6006))
        joined = inside.attach(Port(wanted, 6006))
        assert joined.extra == client.extra
        joined.close()
        assert inside.said.get(timeout=_LONG).startswith(f"port {wanted} is taken here; the session's port 6006 is on ")
        assert client.extra["6006"] > wanted
        assert f"Port 6006:  localhost:{client.extra['6006']}" in block(client, {})
    client.close()


def test_ports_are_added_listed_and_removed_by_name(inside: Inside, capsys: pytest.CaptureFixture[str]) -> None:
    client = inside.attach()
    added = json.loads(mlbox_says("port", "add", "kind-otter", "16006", "17000:6008", "--json", capsys=capsys))
    assert set(added) == {"16006", "6008"}
    assert json.loads(mlbox_says("port", "list", "kind-otter", "--json", capsys=capsys)) == added
    again = json.loads(mlbox_says("port", "add", "kind-otter", "16006", "--json", capsys=capsys))
    assert again == {"16006": added["16006"]}
    assert (
        "localhost:" in (told := mlbox_says("port", "add", "kind-otter", "16006", capsys=capsys))
        and "as before" in told
    )
    assert f"localhost:{added['6008']}" in mlbox_says("port", "list", capsys=capsys)
    mlbox_says("port", "remove", "kind-otter", "6008", capsys=capsys)
    assert is_refused(added["6008"])
    assert json.loads(mlbox_says("port", "list", "--json", capsys=capsys)) == again
    assert cli.main(["port", "remove", "kind-otter", "6008"]) == 6
    assert cli.main(["port", "add", "kind-otter", "http"]) == 2
    assert cli.main(["port", "add", "no-such", "6006"]) == 6
    said = capsys.readouterr().err
    assert "port 6008 of kind-otter has no tunnel" in said and "no tunnels to no-such are up" in said
    client.close()


def test_list_and_stop_without_any(capsys: pytest.CaptureFixture[str]) -> None:
    assert mlbox_says("tunnels", "list", "--json", capsys=capsys) == "[]\n"
    mlbox_says("tunnels", "stop", "--all", capsys=capsys)
    assert cli.main(["tunnels", "stop"]) == 6
    assert cli.main(["tunnels", "stop", "--all", "some"]) == 2


# ---- its log, and where its folder is ----------------------------------------------------------------------


def test_the_log_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LIMIT", 4000)
    for number in range(200):
        journal.note("kind-otter", f"number {number} \x1b[31m" + "x" * 50)
    files = sorted(state.home().glob("tunnels.log*"))
    assert [path.name for path in files] == ["tunnels.log", "tunnels.log.1"]
    assert all(path.stat().st_size < 4000 + journal._LINE + 100 for path in files)
    assert "number 199 " in files[0].read_text()
    assert "\x1b" not in files[0].read_text()


def test_the_folder_outlives_a_logout(monkeypatch: pytest.MonkeyPatch) -> None:
    """logind empties /run/user/UID then."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    assert state.runtime() == Path(f"/tmp/mlbox-client-{os.getuid()}")


@pytest.mark.parametrize("replies", [[("late", 1), ("due", 2)], [("due", 0)]], ids=["numbered", "an older mlbox's"])
def test_a_late_reply_is_not_the_next_question_s(
    monkeypatch: pytest.MonkeyPatch, replies: list[tuple[str, int]]
) -> None:
    ours, its = socket.socketpair()
    holder, attached = Talk(its), Attached(Reach(ID, "kind-otter", "gpu1", "", {}, ""), state.Config(), (), print)
    attached._take(talk := Talk(ours), {"ports": {}, "extra": {}})
    monkeypatch.setattr("mlbox.client.attached._REPLY", 0.0)
    with pytest.raises(MlboxError, match="does not answer"):
        attached._ask("reconnect")
    monkeypatch.setattr("mlbox.client.attached._REPLY", _LONG)
    threading.Thread(target=attached._listen, args=(talk,), daemon=True).start()

    def answer() -> None:
        for _ in range(2):
            holder.receive()
        for words, number in replies:
            holder.send({"reply": {"is": words}, **({"number": number} if number else {})})

    answering = threading.Thread(target=answer)
    answering.start()
    assert attached._ask("add") == {"is": "due"}
    answering.join()
    holder.close()
    assert attached.ended.wait(_LONG)


def test_what_holds_the_tunnels_is_the_same_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes down by what ssh looks for a session that has moved."""
    room = tmp_path / "mlbox/client"
    room.mkdir(parents=True)
    for package in (room.parent, room):
        (package / "__init__.py").touch()
    (room / "hold.py").write_text("import sys\ndef main(number): print(sys.argv[0], number, sys.path[0])\n")
    monkeypatch.setattr(mlbox, "__file__", str(tmp_path / "mlbox/__init__.py"))
    monkeypatch.setattr("sys.argv", ["./mlbox.pyz", "session"])
    said = subprocess.run(attached_module._holder(7), stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.split() == [os.path.abspath("mlbox.pyz"), "7", str(tmp_path)]


def test_one_that_does_not_begin_in_time_is_said(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlbox.client.attached._BEGIN", 0.01)
    monkeypatch.setattr("mlbox.client.attached._PROGRAM", "import time; time.sleep(600)")
    attached = Attached(inside.reach, inside.config, (), inside.said.put)
    with pytest.raises(MlboxError, match="the process that holds the tunnels to kind-otter does not answer"):
        attached.dial()
    assert attached._process is not None
    attached._process.kill()
    attached._process.wait()


def test_a_client_that_reads_nothing_holds_nobody_up() -> None:
    ours, its = socket.socketpair()
    with ours, its:
        talk = Talk(ours)
        for _ in range(10_000):
            talk.offer({"say": "x" * 100})
        assert its.recv(5) == b'{"say'


def test_a_client_with_room_for_a_part_of_a_message_is_given_up() -> None:
    """The rest would have to wait for it, and with it whoever holds the tunnels."""
    ours, its = socket.socketpair()
    with ours, its:
        talk = Talk(ours)
        offering = threading.Thread(target=talk.offer, args=({"say": "x" * 10_000_000},), daemon=True)
        offering.start()
        offering.join(20)
        assert not offering.is_alive()
        assert talk.receive(20) is None
        its.settimeout(20)
        assert 0 < len(b"".join(iter(lambda: its.recv(1 << 20), b""))) < 10_000_000
