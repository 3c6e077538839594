"""Tunnels that nobody is attached to: in the background, asleep with their laptop, cut again and again, far away."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import workbench
from aftermath import all_processes, own_processes, tunnel_folders, watched
from browser import Browser
from far import THERE, far_away
from labbox import SESSION_IMAGE, SSH_CONFIG, START, Laptop, Result, as_root, first_process
from labkit.inventory import HOSTS
from notebook import Notebook
from outage import forgotten, without_network, without_sshd
from pages import execute, open_notebook, open_workbench
from queuelab import awaited
from terminal import at_terminal

from mlbox.client.tunnels import Timing

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
WORDS = ("--gpus", "1", "--image", SESSION_IMAGE, "--no-vscode")
BARE = ("--gpus", "0", "--image", SESSION_IMAGE, "--no-jupyter", "--no-vscode")
SLEEP = float(os.environ.get("MLBOX_SLEEP", "60"))  # s; `make soak` sleeps for ten minutes
SOAK = float(os.environ.get("MLBOX_SOAK", "48"))  # s
PERIOD = float(os.environ.get("MLBOX_SOAK_PERIOD", "8"))  # s from one cut to the next
MEMORY = 8 << 20  # bytes that a process may have grown: Python's own allocator is not exact
# s by which new connections are carried again: the old link's silence is noticed, and the next one has its whole start.
BACK = Timing.probe_every + Timing.probe_timeout + Timing.backoff_last + Timing.start_limit
# At most this much of a processor's time, for a minute in which the host can't be reached: a twentieth.
QUIET = 3.0  # s


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    with watched(tmp_path / "home", HOST) as made:
        yield made


def owners(laptop: Laptop) -> list[dict[str, object]]:
    found = laptop.run("tunnels", "list", "--json").json()
    assert isinstance(found, list)
    return found


def owner_pid(laptop: Laptop) -> int:
    [owner] = owners(laptop)
    return int(str(owner["pid"]))


def where_it_is(laptop: Laptop) -> dict[str, Any]:
    [owner] = owners(laptop)
    return {name: owner[name] for name in ("pid", "ports", "state")}


def await_end(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)


def block_of(done: Result) -> dict[str, str]:
    assert done.code == 0, done.all
    found = {}
    for name, title in (("jupyter", "Jupyter"), ("vscode", "VS Code"), ("ssh", "SSH")):
        match = re.search(rf"^{title}:\s+(.*)", done.out, re.MULTILINE)
        if match:
            found[name] = match[1]
    return found


def port_of(block: dict[str, str]) -> int:
    found = re.search(r"\(port (\d+)\)", block["ssh"])
    assert found
    return int(found[1])


def banner(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=90) as connection:
        return connection.recv(4)


def log_of(laptop: Laptop) -> str:
    return (laptop.home / ".local/state/mlbox/tunnels.log").read_text()


def await_log(laptop: Laptop, pattern: str, after: int, patience: float = 120.0) -> str:
    """The first line that matches behind the first `after` characters; a file's growth is no event to await."""
    deadline = time.monotonic() + patience
    while not (found := re.search(pattern, log_of(laptop)[after:])):
        assert time.monotonic() < deadline, f"never came: {pattern}\n{log_of(laptop)}"
        time.sleep(0.1)
    return found[0]


# ---- left, and joined again --------------------------------------------------------------------------------


def test_d_leaves_them_to_the_background_and_the_next_client_joins(laptop: Laptop, tmp_path: Path) -> None:
    with at_terminal(laptop, "session", HOST, *WORDS, "--name", "left") as terminal:
        terminal.wait_for(r"session is running:", START)
        url = terminal.wait_for(r"^Jupyter:\s+(\S+)$")[1]
        terminal.wait_for("^> ")
        with Notebook(url) as notebook:
            notebook.run("kept = 6 * 7")
            terminal.say("d")
            terminal.wait_for(r"its tunnels in the background$")
            terminal.wait_for(r"^  \(.*mlbox tunnels stop left\)$")
            assert terminal.end() == 0
            assert notebook.run("kept") == "42"  # over the connection that was there before
        [owner] = owners(laptop)
        assert (owner["session"], owner["host"], owner["state"], owner["background"]) == ("left", HOST, "up", True)

    joined = laptop.attach("session", "attach", "left")
    assert joined.block()["jupyter"] == url
    again = laptop.attach("session", HOST, "--yes")
    assert again.block()["jupyter"] == url
    assert joined.stop() == again.stop() == 0
    assert owner_pid(laptop) == owner["pid"]
    assert urllib.request.urlopen(url, timeout=60).status == 200

    with watched(tmp_path / "other") as other:  # from anywhere
        assert other.run("session", "shutdown", "left", "--host", HOST).code == 0
    await_end(int(str(owner["pid"])))
    assert tunnel_folders(laptop) == own_processes(laptop) == []
    assert "the session has ended: shut down" in log_of(laptop)


