"""SIGKILL for the client, the keeper, the container, and a reboot for all: nothing is lost that need not be, and
nothing is left."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from aftermath import traces, watched
from labbox import SESSION_IMAGE, Laptop, Result, as_root, ssh
from labkit import engine as engines
from labkit import hosts
from labkit.inventory import HOSTS

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1")]

HOST, NOENGINE = "gpu1", "noeng"
BARE = ("--no-jupyter", "--no-vscode")
PLACES = {HOST: ("--image", SESSION_IMAGE, *BARE), NOENGINE: ("--runtime", "process", *BARE)}
both_runtimes = pytest.mark.parametrize(
    "host",
    [pytest.param(HOST, id="docker"), pytest.param(NOENGINE, id="process", marks=pytest.mark.hosts(NOENGINE))],
)


@pytest.fixture
def laptop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Laptop]:
    marker = request.node.get_closest_marker("hosts")
    with watched(tmp_path / "home", *marker.args) as made:
        yield made


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Laptop]:
    """A second laptop, which knows nothing of the first one's sessions."""
    with watched(tmp_path / "other") as made:
        yield made


# ---- who is killed, and how -------------------------------------------------------------------------------


def keeper_of(host: str, session: str, after: int = 0) -> int:
    """Its pid; with `after`, its successor's, which takes over on its own time."""
    path = f"/tmp/mlbox-1001/{session[-8:].lower()}/keeper.pid"
    ssh(host, f"while grep -q '\"pid\": {after},' {path}; do sleep 0.05; done")
    return int(json.loads(ssh(host, f"cat {path}"))["pid"])


def kill(host: str, *pids: int) -> None:
    """SIGKILL; on return they are gone."""
    all_of_them = " ".join(map(str, pids))
    ssh(host, f"kill -KILL {all_of_them}; while kill -0 {all_of_them} 2>/dev/null; do sleep 0.05; done")


def container_of(session: str) -> str:
    return ssh(HOST, f"docker ps -q --filter label=mlbox.session={session}").strip()


def guests_of(host: str, session: str) -> list[int]:
    """The session's own processes, its first one among them, as the host sees them."""
    found = as_root(host, "sh", "-c", f"grep -laz '^MLBOX_SESSION={session}$' /proc/[0-9]*/environ || true")
    return [int(path.split("/")[2]) for path in found.split()]


def kill_guest(host: str, session: str) -> None:
    if host == HOST:
        ssh(HOST, f"docker kill {container_of(session)}")
    else:
        kill(host, *guests_of(host, session))


def is_held(host: str, gpu: int = 0) -> bool:
    """Asked of the kernel, not of mlbox, which would look after its sessions on this occasion."""
    lock = f"/tmp/mlbox-leases/{HOSTS[host].gpu_uuid(gpu)}"
    return as_root(host, "sh", "-c", f"flock --shared --nonblock {lock} echo free || echo held") == "held\n"


def start(laptop: Laptop, host: str, name: str, *more: str) -> str:
    """A detached session with the host's first GPU; its id."""
    words = ("session", host, *PLACES[host], "--gpus", HOSTS[host].gpu_uuid(0), "--name", name, *more)
    started = laptop.run(*words, "--detach", "--json")
    assert started.code == 0, started.all
    facts = started.json()
    assert isinstance(facts, dict)
    return str(facts["id"])


def assert_had_ended(done: Result, name: str, why: str = "") -> None:
    assert done.code == 0, done.all
    assert f"{name} had ended already: {why}" in done.out, done.all


# ---- the client -------------------------------------------------------------------------------------------


def test_a_killed_client_leaves_a_session_that_another_laptop_joins_and_ends(laptop: Laptop, other: Laptop) -> None:
    session = laptop.attach("session", HOST, *PLACES[HOST], "--gpus", "1", "--name", "orphan")
    block = session.block()
    children = psutil.Process(session.process.pid).children(recursive=True)
    assert [child for child in children if "-N" in child.cmdline()]
    assert session.stop(signal.SIGKILL) == -signal.SIGKILL
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []

    [listed] = laptop.sessions(HOST)
    assert (listed["id"], listed["state"]) == (block["id"], "started")
    assert is_held(HOST)
    again = other.attach("session", "attach", "orphan", "--host", HOST)
    assert again.block()["id"] == block["id"]
    done = other.run("session", "shutdown", "orphan", "--host", HOST)
    assert done.code == 0 and "orphan has ended; 1 GPU free again" in done.out, done.all
    again.wait_for("orphan: the session has ended: shut down")
    assert again.process.wait(60) == 0
    assert not is_held(HOST)
    assert_had_ended(laptop.run("session", "shutdown", "orphan"), "orphan", "shut down")


# ---- the keeper -------------------------------------------------------------------------------------------


@both_runtimes
def test_a_killed_keepers_session_keeps_its_gpu_and_gets_a_new_keeper(laptop: Laptop, host: str) -> None:
    session = start(laptop, host, "kept")
    attached = laptop.attach("session", "attach", "kept")
    attached.block()
    first = keeper_of(host, session)
    kill(host, first)
    assert is_held(host)

    refused = laptop.run(
        "session", host, *PLACES[host], "--gpus", HOSTS[host].gpu_uuid(0), "--name", "second", "--new", "--detach"
    )
    assert refused.code == 3 and "leased to ada's session kept" in refused.err, refused.all
    assert keeper_of(host, session, after=first) != first  # that call saw to it
    reply = laptop.run("status", host, "--json").json()
    assert isinstance(reply, list)
    assert reply[0]["gpus"][0]["holder"]["name"] == "kept"
    assert [one["name"] for one in reply[0]["sessions"]] == ["kept"]

    done = laptop.run("session", "shutdown", "kept")
    assert done.code == 0 and "kept has ended; 1 GPU free again" in done.out, done.all
    assert not is_held(host)
    attached.wait_for("kept: the session has ended: shut down")
    assert attached.process.wait(60) == 0


