"""A session's door for colleagues: kept by its keeper, or by the end of its reverse tunnel at a rendezvous
(host/rendezvous.py), and opened by its owner's word (handlers/share.py).

    /tmp/mlbox-<uid>/<id>.share                who may join, and with which keys; survives a keeper (0600)
    /tmp/mlbox-<uid>/<id>.control              {"op": "share" | "unshare", "uid": N}: the owner's word to the keeper
    /tmp/mlbox-<uid>.shared/<ID>/door          {"op": "facts" | "enter" | "logs"}: asked by host/door.py
    /tmp/mlbox-<uid>.shared/<ID>/<secret>.jupyter …    that colleague's way to each service

The session's own sockets stay in their closed folder. Of each connection the kernel says who made it (host/peer.py),
also of one that sshd forwards, which it does as the user who has logged in; only a colleague's are joined with the
session, by this process, so that taking back a share ends them. Nobody else gets a byte. Neither file nor control is
in what a container mounts: who works in the session can't let others in.

One thread accepts, and does the owner's word; a colleague's conversation has a thread of its own. Only one process is
at a session's door: its keeper, which has a lock, or its tunnel's end, which takes one.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from mlbox import errors
from mlbox.core import sharing
from mlbox.host import colleague, files, lines, peer
from mlbox.host.behind import Behind
from mlbox.host.colleague import Colleague
from mlbox.host.job import Job
from mlbox.host.listeners import PATIENCE, Listeners
from mlbox.splice import Splice

Json = dict[str, Any]
_LONGEST = 64 * 1024  # bytes of a question
_AGAIN, _TRIES = 10.0, 30  # s; until a session's sshd has been told
_AWAY = {"unready": "who is at its door is just changing"}


class Sharing:
    """`behind`: the session, seen from here."""

    def __init__(self, job: Job, behind: Behind) -> None:
        self._job, self._behind = job, behind
        self._people: dict[int, Colleague] = {}
        self._lock = threading.RLock()  # over the colleagues and what is on record of them
        self._telling = threading.Lock()  # the session's sshd of their keys; never waited for with the other one held
        self._listeners = Listeners("sharing", self._keep_young)
        self._door: socket.socket | None = None
        self._conversing = set[socket.socket]()
        self._left = threading.Event()

    def open(self) -> None:
        """From here on the owner's word is heard; those who may join already, may again. Raises OSError, MlboxError."""
        self._job.control.unlink(missing_ok=True)
        self._listeners.add(self._job.control, self._on_control, 0o600)
        self._job.clear_door()  # a killed keeper's
        for person in colleague.recorded(self._job):
            self._let_in(person)
        if self._job.share.exists():  # somebody may have been taken out while nobody was here to tell the sshd
            threading.Thread(target=self._put_keys_in_the_end, args=(0.0,), name="keys", daemon=True).start()
        self._listeners.start()

    def close(self) -> None:
        """The session ends: nobody is let in any more, and nothing is left."""
        self.leave()
        self._job.clear_shares()

    def leave(self) -> None:
        """The session goes on: whoever is at its door next lets the same people in, by the same names. On return this
        one begins nothing more."""
        self._listeners.stop()
        with self._lock:
            self._left.set()
            conversing = list(self._conversing)
        for person in self._people.values():
            person.splices.cut()
        for connection in conversing:  # silence would be the end of sharing
            with suppress(OSError):
                lines.say(connection, _AWAY)
                connection.shutdown(socket.SHUT_WR)
        self._job.control.unlink(missing_ok=True)

    def _keep_young(self) -> None:
        door = [self._job.door.parent, self._job.door, *self._job.door.glob("*")] if self._door else []
        for path in (self._job.control, self._job.share, self._job.door_lock, *door):
            with suppress(OSError):
                os.utime(path, follow_symlinks=False)

    # ---- the owner -----------------------------------------------------------------------------------

    def _on_control(self, connection: socket.socket) -> None:
        """Done by the accepting thread: between its words the owner finds things as they are. The session's sshd, which
        may be far, is told by another, and then the owner."""
        question = lines.hear(connection, _LONGEST, time.monotonic() + PATIENCE) or {}
        act = {"share": self._share, "unshare": self._unshare}.get(str(question.get("op")))
        uid = question.get("uid")
        if act is None or type(uid) is not int:
            connection.close()
            return
        try:
            with self._lock:
                reply = act(uid)
        except (errors.MlboxError, OSError) as error:
            reply = {"error": str(error)}
        threading.Thread(target=self._answer, args=(connection, reply), name="owner", daemon=True).start()

    def _answer(self, connection: socket.socket, reply: Json) -> None:
        trouble = self._put_keys() if reply.get("changed") else ""
        with connection, suppress(OSError):
            reply["trouble"] = "\n".join(filter(None, (reply.get("trouble", ""), trouble)))
            connection.settimeout(PATIENCE)
            lines.say(connection, reply)
        if trouble:
            self._put_keys_in_the_end(_AGAIN)

    def _share(self, uid: int) -> Json:
        if uid in self._people:
            return {"changed": False}
        if len(self._people) >= colleague.MOST:
            return {"error": colleague.TOO_MANY}
        person = Colleague(uid)
        colleague.record(self._job, [*self._people.values(), person])
        try:
            self._let_in(person)
        except (errors.MlboxError, OSError):
            self._unshare(uid)
            raise
        return {"changed": True}

    def _let_in(self, person: Colleague) -> None:
        self._people[person.uid] = person
        folder = files.private_folder(self._job.door.parent, 0o755)
        if self._door is None:
            files.private_folder(folder / self._job.id, 0o711)
            self._door = self._listeners.add(self._job.door / "door", self._on_door, 0o666)
        for service in self._behind.services:
            path = self._job.door / sharing.socket_name(person.secret, service)
            person.listeners.append(self._listeners.add(path, partial(self._on_service, person, service), 0o666))

    def _unshare(self, uid: int) -> Json:
        """First on record, then in fact: a keeper killed in between is no way back in. Keys open nothing by then."""
        person = self._people.pop(uid, None)
        if person is None:
            return {"changed": False, "ended": 0}
        trouble = colleague.take_out(self._job, self._people.values())
        for listener in person.listeners:
            self._listeners.remove(listener)
        ended = person.splices.cut()
        if not self._people and self._door is not None:
            self._listeners.remove(self._door)
            self._door = None
            self._job.clear_door()
        return {"changed": True, "ended": ended, "trouble": trouble}

    def _put_keys(self) -> str:
        """What kept the session's sshd from taking the keys of those who may join, and no others; or nothing."""
        if not self._telling.acquire(timeout=PATIENCE):
            return "the session's SSH server takes the keys of those who may join a little later"
        try:
            if not self._left.is_set():
                self._behind.put_keys(self._keys())
        except (errors.MlboxError, OSError) as error:
            return f"{error}: the keys of those who may join are not as they should be"
        finally:
            self._telling.release()
        return ""

    def _put_keys_in_the_end(self, pause: float) -> None:
        for _ in range(_TRIES):
            if self._left.wait(pause) or not self._put_keys():
                return
            pause = _AGAIN

    def _keys(self) -> list[str]:
        return [key for person in list(self._people.values()) for key in person.keys]

    # ---- a colleague ---------------------------------------------------------------------------------

    def _on_door(self, connection: socket.socket) -> None:
        self._begin(self._people.get(peer.uid(connection)), connection, self._converse)

    def _on_service(self, person: Colleague, service: str, connection: socket.socket) -> None:
        known = person if peer.uid(connection) == person.uid else None
        self._begin(known, connection, partial(self._carry, service))

    def _begin(
        self, person: Colleague | None, connection: socket.socket, act: Callable[[Colleague, socket.socket], None]
    ) -> None:
        """Nobody else gets a byte, or a thread."""
        if person is None:
            connection.close()
            return
        if not person.take():
            with connection, suppress(OSError):
                if act == self._converse:
                    connection.setblocking(False)
                    lines.say(connection, {"unready": "so many connections of yours are open already"})
            return

        def run() -> None:
            try:
                with connection, suppress(OSError):
                    act(person, connection)
            finally:
                person.give()

        try:
            threading.Thread(target=run, name="colleague", daemon=True).start()
        except RuntimeError:
            person.give()
            raise

    def _carry(self, service: str, person: Colleague, near: socket.socket) -> None:
        far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        splice = Splice(near, far)
        try:
            far.settimeout(PATIENCE)
            files.connect(far, self._behind.way(service))
            far.settimeout(None)
            near.settimeout(None)
            if person.splices.add(splice):
                splice.run()
        finally:
            person.splices.remove(splice)
            far.close()

    def _converse(self, person: Colleague, connection: socket.socket) -> None:
        with self._lock:
            if self._left.is_set():
                lines.say(connection, _AWAY)
                return
            self._conversing.add(connection)
        try:
            self._reply(person, connection)
        finally:
            with self._lock:
                self._conversing.discard(connection)

    def _reply(self, person: Colleague, connection: socket.socket) -> None:
        question = lines.hear(connection, _LONGEST, time.monotonic() + PATIENCE) or {}
        answers: dict[str, Callable[[], Json]] = {
            "facts": self._behind.facts,
            "enter": partial(self._enter, person, question.get("keys")),
            "logs": lambda: {"logs": self._behind.logs()},
        }
        answer = answers.get(str(question.get("op")))
        if answer is None or not self._is_in(person):
            return
        try:
            reply = answer()
        except (errors.MlboxError, OSError) as error:  # no end of sharing, for which silence would be taken
            reply = {"unready": error.message if isinstance(error, errors.MlboxError) else str(error)}
        if self._is_in(person):
            lines.say(connection, reply)

    def _is_in(self, person: Colleague) -> bool:
        return self._people.get(person.uid) is person

    def _enter(self, person: Colleague, given: object) -> Json:
        """By these keys, too, beside those that came before, from another laptop."""
        with person.entering:  # one at a time of each: nobody else waits long for the session's sshd
            with self._lock:
                new = sharing.keys([*(given if isinstance(given, list) else []), *person.keys])
                if self._is_in(person) and not self._left.is_set() and set(new) != set(person.keys):
                    person.keys = new
                    colleague.record(self._job, self._people.values())
            if not self._telling.acquire(timeout=2 * PATIENCE):
                raise errors.HostUnready("others are just coming in")
            try:
                here = self._is_in(person) and not self._left.is_set()
                said = self._behind.entry(self._keys()) if here else {}
            finally:
                self._telling.release()
        return {**self._behind.facts(), **said, "secret": person.secret}


def begin(job: Job, behind: Behind) -> Sharing | None:
    """The owner's word is heard from now on; None where it can't be shared, for that is no end of the session."""
    if not peer.known():
        return None
    made: Sharing | None = None
    try:
        made = Sharing(job, behind)
        made.open()
        return made
    except (errors.MlboxError, OSError, RuntimeError) as error:  # RuntimeError: no thread to be had
        print(f"it can't be shared: {error}", file=sys.stderr)
        if made is not None:
            made.leave()
        return None
