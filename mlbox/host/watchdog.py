"""A ROOT that hangs, or a home with mlbox's own file in it, must not hang whoever asks for it.

A call into a hung mount returns when the mount does, and until then its thread runs no signal's handler either. So
another thread asks these folders for a sign of life now and then; where none comes, it says so and ends the process,
which is as good as a crash: everything on disk stands that. Keepers and runners have no watchdog: they wait with ROOT.
A home that hung before this could begin is the client's to tell (client/remote.py).

It makes no import that an idle tick would have to pay for.
"""

from __future__ import annotations

import _thread
import os
import sys
import time
from collections.abc import Callable

EVERY, PATIENCE = 5.0, 15.0  # s


def watch(folders: tuple[str, ...], hung: Callable[[str], None]) -> None:
    """As long as this process lives: where one of these hangs, `hung` is called with what to say, and the process
    ends."""
    _thread.start_new_thread(_watch, (folders, hung))


def _watch(folders: tuple[str, ...], hung: Callable[[str], None]) -> None:
    silent = ""
    while not silent:
        time.sleep(EVERY)  # first: most calls are over by then
        silent = next((folder for folder in folders if not _answers(folder)), "")
    _in_time(
        lambda: hung(f"{silent} has not answered for {PATIENCE:.0f} s: its filesystem hangs")
    )  # a log may be there
    os._exit(1)


def own_folder() -> str:
    """Of the file that this process runs: what it has not imported yet is read from there."""
    return os.path.dirname(os.path.abspath(sys.argv[0]))


def _answers(folder: str) -> bool:
    return _in_time(lambda: _ask(folder))


def _ask(folder: str) -> None:
    try:  # noqa: SIM105 (contextlib would be an import)
        os.statvfs(folder)  # unlike stat, no client of a network's filesystem answers it from a cache
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
