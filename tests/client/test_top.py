"""mlbox top: whom it asks and how often, what it shows, and the terminal it takes and gives back."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mlbox import cli, errors
from mlbox.client import state
from mlbox.client.commands import top
from tests.client.test_status import reply

DOWN = errors.Unreachable("no answer")
GPU = {
    "index": 0, "uuid": "GPU-1", "name": "H100", "memory": 80 << 30, "memory_used": 0, "utilization": 7,
    "temperature": 41,
}  # fmt: skip
WAITS = {"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": "train", "state": "submitted", "queue": "night", "submitted": 1.0,
         "at": 1.0, "waits": "2nd in queue night", "host": "", "gpus": [], "why": "", "owner": "ada"}  # fmt: skip


class Hosts:
    """What each replies, and who was asked what together."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {"gpu1": reply("gpu1", {"gpu1": "gpu1", "gpu2": "gpu2"}), "gpu2": DOWN}
        self.asked: list[tuple[str, list[str]]] = []

    def ask_all(self, names: list[str], verb: str, *_: object) -> dict[str, Any]:
        if names:
            self.asked.append((verb, list(names)))
        return {name: {"jobs": [WAITS]} if verb == "jobs" else self.replies[name] for name in names}


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    made = Hosts()
    monkeypatch.setattr(top, "ask_all", made.ask_all)
    return made


def test_who_does_not_answer_is_asked_rarely(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time would cost ssh's time-out, and what the others tell would be as old."""
    now = [1000.0]
    monkeypatch.setattr(top, "time", SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime))
    look = top.Look([], state.Config(hosts=("gpu1",)))
    for _ in range(12):
        look.again()
        now[0] += 3
    assert hosts.asked[:3] == [("status", ["gpu1"]), ("status", ["gpu2"]), ("status", ["gpu1"])]
    assert [names for _, names in hosts.asked].count(["gpu1"]) == 11
    assert hosts.asked[-2:] == [("status", ["gpu1", "gpu2"]), ("status", ["gpu1"])]


def test_what_is_shown(hosts: Hosts) -> None:
    hosts.replies["gpu1"].update(gpus=[GPU], queues=[{"name": "night", "waiting": 2, "running": 0, "paused": ""}])
    look = top.Look(["gpu1", "gpu2"], state.Config())
    look.again()
    head, lines = look.shown()
    assert "1 of 1 GPU free on 1 host" in head
    text = "\n".join(lines)
    for words in (
        "H100",
        "41°C",
        "gpu2\033[0m  no answer",
        "0 running, 2 waiting",
        "your jobs that wait",
        "2nd in queue",
    ):
        assert words in text
    hosts.replies["gpu1"]["queues"][0]["waiting"] = 0
    look.again()
    assert "train" not in "\n".join(look.shown()[1])


def test_nobody_s_words_command_the_terminal(hosts: Hosts) -> None:
    """Which shows what is printed there as it is. A colleague's live hint says which GPUs a job has."""
    bad = "x\033]0;owned\007"
    told = hosts.replies["gpu1"]
    told.update(
        host=bad, driver=bad, lab={bad: bad}, drained=bad, sessions=[{"name": bad, "state": bad, "gpus": [bad]}]
    )
    told.update(jobs=[{"name": bad, "id": bad, "owner": bad, "since": 1.0, "gpus": [bad]}])
    told.update(queues=[{"name": bad, "waiting": 1, "running": 0, "paused": bad}], trouble=bad)
    told.update(silent=[{"host": bad, "silent": 1.0, "jobs": told["jobs"], "drained": bad}])
    hosts.replies[bad] = errors.Unreachable(bad)
    look = top.Look([], state.Config(hosts=("gpu1",)))
    look.again()
    assert "owned" in "\n".join(look.shown()[1])
    assert "\033]" not in "\n".join(look.shown()[1]) and "\007" not in "\n".join(look.shown()[1])