def test_detach_prints_the_block_and_how_to_stop(laptop: Laptop) -> None:
    started = laptop.run("session", HOST, *BARE, "--name", "started", "--detach")
    block = block_of(started)
    assert "session is running:  started" in started.out
    assert "mlbox tunnels stop started" in started.err
    assert banner(port_of(block)) == b"SSH-"
    assert block_of(laptop.run("session", "attach", "started", "--detach")) == block
    stopped = laptop.run("tunnels", "stop", "started")
    assert stopped.code == 0 and "the session goes on" in stopped.out, stopped.all
    assert tunnel_folders(laptop) == own_processes(laptop) == []
    assert [one["name"] for one in laptop.sessions(HOST)] == ["started"]
    assert block_of(laptop.run("session", "attach", "started", "--detach")) == block
    done = laptop.run("session", "shutdown", "started")
    assert done.code == 0, done.all
    assert tunnel_folders(laptop) == own_processes(laptop) == []  # on return, as the GPUs are free


def test_a_client_leaves_and_the_other_one_keeps_the_tunnels(laptop: Laptop) -> None:
    first = laptop.attach("session", HOST, *BARE, "--name", "both")
    block = first.block()
    second = laptop.attach("session", "attach", "both")
    assert second.block()["ssh"] == block["ssh"]
    assert first.stop() == 0
    assert banner(port_of(block)) == b"SSH-"
    third = laptop.run("tunnels", "stop", "both")
    assert third.code == 0, third.all
    second.wait_for(r"both: its tunnels were stopped; the session goes on")
    assert second.process.wait(60) == 0
    assert laptop.run("session", "shutdown", "both").code == 0


def test_a_killed_background_process_leaves_nothing_that_confuses(laptop: Laptop) -> None:
    block = block_of(laptop.run("session", HOST, *BARE, "--name", "killed", "--detach"))
    pid = owner_pid(laptop)
    tunnels = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    await_end(pid)
    _, alive = psutil.wait_procs(tunnels, timeout=60)
    assert alive == []
    assert tunnel_folders(laptop) != []
    assert laptop.run("status", HOST).code == 0  # any command sweeps
    assert tunnel_folders(laptop) == []
    assert owners(laptop) == []
    assert block_of(laptop.run("session", "attach", "killed", "--detach")) == block
    assert laptop.run("session", "shutdown", "killed").code == 0


# ---- more ports --------------------------------------------------------------------------------------------


def test_ports_of_programs_inside(laptop: Laptop, tmp_path: Path) -> None:
    asked = tmp_path / "session.yaml"
    asked.write_text('port: [6006, "17007:6007"]\n')
    with ExitStack() as taken:
        if not _taken(6006):
            taken.enter_context(socket.create_server(("127.0.0.1", 6006)))
        block = laptop.run("session", HOST, *BARE, "-f", str(asked), "--name", "ported", "--detach")
    assert "port 6006 is taken here; the session's port 6006 is on " in block.err, block.all
    moved = re.search(r"^Port 6006:\s+localhost:(\d+)$", block.out, re.MULTILINE)
    assert moved and int(moved[1]) > 6006
    assert "Port 6007:  localhost:17007" in block.out

    added = laptop.run("port", "add", "ported", "6008")
    assert added.code == 0, added.all
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", 17007), timeout=60) as early:
        assert early.recv(1) == b""
    config = laptop.home / ".local/state/mlbox/ssh_config"
    shown = laptop.run("port", "list", "ported", "--json").json()
    assert isinstance(shown, dict) and set(shown) == {"6006", "6007", "6008"} and shown["6007"] == 17007
    for port in (6007, 6008):
        serve_inside(config, "ported", port)
        assert urllib.request.urlopen(f"http://127.0.0.1:{shown[str(port)]}/", timeout=60).status == 200
    assert laptop.run("port", "remove", "ported", "6007").code == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 17007), timeout=60)
    assert laptop.run("session", "shutdown", "ported").code == 0


