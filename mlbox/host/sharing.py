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

One thread accepts, and does the owner's word; a colleague's conversation has a thread of its own.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import sharing
from mlbox.host import colleague, files, lines, peer, store
from mlbox.host.behind import Behind
from mlbox.host.colleague import Colleague
from mlbox.host.job import Job
from mlbox.splice import Splice

Json = dict[str, Any]
_KEEP_YOUNG = 6 * 3600.0  # s; systems that clean /tmp by age look at least that rarely
_PATIENCE = 5.0  # s for a question to come, and for a service to accept
_BREATH = 0.2  # s; after an accept that failed, for it would fail at once again
_LONGEST = 64 * 1024  # bytes of a question


class Sharing:
    """`behind`: the session, seen from here."""

    def __init__(self, job: Job, behind: Behind) -> None:
        self._job, self._behind = job, behind
        self._people: dict[int, Colleague] = {}
        self._lock = threading.RLock()  # over the colleagues and their keys
        self._telling = threading.Lock()  # the session's sshd of these, so that it hears the last word last
        self._control = 0  # its inode, by which this one is at the door still
        self._selector = selectors.DefaultSelector()
        self._door: socket.socket | None = None
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._run, name="sharing", daemon=True)

    def open(self) -> None:
        """From here on the owner's word is heard; those who may join already, may again. Raises OSError."""
        self._job.control.unlink(missing_ok=True)
        self._listen(self._job.control, self._on_control, 0o600)
        self._control = os.lstat(self._job.control).st_ino
        store.clear_door(self._job)  # a killed keeper's
        for person in colleague.recorded(self._job):
            self._let_in(person)
        if self._job.share.exists():  # somebody may have been taken out while nobody was here to tell the sshd
            threading.Thread(target=self._put_keys, name="keys", daemon=True).start()
        self._selector.register(self._stop_r, selectors.EVENT_READ)
        self._thread.start()

    def close(self) -> None:
        """The session ends: nobody is let in any more, and nothing is left."""
        self.leave()
        store.clear_shares(self._job)

    def leave(self) -> None:
        """The session goes on: whoever is at its door next lets the same people in, by the same names."""
        os.write(self._stop_w, b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        for person in self._people.values():
            person.splices.cut()

    # ---- listening ---------------------------------------------------------------------------------

    def _listen(self, path: Path, act: Callable[[socket.socket], None], mode: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        os.chmod(path, mode)
        listener.listen(128)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, act)
        return listener

    def _run(self) -> None:
        due = time.monotonic() + _KEEP_YOUNG
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                if key.fileobj == self._stop_r:
                    return
                self._accept(key)
            if time.monotonic() >= due:
                due += _KEEP_YOUNG
                self._keep_young()

    def _keep_young(self) -> None:
        door = [] if self._door is None else [self._job.door.parent, self._job.door, *self._job.door.iterdir()]
        for path in (self._job.control, self._job.share, *door):
            with suppress(OSError):
                os.utime(path, follow_symlinks=False)

    def _accept(self, key: selectors.SelectorKey) -> None:
        assert isinstance(key.fileobj, socket.socket)
        try:
            connection, _ = key.fileobj.accept()
        except (OSError, ValueError):  # gone again; or it was closed by the owner's word just now
            threading.Event().wait(_BREATH)
            return
        connection.settimeout(_PATIENCE)
        try:
            key.data(connection)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread to be had
            print(f"sharing: {error}", file=sys.stderr)
            connection.close()

    # ---- the owner -----------------------------------------------------------------------------------

    def _on_control(self, connection: socket.socket) -> None:
        """In the accepting thread: between its words the owner finds things as they are."""
        with connection:
            question = lines.hear(connection, _LONGEST, time.monotonic() + _PATIENCE) or {}
            act = {"share": self._share, "unshare": self._unshare}.get(str(question.get("op")))
            uid = question.get("uid")
            if act is None or type(uid) is not int:
                return
            try:
                with self._lock:
                    reply = act(uid)
            except (errors.MlboxError, OSError) as error:
                reply = {"error": str(error)}
            lines.say(connection, reply)

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
            self._door = self._listen(self._job.door / "door", self._on_door, 0o666)
        for service in self._behind.services:
            path = self._job.door / sharing.socket_name(person.secret, service)
            person.listeners.append(self._listen(path, partial(self._on_service, person, service), 0o666))

    def _unshare(self, uid: int) -> Json:
        """First on record, then in fact: a keeper killed in between is no way back in. Keys open nothing by then."""
        person = self._people.pop(uid, None)
        if person is None:
            return {"changed": False, "ended": 0}
        trouble = colleague.take_out(self._job, self._people.values())
        for listener in person.listeners:
            self._close(listener)
        ended = person.splices.cut()
        if not self._people and self._door is not None:
            self._close(self._door)
            self._door = None
            shutil.rmtree(self._job.door, ignore_errors=True)
        return {"changed": True, "ended": ended, "trouble": "\n".join(filter(None, (trouble, self._put_keys())))}

    def _put_keys(self) -> str:
        """What kept the session's sshd from taking the keys of those who may join, and no others; or nothing."""
        try:
            with self._telling:
                self._behind.put_keys(self._keys())
        except (errors.MlboxError, OSError) as error:
            return f"{error}: the keys of those who may join are not all as they should be"
        return ""

    def _keys(self) -> list[str]:
        with self._lock:
            return [key for person in self._people.values() for key in person.keys]

    def _close(self, listener: socket.socket) -> None:
        self._selector.unregister(listener)
        with suppress(OSError):
            os.unlink(listener.getsockname())
        listener.close()

    # ---- a colleague ---------------------------------------------------------------------------------

    def _on_door(self, connection: socket.socket) -> None:
        person = self._people.get(peer.uid(connection))
        self._begin(person, connection, self._converse)

    def _on_service(self, person: Colleague, service: str, connection: socket.socket) -> None:
        known = person if peer.uid(connection) == person.uid else None
        self._begin(known, connection, partial(self._carry, service))

    def _begin(
        self, person: Colleague | None, connection: socket.socket, act: Callable[[Colleague, socket.socket], None]
    ) -> None:
        """Nobody else gets a byte, or a thread."""
        if person is None or not person.take():
            connection.close()
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
            far.settimeout(_PATIENCE)
            files.connect(far, self._behind.way(service))
            far.settimeout(None)
            near.settimeout(None)
            if person.splices.add(splice):
                splice.run()
        finally:
            person.splices.remove(splice)
            far.close()

    def _converse(self, person: Colleague, connection: socket.socket) -> None:
        question = lines.hear(connection, _LONGEST, time.monotonic() + _PATIENCE) or {}
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
        except errors.MlboxError as error:
            reply = {"unready": error.message}
        if self._is_in(person):
            lines.say(connection, reply)

    def _is_in(self, person: Colleague) -> bool:
        return self.is_last() and self._people.get(person.uid) is person

    def is_last(self) -> bool:
        """Nobody else is at the door since: of a tunnel's ends one may be left from before."""
        with suppress(OSError):
            return os.lstat(self._job.control).st_ino == self._control
        return False

    def _enter(self, person: Colleague, given: object) -> Json:
        """By these keys, too, beside those that came before, from another laptop."""
        with self._lock:
            new = sharing.keys([*(given if isinstance(given, list) else []), *person.keys])
            if self._is_in(person) and set(new) != set(person.keys):
                person.keys = new
                colleague.record(self._job, self._people.values())
        with self._telling:
            said = self._behind.entry(self._keys())
        return {**self._behind.facts(), **said, "secret": person.secret}


def begin(job: Job, behind: Behind) -> Sharing | None:
    """The owner's word is heard from now on; None where it can't be shared."""
    if not peer.known():
        return None
    made = Sharing(job, behind)
    try:
        made.open()
    except (errors.MlboxError, OSError) as error:  # the session is more than that
        print(f"it can't be shared: {error}", file=sys.stderr)
        store.clear_shares(job)
        return None
    return made