def test_a_keeper_that_is_killed_again_and_again_is_replaced_each_time(laptop: Laptop) -> None:
    """Each successor gets the leases from the guest: the last one too can free them."""
    session = start(laptop, HOST, "cat")
    keeper = 0
    for _ in range(3):
        keeper = keeper_of(HOST, session, after=keeper)
        kill(HOST, keeper)
        assert is_held(HOST)
        assert [one["id"] for one in laptop.sessions(HOST)] == [session]
    assert laptop.run("session", "shutdown", "cat").code == 0
    assert not is_held(HOST)


def test_a_keeper_killed_while_it_builds_a_layer_leaves_what_the_next_call_removes(
    laptop: Laptop, tmp_path: Path
) -> None:
    before = set(traces(HOST))
    script = tmp_path / "init.sh"
    script.write_text("#!/bin/sh\necho it takes its time\nsleep 4711\n")
    words = ("session", HOST, *PLACES[HOST], "--gpus", HOSTS[HOST].gpu_uuid(0), "--init-script", str(script))
    starting = laptop.attach(*words)
    starting.wait_for("1/1 running the init script")
    builder = ssh(HOST, "until docker ps -q --filter name=mlbox-builder | grep .; do sleep 0.05; done").strip()
    [keeper] = json.loads("[" + ssh(HOST, "cat /tmp/mlbox-1001/*/keeper.pid") + "]")
    kill(HOST, keeper["pid"])
    assert starting.process.wait(60) == 7
    starting.wait_for("mlbox: the session's keeper died")
    assert builder in ssh(HOST, "docker ps -q")

    assert laptop.sessions(HOST) == []
    assert ssh(HOST, "docker ps -aq") == ""
    assert not is_held(HOST)
    ssh(HOST, "while pgrep -f '[m]lbox-builder' >/dev/null; do sleep 0.05; done")  # docker's client notices by itself
    assert set(traces(HOST)) <= before
    assert laptop.run("session", HOST, *PLACES[HOST], "--gpus", "4", "--detach", "--name", "after").code == 0
    assert laptop.run("session", "shutdown", "after").code == 0


# ---- the container ----------------------------------------------------------------------------------------


@both_runtimes
def test_a_killed_container_ends_its_session_and_everybody_hears_it(laptop: Laptop, other: Laptop, host: str) -> None:
    session = start(laptop, host, "struck")
    attached = laptop.attach("session", "attach", "struck")
    attached.block()
    kill_guest(host, session)
    attached.wait_for(r"struck: the session has ended: its container or process ended \(exit (137|-9)\)")
    assert attached.process.wait(60) == 0
    assert not is_held(host)
    assert laptop.sessions(host) == []
    assert_had_ended(laptop.run("session", "shutdown", "struck"), "struck", "its container or process ended")
    assert_had_ended(other.run("session", "shutdown", session, "--host", host), "struck", "its container or process")


def test_a_killed_container_that_nobody_watched(laptop: Laptop) -> None:
    session = start(laptop, HOST, "unseen")
    ssh(HOST, f"docker kill {container_of(session)}")
    done = laptop.run("session", "shutdown", "unseen")  # which may meet the keeper at its end
    assert done.code == 0 and ("unseen has ended" in done.out or "unseen had ended already" in done.out), done.all
    assert not is_held(HOST)


# ---- everything at once -----------------------------------------------------------------------------------


@both_runtimes
def test_keeper_and_container_killed_at_once(laptop: Laptop, host: str) -> None:
    session = start(laptop, host, "gone")
    attached = laptop.attach("session", "attach", "gone")
    attached.block()
    keeper = keeper_of(host, session)
    guests = guests_of(host, session)
    assert guests
    as_root(host, "kill", "-KILL", str(keeper), *map(str, guests), check=False)  # one may be short-lived
    attached.wait_for(r"gone: the session has ended: its keeper and its container or process ended")
    assert attached.process.wait(60) == 0
    assert not is_held(host)
    assert laptop.sessions(host) == []
    assert_had_ended(laptop.run("session", "shutdown", session, "--host", host), "gone", "its keeper and its container")


def test_a_host_that_was_restarted_has_forgotten_its_sessions_and_says_so(laptop: Laptop) -> None:
    session = start(laptop, HOST, "before-the-reboot")
    attached = laptop.attach("session", "attach", "before-the-reboot")
    attached.block()
    engine = engines.known()
    assert engine is not None
    boot = ssh(HOST, "cat /proc/sys/kernel/random/boot_id")
    engine.docker("restart", "--time", "0", HOSTS[HOST].container)
    hosts.wait_ready(engine, HOSTS[HOST])
    assert ssh(HOST, "cat /proc/sys/kernel/random/boot_id") != boot

    attached.wait_for("before-the-reboot: the session has ended: the host was restarted")
    assert attached.process.wait(60) == 0
    assert laptop.sessions(HOST) == []
    assert not is_held(HOST)
    done = laptop.run("session", "shutdown", session, "--host", HOST)
    assert_had_ended(done, "before-the-reboot", "the host was restarted")
    start(laptop, HOST, "after-the-reboot")
    assert laptop.run("session", "shutdown", "after-the-reboot").code == 0