def serve_inside(config: Path, name: str, port: int) -> None:
    """On return a page is there."""
    serve = f"cd /tmp && (python3 -m http.server --bind 127.0.0.1 {port} </dev/null >/dev/null 2>&1 & echo $!)"
    laptop_ssh(config, name, serve)
    reach = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
    laptop_ssh(config, name, f'until python3 -c "{reach}" 2>/dev/null; do sleep 0.1; done')


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def laptop_ssh(config: Path, name: str, command: str) -> str:
    argv = ("ssh", "-F", str(config), "-o", "BatchMode=yes", name, command)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- asleep, and without a network -------------------------------------------------------------------------


@dataclass(frozen=True)
class Desk:
    laptop: Laptop
    url: str
    pid: int

    def family(self, *more: int) -> list[psutil.Process]:
        """The holder and its ssh, and what else is named with what that has started."""
        heads = [psutil.Process(pid) for pid in (self.pid, *more)]
        return [process for head in heads for process in (head, *head.children(recursive=True))]

    def ports(self) -> set[int]:
        """From which its connections to the host come."""
        return {
            link.laddr.port
            for process in self.family()
            for link in process.net_connections("tcp")
            if link.status == psutil.CONN_ESTABLISHED and link.raddr.port == 22
        }


@pytest.fixture(scope="class")  # no longer: another test's `mlbox session` would be offered this session
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with watched(tmp_path_factory.mktemp("desk") / "home", HOST) as laptop:
        try:
            block = block_of(laptop.run("session", HOST, *WORDS, "--name", "desk", "--detach"))
            yield Desk(laptop, block["jupyter"], owner_pid(laptop))
        finally:
            laptop.run("session", "shutdown", "desk", "--host", HOST)


@contextmanager
def asleep(desk: Desk, browser: Browser) -> Iterator[None]:
    """As a laptop is whose lid is closed: nothing of it runs."""
    sleeping = desk.family(browser.pid)
    for process in sleeping:
        process.suspend()
    try:
        yield
    finally:
        for process in sleeping:
            with suppress(psutil.NoSuchProcess):
                process.resume()


class TestOneDesk:
    @pytest.fixture(autouse=True)
    def clean_hosts(self) -> None:
        """Not between these tests: fixture `desk` ends the session and looks after it."""

    def test_asleep_while_the_network_goes(self, desk: Desk, tmp_path: Path) -> None:
        """A page in a browser goes on by itself, without a reload. The next night its connection is forgotten: it never
        heals, and what is typed at once goes into the next one."""
        before = where_it_is(desk.laptop)
        with Notebook(desk.url) as notebook, Browser(tmp_path / "profile") as browser:
            notebook.run("kept = 'still the same'")
            page = open_notebook(browser, desk.url)
            execute(page, "kept = 'in the page'; print('awake')", "awake", "asleep-before")
            page.value("window.neverReloaded = true")
            with ExitStack() as night:
                night.enter_context(without_network(HOST))
                night.enter_context(asleep(desk, browser))
                time.sleep(SLEEP)  # the sleep is the test
                awake = time.monotonic()
            execute(page, "print(kept)", "in the page", "asleep-after")  # typed at once, be the old link dead or not
            took = time.monotonic() - awake  # from when its processes and the network are to come back
            assert took < 30  # seconds were promised; 4 were seen
            assert page.value("window.neverReloaded") is True
            notebook.connect(BACK)  # as a page does; who connects before the tunnel is back waits for it
            assert notebook.run("kept") == "'still the same'"
            noted = len(log_of(desk.laptop))
            with forgotten(HOST, desk.ports()):
                with asleep(desk, browser):
                    time.sleep(Timing.slept + 5)  # the sleep is the test
                execute(page, "print('once more', kept)", "once more in the page", "forgotten-after")
                await_log(desk.laptop, "tunnel is back", noted)
            assert page.value("window.neverReloaded") is True
            print(f"{took:.1f} s from waking, after {SLEEP:.0f} s, to what the next cell printed")
        # By a new link, or by the old one where TCP has healed.
        awaited(lambda: where_it_is(desk.laptop) == before)  # the same process, up, on the same ports
        assert before["state"] == "up" and banner(before["ports"]["ssh"]) == b"SSH-"

    def test_a_minute_without_a_network_is_a_quiet_one(self, desk: Desk) -> None:
        noted = len(log_of(desk.laptop))
        with without_network(HOST):
            await_log(desk.laptop, "tunnel lost", noted)
            before = _spent(desk.pid)
            time.sleep(60)  # the minute is the measure
            spent = _spent(desk.pid) - before
            [owner] = owners(desk.laptop)
            assert owner["state"] == "reconnecting"
            assert "reconnecting for" in desk.laptop.run("tunnels", "list").out
        await_log(desk.laptop, "tunnel is back", noted)
        print(f"{spent:.2f} s of a processor in a minute without a network")
        assert spent < QUIET

    def test_no_growth_when_it_is_cut_again_and_again(self, desk: Desk) -> None:
        end = time.monotonic() + SOAK
        self._cut(desk, 0)
        first = _measure(desk)
        cycles = 1
        while time.monotonic() < end:
            begun = time.monotonic()
            self._cut(desk, cycles)
            cycles += 1
            time.sleep(max(0.0, min(begun + PERIOD, end) - time.monotonic()))  # the period is the test's
        last = _await_no_more(desk, first)
        print(f"{cycles} cuts: first {first}, last {last}")
        assert cycles >= 3

    def _cut(self, desk: Desk, number: int) -> None:
        """In turn a clean close and silence."""
        noted = len(log_of(desk.laptop))
        with without_network(HOST) if number % 2 else without_sshd(HOST):
            await_log(desk.laptop, "tunnel lost", noted)
        await_log(desk.laptop, "tunnel is back", noted)
        assert urllib.request.urlopen(desk.url, timeout=90).status == 200


