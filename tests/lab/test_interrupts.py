"""^C at every stage, typed at a terminal: it is said what became of the session, and that is so."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from aftermath import all_processes, own_processes, watched
from gate import gate_at
from labbox import SESSION_IMAGE, SSH_CONFIG, START, Laptop, left_behind, ssh
from terminal import Terminal, at_terminal

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1")]

HOST, NOENGINE = "gpu1", "noeng"
BARE = ("--no-jupyter", "--no-vscode", "--gpus", "1")
CONTAINER = ("--image", SESSION_IMAGE, *BARE)
HANGING = "mlbox-hanging:1"


@pytest.fixture
def laptop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Laptop]:
    """Its `with` looks at what is left as soon as the test is over, not some time later."""
    marker = request.node.get_closest_marker("hosts")
    with watched(tmp_path / "home", *marker.args) as made:
        yield made


def assert_stops(terminal: Terminal) -> None:
    terminal.interrupt()
    terminal.wait_for(r"stopped; nothing was left behind$")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text and "a bug" not in terminal.text, terminal.transcript()


# ---- before the block: nothing is left ----------------------------------------------------------------


def test_while_connecting(laptop: Laptop, tmp_path: Path) -> None:
    """A host that accepts the connection, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = tmp_path / "config"
        address = f"  HostName 127.0.0.1\n  Port {silent.getsockname()[1]}\n  ConnectTimeout 600\n"
        config.write_text(f"Include {SSH_CONFIG}\nHost silent\n{address}")
        laptop.env["MLBOX_SSH_CONFIG"] = str(config)
        with at_terminal(laptop, "session", "silent", *CONTAINER) as terminal:
            terminal.wait_for("connecting to silent")
            connection, _ = silent.accept()
            with connection:
                assert_stops(terminal)
                assert all_processes(laptop) == []


def test_while_the_host_is_checked(laptop: Laptop) -> None:
    with gate_at(HOST, "image inspect") as gate, at_terminal(laptop, "session", HOST, *CONTAINER) as terminal:
        gate.await_somebody()
        terminal.interrupt()
        gate.open()
        terminal.wait_for(r"stopped; nothing was left behind$")
        assert terminal.end() == 130


@pytest.mark.parametrize(
    ("host", "place"),
    [
        pytest.param(HOST, CONTAINER, id="docker"),
        pytest.param(NOENGINE, ("--runtime", "process", *BARE), id="process", marks=pytest.mark.hosts(NOENGINE)),
    ],
)
def test_while_a_layer_is_built(laptop: Laptop, tmp_path: Path, host: str, place: tuple[str, ...]) -> None:
    script = tmp_path / "init.sh"
    script.write_text("#!/bin/sh\necho it takes its time\nsleep 4711\n")
    environments = "ls ~/.local/share/mlbox/users/ada/environments 2>/dev/null || true"
    before = ssh(host, environments)
    with at_terminal(laptop, "session", host, *place, "--init-script", str(script)) as terminal:
        terminal.wait_for(r"1/1 running the init script", START)
        terminal.wait_for(r"it takes its time")
        assert left_behind(host) != []  # what is looked at afterwards does see something of it
        assert_stops(terminal)
    assert ssh(host, environments) == before
    assert ssh(host, "pgrep -fc '^sleep 4711$' || true").strip() == "0"


@pytest.fixture
def hanging_image() -> Iterator[str]:
    """Its Jupyter starts and never answers."""
    module = "/usr/local/lib/python3.11/dist-packages/jupyterlab/__main__.py"
    recipe = f"FROM {SESSION_IMAGE}\nRUN echo 'import time; time.sleep(3600)' >{module}"
    ssh(HOST, f"docker build -q -t {HANGING} - <<'EOF'\n{recipe}\nEOF")
    yield HANGING
    ssh(HOST, f"docker rmi -f {HANGING}")


def test_while_the_guest_starts(hanging_image: str, laptop: Laptop) -> None:
    with at_terminal(laptop, "session", HOST, "--image", hanging_image, "--no-vscode", "--gpus", "1") as terminal:
        terminal.wait_for(r"waiting for Jupyter\b")
        assert left_behind(HOST) != []
        assert_stops(terminal)


@pytest.fixture
def no_tunnels(laptop: Laptop, tmp_path: Path) -> None:
    """An ssh whose tunnels never come up, on the laptop's PATH."""
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/ssh"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in "-N -T "*) exec sleep 4711 ;; esac\nexec {shutil.which("ssh")} "$@"\n')
    wrapper.chmod(0o755)
    laptop.env["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"


@pytest.mark.usefixtures("no_tunnels")
def test_while_the_tunnel_comes_up(laptop: Laptop) -> None:
    """The session is ready on the host by then, and nobody has seen it: it goes again."""
    with at_terminal(laptop, "session", HOST, *CONTAINER) as terminal:
        terminal.wait_for("connecting the tunnels")
        assert left_behind(HOST) != []
        assert_stops(terminal)
        assert "session is running" not in terminal.text


# ---- a session that is there already: it stays, and that is said ------------------------------------------


def test_after_the_block(laptop: Laptop) -> None:
    with at_terminal(laptop, "session", HOST, *CONTAINER, "--name", "staying") as terminal:
        block = terminal.block()
        terminal.wait_for("^> ")
        terminal.interrupt()
        terminal.wait_for(r"detached; staying goes on, its tunnels have ended \(mlbox session attach staying\)$")
        assert terminal.end() == 0
    assert own_processes(laptop) == []
    assert [(one["id"], one["state"]) for one in laptop.sessions(HOST)] == [(block["id"], "started")]
    assert laptop.run("session", "shutdown", "staying").code == 0


def test_at_the_offer(laptop: Laptop) -> None:
    assert laptop.run("session", HOST, *CONTAINER, "--name", "offered", "--detach").code == 0
    with at_terminal(laptop, "session", HOST) as terminal:
        terminal.wait_for(r"or \[c\]ancel\?")
        terminal.interrupt()
        assert terminal.end() == 130
        assert "Traceback" not in terminal.text
        assert "nothing was left behind" not in terminal.text  # it would be a lie
    assert [one["name"] for one in laptop.sessions(HOST)] == ["offered"]
    assert laptop.run("session", "shutdown", "offered").code == 0


def test_while_an_attach_connects(laptop: Laptop, request: pytest.FixtureRequest) -> None:
    assert laptop.run("session", HOST, *CONTAINER, "--name", "joined", "--detach").code == 0
    assert laptop.run("tunnels", "stop", "joined").code == 0
    request.getfixturevalue("no_tunnels")
    with at_terminal(laptop, "session", "attach", "joined") as terminal:
        terminal.wait_for("connecting the tunnels")
        terminal.interrupt()
        assert terminal.end() == 130
        assert "nothing was left behind" not in terminal.text
    assert own_processes(laptop) == []
    assert [one["name"] for one in laptop.sessions(HOST)] == ["joined"]
    assert laptop.run("session", "shutdown", "joined").code == 0
