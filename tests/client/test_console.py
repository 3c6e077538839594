"""The prompts of a person's terminal: what is said behind one begins a line of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from terminal import Terminal

import mlbox

_CONSOLE = """
import threading
from types import SimpleNamespace
from mlbox.client.console import Console
attached = SimpleNamespace(ended=threading.Event())
timer = threading.Timer({ends}, attached.ended.set)
timer.daemon = True
timer.start()
print(Console(attached, str).run())
"""
_QUESTION = """
from mlbox.client import output
try:
    print(output.ask("Remove these? [y]es, [n]o?", ("yes", "no"), "no"))
except KeyboardInterrupt:
    print("left")
"""

# ^C comes as soon as the question can be seen, before the answer is waited for.
_AT_ONCE = """
import os, signal, sys
class Seen:
    def __init__(self, stream): self.stream = stream
    def write(self, words): return self.stream.write(words)
    def flush(self):
        self.stream.flush()
        sys.stderr = self.stream
        os.kill(os.getpid(), signal.SIGINT)
sys.stderr = Seen(sys.stderr)
"""

# The kernel gives the signal to another thread: as if it had come just before the main one went to sleep, whose sleep
# it does not end.
_ELSEWHERE = """
import signal, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.{number}}})
"""


def at_terminal(program: str) -> Terminal:
    environment = {**os.environ, "PYTHONPATH": str(Path(mlbox.__file__).parents[1])}
    return Terminal([sys.executable, "-c", program], environment)


@pytest.mark.parametrize("key", ["^C", "^D"])
@pytest.mark.parametrize(
    ("program", "prompt", "said"), [(_CONSOLE.format(ends=60), "^> ", "leave"), (_QUESTION, r"\[n\]o\? ", "left")]
)
def test_who_leaves_at_a_prompt(program: str, prompt: str, said: str, key: str) -> None:
    with at_terminal(program) as terminal:
        terminal.wait_for(prompt)
        (terminal.interrupt if key == "^C" else terminal.end_input)()
        terminal.wait_for(f"^{said}$")


def test_who_leaves_as_soon_as_a_question_is_seen() -> None:
    with at_terminal(_AT_ONCE + _QUESTION) as terminal:
        terminal.wait_for("^left$")


@pytest.mark.parametrize(
    ("program", "number", "prompt", "said"),
    [
        (_CONSOLE.format(ends=60), signal.SIGTERM, "^> ", "leave"),
        (_CONSOLE.format(ends=60), signal.SIGINT, "^> ", "leave"),
        (_QUESTION, signal.SIGINT, r"\[n\]o\? ", "left"),
    ],
)
def test_a_signal_that_comes_just_before_it_waits(program: str, number: signal.Signals, prompt: str, said: str) -> None:
    with at_terminal(_ELSEWHERE.format(number=number.name) + program) as terminal:
        terminal.wait_for(prompt)
        terminal.process.send_signal(number)
        terminal.wait_for(f"^{said}$", 20)


def test_an_end_that_comes_by_itself() -> None:
    with at_terminal(_CONSOLE.format(ends=0.2)) as terminal:
        terminal.wait_for("^> ")
        terminal.wait_for("^ended$")


@pytest.mark.parametrize(("typed", "said"), [("d", "detach"), ("shutdown", "shutdown")])
def test_an_answer_ends_its_line_itself(typed: str, said: str) -> None:
    with at_terminal(_CONSOLE.format(ends=60)) as terminal:
        terminal.wait_for("^> ")
        terminal.say(typed)
        terminal.wait_for(f"{typed}\n{said}$")


def test_lines_that_came_at_once_answer_nothing() -> None:
    """A program that had the terminal raw let them queue; a buffer would keep the second for another question."""
    with at_terminal("import tty\ntty.setraw(0)\n" + _QUESTION) as terminal:
        terminal.wait_for(r"\[n\]o\? ")
        terminal.say("y\ny")
        terminal.wait_for("one of: yes, no")