def _spent(pid: int) -> float:
    """Seconds of a processor, those of its ended children included."""
    times = psutil.Process(pid).cpu_times()
    living = sum(sum(child.cpu_times()[:2]) for child in psutil.Process(pid).children(recursive=True))
    return float(times.user + times.system + times.children_user + times.children_system + living)


@dataclass(frozen=True)
class Use:
    """What both ends have in use."""

    processes: int
    descriptors: int
    threads: int
    memory: int
    host_processes: int
    host_descriptors: int
    host_memory: int

    def exceeds(self, other: Use) -> list[str]:
        slack = {"memory": MEMORY, "host_memory": MEMORY}
        return [
            f"{name}: {value} after {getattr(other, name)}"
            for name, value in vars(self).items()
            if value > getattr(other, name) + slack.get(name, 0)
        ]


# The session's keeper, and its guest.
_HOST_END = """
keeper=$(sed 's/.*"pid": *//; s/[^0-9].*//' /tmp/mlbox-*/*/keeper.pid)
test -d "/proc/${keeper:-none}/fd" || exit
pgrep -u ada -c .
for p in $keeper $(pgrep -u ada -f 'mlbox-host.pyz guest'); do
  ls /proc/$p/fd; sed -n 's/^VmRSS:[^0-9]*//p' /proc/$p/status | sed 's/ kB/ kB of memory/'
done
"""


def _measure(desk: Desk) -> Use:
    """Once what the last cut left is cleared away: one tunnel, which answers."""
    deadline = time.monotonic() + 60
    while len(desk.family()) > 2:
        assert time.monotonic() < deadline, desk.family()
        time.sleep(0.1)
    family = desk.family()
    count, *rest = as_root(HOST, "sh", "-c", _HOST_END).splitlines()
    memory = [int(line.split()[0]) << 10 for line in rest if line.endswith("kB of memory")]
    return Use(
        len(all_processes(desk.laptop)), sum(p.num_fds() for p in family), family[0].num_threads(),
        sum(p.memory_info().rss for p in family), int(count), len(rest) - len(memory), sum(memory),
    )  # fmt: skip


def _await_no_more(desk: Desk, first: Use) -> Use:
    """What was opened for a probe, or ends just now, is gone in a moment; what has leaked is not."""
    deadline = time.monotonic() + 60
    while grown := (last := _measure(desk)).exceeds(first):
        assert time.monotonic() < deadline, grown
        time.sleep(0.5)
    return last


# ---- far away ----------------------------------------------------------------------------------------------


