"""Who may join a session beside its owner, with what they have open and the keys they came with (host/sharing.py)."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterable

from mlbox.host import files
from mlbox.host.job import Job
from mlbox.splice import Splices

MOST = 7  # with two descriptors for each connection of theirs below 1024, the usual limit of a process
TOO_MANY = f"it is shared with {MOST} people already"
_CONNECTIONS = 64  # of each, so that none takes the keeper's descriptors or another's share of them


class Colleague:
    """One who may join. `secret`: in the names of this one's sockets, so that these can't be foretold."""

    def __init__(self, uid: int, secret: str = "", keys: Iterable[str] = ()) -> None:
        self.uid, self.secret, self.keys = uid, secret or os.urandom(16).hex(), list(keys)
        self.listeners: list[socket.socket] = []
        self.splices = Splices()
        self.entering = threading.Lock()
        self._taken = 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Room for one connection more."""
        with self._lock:
            free = not self.splices.over and self._taken < _CONNECTIONS
            self._taken += free
            return free

    def give(self) -> None:
        with self._lock:
            self._taken -= 1


# ---- on record: what survives a keeper -------------------------------------------------------------------


def recorded(job: Job) -> list[Colleague]:
    """Those who may join, as the keeper last wrote them down."""
    rows = files.read_json(job.share)
    return [Colleague(row["uid"], row["secret"], row["keys"]) for row in rows] if isinstance(rows, list) else []


def record(job: Job, people: Iterable[Colleague]) -> None:
    """These, and nobody else."""
    rows = [{"uid": person.uid, "secret": person.secret, "keys": person.keys} for person in people]
    files.write_whole(job.share, json.dumps(rows).encode())


def take_out(job: Job, left: Iterable[Colleague]) -> str:
    """On record only those who are left. Where a disk is too full to say who that is, it says nobody, and why."""
    try:
        record(job, left)
    except OSError as error:
        job.share.unlink(missing_ok=True)
        return f"{error}: the others' shares end with this keeper"
    return ""
