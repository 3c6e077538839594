"""Sessions that colleagues share with this user: found by their doors on this host (host/sharing.py), and asked there.

    /tmp/mlbox-<uid>.shared/<ID>/door          {"op": "facts" | "enter" | "logs", …} -> its answer, or nothing at all

Whose a door is says the kernel twice: both folders must be <uid>'s own, which nobody else can move or replace in a
sticky /tmp, and so must the process that listens. A name that somebody took beforehand is thereby no door. Several
users can offer a session of one id; then it is said whose, and nobody is taken at random.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import ids, sharing, text
from mlbox.host import files, here, lines, peer
from mlbox.host.job import Job

Json = dict[str, Any]
_FOLDERS = Path("/tmp")
_OF = re.compile(r"mlbox-([0-9]{1,10})\.shared")
_MOST = 32  # doors of one owner that are looked at, the newest first; whoever makes more hides their own
_PATIENCE = 3.0  # s in which the door that is meant answers
_ENTRY = 20.0  # s; behind a reverse tunnel its own host is asked
_GLANCE = 1.0  # s for each where many are asked: anybody can make some that never do
_LONGEST = 256 * 1024  # bytes of an answer


@dataclass(frozen=True)
class Door:
    folder: Path
    uid: int

    @property
    def session(self) -> str:
        return self.folder.name

    @property
    def owner(self) -> str:
        return peer.name(self.uid)

    def ask(self, question: Json, patience: float = _PATIENCE) -> Json:
        """Raises NotFound where we are not let in, HostUnready where nobody answers."""
        deadline = time.monotonic() + patience
        found = self._ask(question, patience, deadline)
        if found is None:  # who was at the door may just have left it: then nobody is there, or the next one
            found = self._ask(question, patience, deadline)
        if found is None:
            raise errors.NotFound(
                f"{self.owner} does not share session {self.session} with you (any more)", "ask its owner"
            )
        if "unready" in found:
            why = text.safe(str(found["unready"]))[:300]
            raise errors.HostUnready(f"{self.owner}'s session {self.session} is not there just now: {why}", "try again")
        return found

    def _ask(self, question: Json, patience: float, deadline: float) -> Json | None:
        """None where it closes without an answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(patience)
                connection.connect(str(self.folder / "door"))
                if peer.uid(connection) != self.uid:
                    raise errors.NotFound(f"the door of session {self.session} is not {self.owner}'s")
                return _asked(connection, question, deadline)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise errors.HostUnready(
                    f"nobody answers at the door of {self.owner}'s session {self.session}: {error}",
                    f"where its keeper was killed, {self.owner}'s next command there starts another; a reverse tunnel "
                    "is dialled again and again",
                ) from None

    def facts(self, patience: float = _PATIENCE) -> Json:
        return sharing.facts(self.ask({"op": "facts"}, patience), self.session, self.owner, here.host_name())


def _asked(connection: socket.socket, question: Json, deadline: float) -> Json | None:
    """Its answer; None where it closes without one."""
    try:
        lines.say(connection, question)
        return lines.hear(connection, _LONGEST, deadline)
    except (BrokenPipeError, ConnectionResetError):  # closed before it was asked, or with our question unread
        return None


def all_doors() -> list[Door]:
    """Of other users, on this host."""
    found: list[Door] = []
    for folder in sorted(_FOLDERS.glob("mlbox-*.shared")):
        match = _OF.fullmatch(folder.name)
        if match is None or int(match[1]) == os.getuid() or not files.is_own(folder, int(match[1])):
            continue
        try:
            names = sorted(filter(ids.is_ulid, os.listdir(folder)), reverse=True)[:_MOST]
        except OSError:
            continue
        found += [Door(folder / name, int(match[1])) for name in names if files.is_own(folder / name, int(match[1]))]
    return found if peer.known() else []


def visible() -> list[Json]:
    """The facts of all sessions that are shared with this user here."""
    return [facts for _, facts in _known(all_doors())]


def _known(doors: list[Door]) -> list[tuple[Door, Json]]:
    """Those who let us in. All are asked at once, for any of them may be slow."""
    if not doors:
        return []
    from concurrent.futures import ThreadPoolExecutor  # most hosts have no door

    def one(door: Door) -> tuple[Door, Json] | None:
        try:
            return door, door.facts(_GLANCE)
        except errors.MlboxError:
            return None

    with ThreadPoolExecutor(len(doors)) as pool:
        return [pair for pair in pool.map(one, doors) if pair is not None]


def find(wanted: str) -> tuple[Door, Json] | None:
    """By name, id, or the beginning or end of an id, with OWNER/ before it where several are meant; None where there is
    no such session for this user. Raises NotFound and HostUnready where it is clear which one was meant."""
    owner, _, name = wanted.rpartition("/")
    if not name:
        return None
    doors = [door for door in all_doors() if owner in ("", door.owner)]
    exact = [door for door in doors if door.session == name]
    if len(exact) == 1:
        return exact[0], exact[0].facts()
    found = [pair for pair in _known(exact or doors) if _is(pair[1], name)]
    if len(found) > 1:
        which = ", ".join(f"{door.owner}/{facts['name']} ({door.session})" for door, facts in found)
        raise errors.Several(f"{text.safe(name)!r} is shared with you {len(found)} times: {which}", "say which")
    return found[0] if found else None


def _is(facts: Json, name: str) -> bool:
    return name == facts["name"] or ids.is_part(name, str(facts["id"]))


def found_or(own: Callable[[], Job], wanted: str) -> Job | tuple[Door, Json]:
    """A session of one's own, or else a colleague's. Raises what `own` raises where it is neither, or was one's own."""
    try:
        return own()
    except (errors.Ended, errors.Several):
        raise
    except errors.NotFound:
        shared = find(wanted)
        if shared is None:
            raise
        return shared


def answer(door: Door, facts: Json, args: Json) -> Json:
    """To `sessions`, as its own session would be answered for (handlers/sessions.py)."""
    reply: Json = {"host": here.host_name(), "session": facts}
    if args.get("logs"):
        reply["logs"] = sharing.logs(door.ask({"op": "logs"}, _ENTRY))
    if args.get("reveal"):
        keys = sharing.keys(list(args.get("authorized_keys", [])))
        said = door.ask({"op": "enter", "keys": keys}, _ENTRY)
        reply["session"] = {**facts, **sharing.reach(said, str(door.folder), door.owner)}
    return reply


def leads(path: Path) -> bool:
    """Whether a socket is in a door's folder."""
    return any(path.parent == door.folder for door in all_doors())