def test_two_hundred_milliseconds_away_with_two_percent_lost(laptop: Laptop, tmp_path: Path) -> None:
    """Each thing once, and little of it: what such a way carries in a second, 60 kB, is TCP's to say."""
    config = tmp_path / "config"
    config.write_text(SSH_CONFIG.read_text())
    with far_away(HOST, HOSTS[HOST].address, first_process(HOST), 0.2, 0.02, config):
        begun = time.monotonic()
        socket.create_connection((THERE, 22), timeout=60).close()
        assert time.monotonic() - begun >= 0.2  # it is as far as it should be
        laptop.env["MLBOX_SSH_CONFIG"] = str(config)
        words = ("--gpus", "1", "--image", SESSION_IMAGE, "--name", "distant", "--detach")
        block = block_of(laptop.run("session", HOST, *words, timeout=2 * START))
        assert urllib.request.urlopen(block["jupyter"], timeout=120).status == 200
        with Notebook(block["jupyter"]) as notebook:
            assert notebook.run("6 * 7") == "42"
        assert workbench.greets(block["vscode"])
        with Browser(tmp_path / "profile", patience=600) as browser:
            execute(open_notebook(browser, block["jupyter"]), "print(6 * 7)", "42", "far-away")
            open_workbench(browser, block["vscode"].split()[0])
        entries = laptop.home / ".local/state/mlbox/ssh_config"
        size = 300_000
        assert len(laptop_ssh(entries, "distant", f"head -c {size} /dev/zero | tr '\\0' x")) == size
        _files_travel(entries, tmp_path)
        assert laptop.run("port", "add", "distant", "6006").code == 0
        ports = laptop.run("port", "list", "distant", "--json").json()
        assert isinstance(ports, dict)
        serve_inside(entries, "distant", 6006)
        assert urllib.request.urlopen(f"http://127.0.0.1:{ports['6006']}/", timeout=120).status == 200
        client = laptop.attach("session", "attach", "distant")
        joined = client.block()
        assert joined["jupyter"] == block["jupyter"]
        assert client.stop() == 0
        _cut_and_back(laptop, block["jupyter"])
        _joined_by_bob(laptop, joined["id"], config, tmp_path / "bob")
        done = laptop.run("session", "shutdown", "distant")
        assert done.code == 0, done.all


def _cut_and_back(laptop: Laptop, jupyter: str) -> None:
    noted = len(log_of(laptop))
    [link] = psutil.Process(owner_pid(laptop)).children()
    link.kill()
    await_log(laptop, "tunnel lost", noted)
    await_log(laptop, "tunnel is back", noted)
    assert urllib.request.urlopen(jupyter, timeout=120).status == 200


def _joined_by_bob(laptop: Laptop, session: str, config: Path, home: Path) -> None:
    assert laptop.run("session", "share", "distant", "bob").code == 0
    home.mkdir()
    own = home / "ssh_config"
    own.write_text(f"Host *\n  User bob\nInclude {config}\n")
    bob = Laptop(home / "home")
    bob.env["MLBOX_SSH_CONFIG"] = str(own)
    client = bob.attach("attach", session, "--host", HOST)
    try:
        with Notebook(client.block()["jupyter"]) as notebook:
            assert notebook.run("6 * 7") == "42"
            done = laptop.run("session", "unshare", "distant", "bob")
            assert done.code == 0 and "ended" in done.out, done.all
            notebook.forget()  # it ends with the session; bob can't end it any more
    finally:
        bob.close()


def _files_travel(config: Path, folder: Path) -> None:
    """By rsync, git and scp to a session's name; each finds what the one before it brought."""
    shell = f"ssh -F {config} -o BatchMode=yes"
    person = ("-c", "user.name=ada", "-c", "user.email=ada@lab")
    env = {**os.environ, "RSYNC_RSH": shell, "GIT_SSH_COMMAND": shell}

    def run(*argv: str | Path) -> str:
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    work, bare, again = folder / "work", folder / "bare.git", folder / "again"
    run("git", "init", "-q", "-b", "main", work)
    for number in range(300):
        (work / f"{number}").write_text(f"{number}\n" * 9)
    run("git", "-C", work, "add", ".")
    run("git", "-C", work, *person, "commit", "-qm", "first")
    run("git", "clone", "-q", "--bare", work, bare)  # a file for each object
    run("rsync", "-a", f"{bare}/", "distant:/tmp/bare.git/")
    run("git", "clone", "-q", "distant:/tmp/bare.git", again)
    assert (again / "299").read_text() == "299\n" * 9
    (again / "0").write_text("changed\n")
    run("git", "-C", again, *person, "commit", "-qam", "second")
    run("git", "-C", again, "push", "-q")
    run("scp", "-F", config, "-o", "BatchMode=yes", "distant:/tmp/bare.git/refs/heads/main", folder / "main")
    assert (folder / "main").read_text() == run("git", "-C", again, "rev-parse", "HEAD")
