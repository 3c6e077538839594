"""An attached session as a person has it: the block, the menu and its words, and the offer to come back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from aftermath import watched
from labbox import SESSION_IMAGE, Laptop, as_root
from outage import without_sshd
from terminal import Terminal, at_terminal

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1")]

HOST = "gpu1"
BARE = ("session", HOST, "--image", SESSION_IMAGE, "--no-jupyter", "--no-vscode", "--gpus", "1")
MENU = r"^\[r\]econnect  \[s\]hell  \[l\]ogs  \[d\]etach \(the session stays\)  \[shutdown\]$"
PROMPT = r"^> "
OFFER = r"\[a\]ttach, start a \[n\]ew one, or \[c\]ancel\? \[a\] "


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    with watched(tmp_path / "home", HOST) as made:
        yield made


def banner(port: str) -> bytes:
    """What answers at a local port: the session's SSH server says who it is."""
    with socket.create_connection(("127.0.0.1", int(port)), timeout=60) as connection:
        return connection.recv(4)


def tunnels(terminal: Terminal) -> list[psutil.Process]:
    return [p for p in psutil.Process(terminal.process.pid).children(recursive=True) if "-N" in p.cmdline()]


# ---- many words to one session -----------------------------------------------------------------------


@dataclass(frozen=True)
class Seat:
    laptop: Laptop
    terminal: Terminal
    block: dict[str, str]


@pytest.fixture(scope="class")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with watched(tmp_path_factory.mktemp("seat") / "home", HOST) as laptop:
        try:
            with at_terminal(laptop, *BARE, "--name", "seated") as terminal:
                block = terminal.block()
                terminal.wait_for(MENU)
                yield Seat(laptop, terminal, block)
                terminal.say("shutdown")
                terminal.wait_for(r"^seated has ended; 1 GPU free again$")
                assert terminal.end() == 0
        finally:
            laptop.run("session", "shutdown", "seated", "--host", HOST)


class TestTheMenu:
    @pytest.fixture(autouse=True)
    def clean_hosts(self) -> None:
        """Not between these tests: fixture `seat` ends the session and looks after it."""

    def test_the_block_is_printed_once_and_the_menu_after_it(self, seat: Seat) -> None:
        assert seat.block["name"] == "seated"
        assert seat.terminal.text.count("session is running:") == 1
        assert banner(seat.block["port"]) == b"SSH-"

    def test_r_dials_a_new_tunnel_behind_the_same_ports(self, seat: Seat) -> None:
        [before] = tunnels(seat.terminal)
        seat.terminal.say("r")
        seat.terminal.wait_for(r"tunnel is back; the ports are the same")
        _, alive = psutil.wait_procs([before], timeout=60)
        assert alive == []
        assert len(tunnels(seat.terminal)) == 1
        assert banner(seat.block["port"]) == b"SSH-"

    def test_s_opens_a_shell_inside_and_exit_comes_back(self, seat: Seat) -> None:
        seat.terminal.say("s")
        seat.terminal.wait_for(r"[$#] \Z")
        seat.terminal.say("echo in=$MLBOX_SESSION=; hostname")
        seat.terminal.wait_for(rf"^in={seat.block['id']}=\nseated$")
        seat.terminal.say("exit")
        seat.terminal.wait_for(PROMPT)
        seat.terminal.say("h")
        seat.terminal.wait_for(r"s, shell +a shell inside the session")

    def test_interrupting_a_command_in_the_shell_ends_neither_shell_nor_session(self, seat: Seat) -> None:
        seat.terminal.say("shell")
        seat.terminal.wait_for(r"[$#] \Z")
        # By the command itself, which then has the terminal: a ^C between two commands of a line is lost on the second.
        seat.terminal.say("sh -c \"echo beg''un; exec sleep 4711\"")
        seat.terminal.wait_for(r"^begun$")
        seat.terminal.interrupt()
        seat.terminal.wait_for(r"[$#] \Z")
        seat.terminal.say("echo still in=$MLBOX_SESSION=; exit")
        seat.terminal.wait_for(rf"^still in={seat.block['id']}=$")
        seat.terminal.wait_for(PROMPT)
        seat.terminal.say("help")
        seat.terminal.wait_for(r"d, detach")

    def test_l_prints_the_ends_of_the_sessions_logs(self, seat: Seat) -> None:
        log = f"/tmp/mlbox-1001/{seat.block['id'][-8:].lower()}/log/guest.log"
        as_root(HOST, "sh", "-c", f"echo 'a word in the log' >>{log}")
        seat.terminal.say("l")
        seat.terminal.wait_for(r"^--- guest\n(?s:.*)a word in the log$")

    @pytest.mark.parametrize("word", ["dance", "detach now", "ü"])
    def test_a_word_that_it_does_not_know_prints_those_that_it_knows(self, seat: Seat, word: str) -> None:
        seat.terminal.say(word)
        seat.terminal.wait_for(rf"there is no '{word}'\n")
        for known in ("reconnect", "shell", "logs", "detach", "shutdown"):
            seat.terminal.wait_for(rf"^ .*{known}")

    def test_it_is_still_the_same_session(self, seat: Seat) -> None:
        """The last look: none of the words did more than it should."""
        assert [one["id"] for one in seat.laptop.sessions(HOST)] == [seat.block["id"]]
        assert seat.terminal.process.poll() is None


