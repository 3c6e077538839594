"""A ROOT that hangs must not hang whoever asks for it.

A call into a hung mount returns when the mount does, and until then its thread runs no signal's handler either. So
another thread asks ROOT for a sign of life now and then; where none comes, it says so and ends the process, which
is as good as a crash: everything on disk stands that. Keepers and runners have no watchdog: they wait with ROOT.

It makes no import that an idle tick would have to pay for.
"""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Callable

EVERY, PATIENCE = 5.0, 15.0  # s


def watch(root: str, hung: Callable[[str], None]) -> None:
    """As long as this process lives: where `root` hangs, `hung` is called with what to say, and the process ends."""
    _thread.start_new_thread(_watch, (root, hung))


def _watch(root: str, hung: Callable[[str], None]) -> None:
    answers = True
    while answers:
        time.sleep(EVERY)  # first: most calls are over by then
        answers = _in_time(lambda: _ask(root))
    _in_time(lambda: hung(f"{root} has not answered for {PATIENCE:.0f} s: its filesystem hangs"))  # a log may be there
    os._exit(1)


def _ask(root: str) -> None:
    try:  # noqa: SIM105 (contextlib would be an import)
        os.statvfs(root)  # unlike stat, no client of a network's filesystem answers it from a cache
    except OSError:  # an answer too
        pass


def _in_time(act: Callable[[], None]) -> bool:
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        act()
        done.release()

    _thread.start_new_thread(run, ())
    return done.acquire(timeout=PATIENCE)