@pytest.mark.parametrize(("words", "why"), [(["top"], "needs a terminal"), (["top", "--json"], "has no --json")])
def test_without_a_terminal_it_says_what_to_use(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert why in said and "mlbox status" in said


@pytest.mark.parametrize("every", ["0", "-1", "nan", "x", "1e9"])
def test_how_often_is_checked(every: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--every", every]) == 2
    assert "seconds" in capsys.readouterr().err


# ---- the terminal --------------------------------------------------------------------------------------

PROGRAM = """
from mlbox.client.screen import Screen
with Screen() as screen:
    screen.show("the head", [f"line {n}." for n in range(100)])
    while screen.wait():
        pass
print("back")
"""


class Terminal:
    def __init__(self) -> None:
        self._fd, inner = pty.openpty()
        termios.tcsetwinsize(inner, (10, 40)) if hasattr(termios, "tcsetwinsize") else _set_size(inner)
        self.mode = termios.tcgetattr(inner)
        self.inner = inner
        self.text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.process = subprocess.Popen(
            (sys.executable, "-c", PROGRAM), stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )

    def until(self, found: Callable[[str], object]) -> str:
        """All that came, once it is as it should be; and from then on what comes next."""
        while not found(self.text):
            assert select.select([self._fd], [], [], 20)[0], f"nothing more came:\n{self.text!r}"
            self.text += self._decode(os.read(self._fd, 65536))
        text, self.text = self.text, ""
        return text

    def press(self, key: str) -> None:
        os.write(self._fd, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
        os.close(self.inner)


def _set_size(descriptor: int) -> None:
    import fcntl
    import struct

    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"line (\d+)\.", text)]


def test_keys_scroll_and_q_puts_the_terminal_back(terminal: Terminal) -> None:
    drawn = "\033[J"
    text = terminal.until(lambda text: drawn in text)
    assert text.startswith("\033[?1049h") and "the head · 91 lines more: ↓" in text and numbers(text) == [*range(9)]
    keys = [("j", 1), (" ", 10), ("\033[A", 9), ("G", 91), ("j", 91), ("b", 82), ("g", 0), ("k", 0)]
    for key, first in [*keys, ("jjj\033[6~k", 11)]:
        terminal.press(key)
        assert numbers(terminal.until(lambda text: drawn in text)) == [*range(first, first + 9)], key
    assert termios.tcgetattr(terminal.inner)[3] != terminal.mode[3]
    terminal.press("q")
    text = terminal.until(lambda text: "back" in text)
    assert "\033[?1049l" in text
    assert terminal.process.wait(20) == 0
    assert termios.tcgetattr(terminal.inner)[3] == terminal.mode[3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_puts_it_back_too(terminal: Terminal, number: signal.Signals) -> None:
    terminal.until(lambda text: "\033[J" in text)
    terminal.process.send_signal(number)
    terminal.until(lambda text: "\033[?1049l" in text)
    assert terminal.process.wait(20) != 0
    assert termios.tcgetattr(terminal.inner)[3] == terminal.mode[3]


def test_a_stopped_one_leaves_the_terminal_and_takes_it_again(terminal: Terminal) -> None:
    terminal.until(lambda text: "\033[J" in text)
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.until(lambda text: "\033[?1049l" in text)
    os.waitpid(terminal.process.pid, os.WUNTRACED)
    assert termios.tcgetattr(terminal.inner)[3] == terminal.mode[3]
    terminal.process.send_signal(signal.SIGCONT)
    assert numbers(terminal.until(lambda text: "\033[J" in text)) == [*range(9)]


def test_a_bug_in_the_thread_that_looks_ends_it(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on showing what was, as if it were."""

    class Told:
        error: Exception | None = None

        def wake(self) -> None:
            raise AssertionError("nothing is new")

        def fail(self, error: Exception) -> None:
            self.error = error

    monkeypatch.setattr(top, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
    look, screen = top.Look(["gpu1"], state.Config()), Told()
    hosts.replies.clear()
    top._keep_looking(look, 1.0, screen)  # type: ignore[arg-type]
    assert isinstance(screen.error, KeyError)
