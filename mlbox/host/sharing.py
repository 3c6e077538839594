"""A session's door for colleagues: kept by its keeper, opened by its owner's word (handlers/share.py).

    /tmp/mlbox-<uid>/<id>.share                who may join, and with which keys; survives a keeper (0600)
    /tmp/mlbox-<uid>/<id>.control              {"op": "share" | "unshare", "uid": N}: the owner's word to the keeper
    /tmp/mlbox-<uid>.shared/<ID>/door          {"op": "facts" | "enter" | "logs"}: asked by host/door.py
    /tmp/mlbox-<uid>.shared/<ID>/<secret>.jupyter …    that colleague's way to each service

The session's own sockets stay in their closed folder. Of each connection the kernel says who made it (host/peer.py),
also of one that sshd forwards, which it does as the user who has logged in; only a colleague's are joined with the
session, by this process, so that taking back a share ends them. Nobody else gets a byte. Neither file nor control is
in what a container mounts: who works in the session can't let others in.

One thread accepts, and does the owner's word; a colleague's conversation has a thread of its own. Connections are
counted for each colleague, so that none takes the keeper's descriptors, or the others' share of them.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import sharing
from mlbox.host import colleague, files, peer, store
from mlbox.host.colleague import Colleague
from mlbox.host.job import Job
from mlbox.splice import Splice

Json = dict[str, Any]
_KEEP_YOUNG = 6 * 3600.0  # s; systems that clean /tmp by age look at least that rarely
_PATIENCE = 5.0  # s for a question to come, and for a service to accept
_BREATH = 0.2  # s; after an accept that failed, for it would fail at once again
_LONGEST = 64 * 1024  # bytes of a question


class Sharing:
    """`reach`: session.json, what it takes to reach the session."""

    def __init__(self, job: Job, reach: Mapping[str, Any]) -> None:
        self._job, self._reach = job, reach
        self._services = (*reach["services"], sharing.GUEST)
        self._people: dict[int, Colleague] = {}
        self._lock = threading.RLock()  # over the colleagues and their keys
        self._selector = selectors.DefaultSelector()
        self._door: socket.socket | None = None
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._run, name="sharing", daemon=True)

    def open(self) -> None:
        """From here on the owner's word is heard; those who may join already, may again. Raises OSError."""
        self._job.control.unlink(missing_ok=True)
        self._listen(self._job.control, self._on_control, 0o600)
        for person in colleague.recorded(self._job):
            self._let_in(person)
        self._selector.register(self._stop_r, selectors.EVENT_READ)
        self._thread.start()

    def close(self) -> None:
        """The session ends: nobody is let in any more, and nothing is left."""
        os.write(self._stop_w, b"x")
        self._thread.join()
        for person in self._people.values():
            person.splices.cut()
        store.clear_shares(self._job)

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
            question = _question(connection)
            act = {"share": self._share, "unshare": self._unshare}.get(str(question.get("op")))
            uid = question.get("uid")
            if act is None or type(uid) is not int:
                return
            try:
                with self._lock:
                    reply = act(uid)
            except (errors.MlboxError, OSError) as error:
                reply = {"error": str(error)}
            _say(connection, reply)

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
            shutil.rmtree(self._job.door, ignore_errors=True)  # a killed keeper's
            files.private_folder(folder / self._job.id, 0o711)
            self._door = self._listen(self._job.door / "door", self._on_door, 0o666)
        for service in self._services:
            path = self._job.door / sharing.socket_name(person.secret, service)
            person.listeners.append(self._listen(path, partial(self._on_service, person, service), 0o666))

    def _unshare(self, uid: int) -> Json:
        """First on record, then in fact: a keeper that is killed in between is no way back in."""
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
        return {"changed": True, "ended": ended, "trouble": trouble}

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
            files.connect(far, self._job.sockets / f"{service}.sock")
            far.settimeout(None)
            near.settimeout(None)
            if person.splices.add(splice):
                splice.run()
        finally:
            person.splices.remove(splice)
            far.close()

    def _converse(self, person: Colleague, connection: socket.socket) -> None:
        question = _question(connection)
        op = str(question.get("op"))
        if op == "enter":
            with self._lock:
                if self._people.get(person.uid) is not person:
                    return
                self._take_keys(person, question.get("keys"))
        answers: dict[str, Callable[[], Json]]
        answers = {"facts": self._facts, "enter": partial(self._entry, person), "logs": self._logs}
        if op in answers and self._people.get(person.uid) is person:
            _say(connection, answers[op]())

    def _take_keys(self, person: Colleague, given: object) -> None:
        """Beside those that came before, from another laptop."""
        new = sharing.keys([*(given if isinstance(given, list) else []), *person.keys])
        if set(new) != set(person.keys):
            person.keys = new
            colleague.record(self._job, self._people.values())
            colleague.write_keys(self._job, self._people.values())

    def _facts(self) -> Json:
        known = {name: self._reach.get(name) for name in ("name", "gpus", "image", "runtime", "since")}
        return {**known, "trouble": files.read_json(self._job.conf / "trouble.json") or {}}

    def _entry(self, person: Colleague) -> Json:
        services = {
            name: {word: value for word, value in facts.items() if word != "socket"}
            for name, facts in self._reach["services"].items()
        }
        known = {"absent": self._reach.get("absent", {}), "guest_key": self._reach.get("guest_key", "")}
        return {**self._facts(), "services": services, "secret": person.secret, **known}

    def _logs(self) -> Json:
        return {"logs": files.tails(self._job.logs)}


def begin(job: Job, reach: object) -> Sharing | None:
    """The owner's word is heard from now on; None where there is nothing to share, or it can't be."""
    if not peer.known() or not isinstance(reach, Mapping) or "via" in reach:
        return None
    made = Sharing(job, reach)
    try:
        made.open()
    except (errors.MlboxError, OSError) as error:  # the session is more than that
        print(f"it can't be shared: {error}", file=sys.stderr)
        store.clear_shares(job)
        return None
    return made


# ---- JSON lines ------------------------------------------------------------------------------------------


def _question(connection: socket.socket) -> Json:
    """One line; empty where none comes, or something else."""
    line = b""
    while not line.endswith(b"\n") and len(line) <= _LONGEST:
        data = connection.recv(65536)
        if not data:
            break
        line += data
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _say(connection: socket.socket, message: Json) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")