# ---- ways out, and ways back -------------------------------------------------------------------------


def test_d_leaves_and_the_offer_brings_back(laptop: Laptop) -> None:
    with at_terminal(laptop, *BARE, "--name", "first") as terminal:
        block = terminal.block()
        terminal.wait_for(PROMPT)
        terminal.say("d")
        terminal.wait_for(r"^detached; first goes on, its tunnels in the background$")
        terminal.wait_for(r"^  \(.*mlbox tunnels stop first\)$")
        assert terminal.end() == 0
        assert banner(block["port"]) == b"SSH-"

    with at_terminal(laptop, "session", HOST) as terminal:
        terminal.wait_for(rf"first is running on {HOST} \(1 GPU, {SESSION_IMAGE}, started \d+s ago\)")
        terminal.wait_for(OFFER)
        terminal.say("perhaps")
        terminal.wait_for(r"one of: attach, new, cancel")
        terminal.wait_for(OFFER)
        terminal.say("c")
        assert terminal.end() == 0
        assert "session is running:" not in terminal.text

    with at_terminal(laptop, "session", HOST) as terminal:
        terminal.wait_for(OFFER)
        terminal.say("")  # what the brackets promise
        assert terminal.block()["id"] == block["id"]
        terminal.wait_for(PROMPT)
        terminal.say("detach")
        assert terminal.end() == 0

    with at_terminal(laptop, "session", HOST) as terminal:
        terminal.wait_for(OFFER)
        terminal.say("new")
        second = terminal.block()
        assert second["id"] != block["id"]
        assert {one["name"] for one in laptop.sessions(HOST)} == {"first", second["name"]}
        terminal.wait_for(PROMPT)
        terminal.say("shutdown")
        terminal.wait_for(rf"^{second['name']} has ended; 1 GPU free again$")
        assert terminal.end() == 0

    assert [one["name"] for one in laptop.sessions(HOST)] == ["first"]
    assert laptop.run("session", "shutdown", "first").code == 0


def test_the_end_of_input_is_a_way_to_leave_too(laptop: Laptop) -> None:
    with at_terminal(laptop, *BARE, "--name", "quiet") as terminal:
        terminal.block()
        terminal.wait_for(PROMPT)
        terminal.end_input()
        terminal.wait_for(r"detached; quiet goes on")
        assert terminal.end() == 0
    assert laptop.run("session", "shutdown", "quiet").code == 0


def test_shutdown_elsewhere_ends_the_console(laptop: Laptop, tmp_path: Path) -> None:
    with at_terminal(laptop, *BARE, "--name", "watched") as terminal:
        block = terminal.block()
        terminal.wait_for(PROMPT)
        with watched(tmp_path / "other") as other:
            assert other.run("session", "shutdown", block["id"], "--host", HOST).code == 0
        terminal.wait_for(r"watched: the session has ended: shut down")
        assert terminal.end() == 0


def test_yes_asks_nothing_at_a_terminal(laptop: Laptop) -> None:
    started = laptop.run(*BARE, "--name", "there", "--detach")
    assert started.code == 0, started.all
    with at_terminal(laptop, "session", HOST, "--yes") as terminal:
        terminal.wait_for(r"joining there, which is running already \(--new starts another\)")
        terminal.block()
        assert "[c]ancel" not in terminal.text
        terminal.wait_for(PROMPT)
        terminal.say("shutdown")
        assert terminal.end() == 0


def test_logs_during_an_outage_are_an_error_and_not_the_end(laptop: Laptop) -> None:
    with at_terminal(laptop, *BARE, "--name", "cut-off") as terminal:
        terminal.block()
        terminal.wait_for(PROMPT)
        with without_sshd(HOST):
            terminal.wait_for(r"tunnel lost \(.+\); reconnecting\n> ")  # and a new prompt
            terminal.say("l")
            terminal.wait_for(rf"{HOST}: no SSH server answers there")
            terminal.wait_for(PROMPT)
        terminal.wait_for(r"tunnel is back.*; the ports are the same")
        terminal.say("l")
        terminal.wait_for(r"^--- guest$")
        terminal.wait_for(PROMPT)
        terminal.say("shutdown")
        terminal.wait_for(r"cut-off has ended; 1 GPU free again")
        assert terminal.end() == 0


# ---- what is kept up to date -------------------------------------------------------------------------


def test_top_follows_what_happens_until_q(laptop: Laptop) -> None:
    with at_terminal(laptop, "top", HOST, "--every", "1") as terminal:
        terminal.wait_for(r"mlbox top · 4 of 4 GPUs free on 1 host · ")
        assert laptop.run(*BARE, "--name", "watched", "--detach").code == 0
        terminal.wait_for(r"mlbox top · 3 of 4 GPUs free on 1 host · ")
        terminal.wait_for(r"^session watched  running on GPU \d")
        terminal.say("q")
        assert terminal.end() == 0
    assert laptop.run("session", "shutdown", "watched", "--host", HOST).code == 0
