"""The trial of exclusive creation: several writers append to one log, on one host, or on several at the same time.

FOLDER/there.<host>    it is ready: all wait until all are
FOLDER/ev/             the log: long enough when it has so many slots, and each host has won some of them
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core.slots import Writer
from mlbox.host import files, slots

Json = dict[str, Any]
SLOTS = 25
_WRITERS = 4  # of each host
_EACH, _MOST = 5, 300  # slots: won by each host at least; written in all at most
_PATIENCE = 20.0  # s for the others to come, and for all to have won theirs
_TRIES, _AGAIN = 3, 0.2  # of a writer, and s between two
_SLOW = 0.1  # s between two slots of a writer while another host has won none


def run(folder: Path, host: str, hosts: int = 1) -> Json:
    """`won`: the slots that this host's writers won; `met`: all `hosts` were at it, each winning some; `broken`: what
    ended a writer, if anything did."""
    files.make_folder(folder / "ev", 0o700)
    (folder / f"there.{host}").touch()
    deadline = time.monotonic() + _PATIENCE
    while (there := len(list(folder.glob("there.*")))) < hosts and time.monotonic() < deadline:
        time.sleep(0.02)  # no filesystem of several hosts has an event for it
    came = there >= hosts
    hosts = hosts if came else 1
    won: list[int] = []
    broken: list[str] = []
    met = [False]
    deadline = time.monotonic() + _PATIENCE

    def write(number: int) -> None:
        """Again after an error, as a tick would: under such a load GlusterFS gave an EIO that was gone at once."""
        for left in reversed(range(_TRIES)):
            try:
                return append(number)
            except (errors.MlboxError, OSError) as error:
                if not left:
                    broken.append(str(error))
            time.sleep(_AGAIN)

    def append(number: int) -> None:
        log, writer, alone = slots.Log(folder / "ev"), Writer(host, "trial", os.getpid(), f"{number}"), [True]

        def decide(events: Sequence[Json]) -> Json | None:
            by = Counter(str(event["by"]) for event in events)
            alone[0], all_won = len(by) < hosts, bool(by) and len(by) >= hosts and min(by.values()) >= _EACH
            met[0] = met[0] or all_won
            long = len(events) >= SLOTS and (all_won or time.monotonic() > deadline)
            return None if long or len(events) >= _MOST else {"by": host}

        while not isinstance(answer := log.append(decide, writer, 10), slots.Refused):
            won.append(answer.slot)
            time.sleep(_SLOW if alone[0] else 0)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(_WRITERS)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    return {"won": sorted(won), "met": met[0] and came, "broken": broken[0] if broken else ""}
