"""mlbox top: what `mlbox status` tells and why one's own jobs wait, on the whole terminal, again and again."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from mlbox import errors
from mlbox.client import options, output, state
from mlbox.client.commands import jobs, status
from mlbox.client.hosts import ask_all, exit_code, known_hosts
from mlbox.client.screen import Screen, Shown
from mlbox.core import text
from mlbox.core.log import WAITING

Json = dict[str, Any]
EVERY = 3.0  # s
_LEAST, _MOST = 1.0, 3600.0
_AGAIN = 30.0  # s until a host that did not answer is asked once more: that may take ssh's whole time-out


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox top\n  mlbox top gpu1 gpu2 --every 10",
        description="Every host's GPUs, who holds and uses them, the queues, and why your jobs wait; kept up to date.\n"
        "q leaves; arrows, space, b, g and G scroll.",
    )
    made.add_argument("--every", type=_seconds, default=EVERY, metavar="S", help="seconds between looks (default: 3)")
    options.hosts(made, ", and the lab's")
    return made


def _seconds(said: str) -> float:
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not _LEAST <= seconds <= _MOST:
        raise argparse.ArgumentTypeError(f"{said!r} is not {_LEAST:.0f} to {_MOST:.0f} seconds")
    return seconds


def main(arguments: argparse.Namespace) -> int:
    config = options.config(arguments)
    if arguments.json:
        raise errors.Usage("mlbox top has no --json: it goes on", "mlbox status --json tells it once")
    if not output.is_screen():
        raise errors.Usage("mlbox top needs a terminal", "mlbox status tells it once, also as --json")
    look = Look(arguments.hosts, config)
    look.again()  # what ssh asks, it asks before the terminal is taken
    if code := exit_code(look.found):
        status.show(look.found)
        return code
    with Screen() as screen:
        looking = threading.Thread(target=_keep_looking, args=(look, arguments.every, screen), daemon=True)
        looking.start()
        screen.show(*look.shown())
        while screen.wait():
            screen.show(*look.shown())
    os._exit(0)  # a look may be under way, and wait for a host that is off


def _keep_looking(look: Look, every: float, screen: Screen) -> None:
    """What goes wrong in this thread is the screen's to tell: it would go on showing what was."""
    try:
        while True:
            time.sleep(every)
            look.again()
            screen.wake()
    except Exception as error:  # raised again where the terminal is
        screen.fail(error)


class Look:
    """What the hosts last told; `hosts`: those that were named."""

    def __init__(self, hosts: Sequence[str], config: state.Config) -> None:
        self._config, self._named = config, list(dict.fromkeys(hosts))
        self._names = self._named or known_hosts(config)
        self.found: dict[str, Json | errors.MlboxError] = {}
        self._waiting: list[Json] = []
        self._not_before: dict[str, float] = {}

    def again(self) -> None:
        """Those of the lab that were not named too, as `mlbox status` does."""
        self._ask([*self._names, *self.found])
        if not self._named:
            self._ask(status.unasked(self.found))
        waits = [name for name, reply in self._answers().items() if any(queue["waiting"] for queue in reply["queues"])]
        waiting: dict[str, Json] = {}
        for reply in ask_all(waits, "jobs", {"ended": 0}, self._config).values():
            for job in [] if isinstance(reply, errors.MlboxError) else reply["jobs"]:
                waiting.setdefault(job["id"], job)
        self._waiting = [job for job in waiting.values() if job["state"] in WAITING]

    def _ask(self, names: Sequence[str]) -> None:
        now = time.monotonic()
        due = [name for name in dict.fromkeys(names) if now >= self._not_before.get(name, 0.0)]
        self.found = {**self.found, **ask_all(due, "status", {}, self._config)}
        for name in due:
            if isinstance(self.found[name], errors.MlboxError):
                self._not_before[name] = time.monotonic() + _AGAIN

    def _answers(self) -> dict[str, Json]:
        return {name: reply for name, reply in self.found.items() if not isinstance(reply, errors.MlboxError)}

    def shown(self) -> tuple[str, list[str]]:
        """The line that stays, and the others."""
        out, waiting = Shown(), self._waiting
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status.show(self.found)
            if waiting:
                print("\nyour jobs that wait")
                jobs.show(waiting)
        free, all_ = status.free(list(self._answers().values()))
        hosts = text.count(len(self._answers()), "host")
        head = (
            f"mlbox top · {free} of {text.count(all_, 'GPU')} free on {hosts} · {time.strftime('%H:%M:%S')} · q leaves"
        )
        return output.bold(head), out.getvalue().splitlines()
