"""The process that holds one session's tunnels: it owns the local ports, whoever is attached, until nobody needs them.

    start   by the first client (client/attached.py runs hold.py), in its terminal, where ssh may ask for a passphrase
    up      the first link answers: away from the terminal. It serves the client that started it and any other one
    anew    the session was started anew under its id (its host was rebooted): the same ports lead there
    end     its last client has left and nobody said `stay`; `mlbox tunnels stop`; or the session has ended

A client says one JSON line for each question, over the pair of sockets that it started us with or over `control` in
our folder, and hears the reply; in between it hears what happens: {"say": …}, {"up": …}, {"reach": …} of a new start,
{"ended" or "stopped": why}. The end of a client's connection is its leaving, however it died. Nothing here polls: each
thread sleeps until something happens, and a lost link is dialled with the supervisor's back-off.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from mlbox import errors
from mlbox.client import journal, owners, ssh_config, state
from mlbox.client.reach import GUEST, PORTS, Reach
from mlbox.client.talk import Json, Talk
from mlbox.client.tunnels import Key, Service, TunnelEvent, Tunnels
from mlbox.client.tunnels.probe import ping
from mlbox.client.wake import Wake
from mlbox.client.whereabouts import Found, Looking, Place
from mlbox.core import wire

ANSWER = 3.0  # s that the end waits for a host that was asked something just now
RENEWED = 6 * 3600.0  # s; macOS empties /tmp of files that nobody has used for three days


class Holder:
    def __init__(self, reach: Reach, config: state.Config, folder: Path) -> None:
        self._place, self._folder = Place.of(reach, config), folder
        ports = {**PORTS, **config.ports}
        self._tunnels = Tunnels(
            [Service(name, ports[name], gated=name == "vscode", page=name != "ssh") for name in reach.services],
            lambda generation: self._place.link(folder, generation),
            self._on_event,
            Key(reach.id, reach.gate_token()),
            probe=self._probe,
            probe_service=GUEST,
        )
        self._owner = owners.Owner(
            reach.id, reach.name, reach.host, os.getpid(), {}, {}, since=time.time(), folder=str(folder)
        )
        self._guest_expected = threading.Event()
        self._explained: set[str] = set()  # why it is not up
        self._looking = Looking(config, self._found)
        self._lock = threading.RLock()  # over all that follows
        self._clients: list[Talk] = []
        self._up = False
        self._over: tuple[str, str] | None = None  # ended or stopped, and why
        self._wake = Wake()
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    @property
    def _reach(self) -> Reach:
        return self._place.reach

    def run(self, first: Talk) -> None:
        """From the first client to the end. Raises MlboxError where there is no free port."""
        signal.signal(signal.SIGTERM, self._on_signal)
        self._owner.write()
        self._control.bind(str(self._folder / "control"))
        self._control.listen(16)
        self._tunnels.open()
        try:
            self._set(ports={name: self._tunnels.port(name) for name in self._reach.services})
            self._welcome(first)
            threading.Thread(target=self._serve, args=(first,), daemon=True).start()
            threading.Thread(target=self._accept, daemon=True).start()
            while not select.select([self._wake.descriptor], [], [], RENEWED)[0]:
                self._set()
        finally:
            self._close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._over = self._over or ("stopped", "its tunnels were ended by a signal")
        self._wake.wake()

    def _finish(self, kind: str, why: str) -> None:
        with self._lock:
            self._over = self._over or (kind, why)
        self._wake.wake()

    def _close(self) -> None:
        kind, why = self._over or ("stopped", "")
        self._guest_expected.set()
        self._tunnels.close(why)
        self._looking.wait(ANSWER)  # its ssh would be left behind
        ssh_config.remove(self._reach.id)
        journal.note(self._reach.name, f"the end: {why}")
        if kind == "ended":
            ssh_config.drop(self._reach.id)
        self._tell({kind: why})

    def _set(self, **changes: object) -> None:
        with self._lock:
            self._owner = replace(self._owner, **changes)  # type: ignore[arg-type]
            self._owner.write()

    # ---- clients ---------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            connection, _ = self._control.accept()
            threading.Thread(target=self._serve, args=(Talk(connection),), daemon=True).start()

    def _serve(self, talk: Talk) -> None:
        """One client's questions, until it leaves."""
        try:
            while (question := talk.receive()) is not None:
                number = {"number": question["number"]} if "number" in question else {}
                try:
                    reply = self._answer(talk, question)
                except errors.MlboxError as error:
                    talk.send({**wire.encode_error(error), **number})
                else:
                    if reply is not None:
                        talk.send({"reply": reply, **number})
        finally:
            self._leave(talk)
            talk.close()

    def _answer(self, talk: Talk, question: Json) -> Json | None:
        """None: all is said."""
        op = question.get("op")
        if op == "watch":
            self._welcome(talk)
            return None
        if op == "leave":
            return {"remains": self._leave(talk)}
        if op == "ready":
            self._expect(Reach(**question["reach"]))
        elif op == "stay":
            self._set(background=True)
            with contextlib.suppress(OSError):
                os.chdir(Path.home())  # whatever is mounted where we were started may go
        elif op == "reconnect":
            self._tunnels.reconnect()
        elif op == "add":
            return self._add(int(question["local"]), int(question["inside"]))
        elif op == "remove":
            self._remove(int(question["inside"]))
        elif op == "end":
            self._finish(str(question["kind"]), str(question["why"]))
        return {}

    def _welcome(self, talk: Talk) -> None:
        with self._lock:
            if self._over is not None:
                return  # who comes too late hears that at our end
            self._clients.append(talk)
            owner, moved = self._owner, self._tunnels.moved
            told = {"ports": owner.ports, "extra": owner.extra, "barred": owner.barred, "moved": dict(moved)}
            talk.send({"reply": {**told, "background": owner.background, "start": self._reach.start()}})
            if self._up:
                talk.send({"up": True})

    def _leave(self, talk: Talk) -> bool:
        """Whether the tunnels stay all the same."""
        with self._lock:
            watched = talk in self._clients
            if watched:
                self._clients.remove(talk)
            remains = bool(self._clients) or self._owner.background
            if watched and not remains:
                self._finish("stopped", "its last client has left")
        return remains

    def _tell(self, message: Json) -> None:
        with self._lock:
            for talk in self._clients:
                talk.offer(message)

    def _say(self, words: str) -> None:
        journal.note(self._reach.name, words)
        self._tell({"say": words})

    # ---- ports of the session's own programs -------------------------------------------------------

    def _add(self, local: int, inside: int) -> Json:
        with self._lock:
            new = str(inside) not in self._owner.extra
            if new:
                number = self._tunnels.add(Service(f"port {inside}", local, inside=inside))
                self._set(extra={**self._owner.extra, str(inside): number})
            return {"local": self._owner.extra[str(inside)], "new": new}

    def _remove(self, inside: int) -> None:
        with self._lock:
            owners.check_port(self._owner, inside)
            self._tunnels.remove(f"port {inside}")
            self._set(extra={port: number for port, number in self._owner.extra.items() if port != str(inside)})

    # ---- the session -------------------------------------------------------------------------------

    def _probe(self, path: str, timeout: float, first: bool) -> bool:
        self._guest_expected.wait()
        return ping(path, timeout, first, self._reach.guest_key)

    def _expect(self, reach: Reach) -> None:
        """The guest is there by now, and all is known about it."""
        self._place = replace(self._place, reach=reach)
        self._guest_expected.set()
        self._tunnels.hurry()

    def _on_event(self, event: TunnelEvent) -> None:
        if not self._guest_expected.is_set():
            return
        if event.kind == "up":
            self._set(state="up", since=time.time(), why="", barred=False)
            threading.Thread(target=self._came_up, daemon=True).start()
        elif event.kind == "lost":
            self._set(state="reconnecting", since=time.time() - event.downtime, why=event.reason)
            self._say(f"tunnel lost ({event.reason}); reconnecting")
        elif event.kind == "retrying":
            if not event.barred:
                self._looking.begin(self._place, away=True)
            hint = f"the login needs somebody who can be asked; at a terminal: mlbox session attach {self._reach.name}"
            why = f"{event.reason}; {hint}" if event.barred else event.reason
            self._explain(why, f"still trying{', rarely' if event.barred else ''}: {why}", barred=event.barred)
        elif event.kind == "back":
            self._explained.clear()
            self._looking.rest()
            self._set(state="up", since=time.time(), why="", barred=False)
            after = f" after {event.downtime:.1f} s" if event.downtime else ""
            self._say(f"tunnel is back{after}; the ports are the same")
        elif event.kind in ("refused", "stranger"):
            if event.kind == "stranger":
                self._explain(event.reason, f"{event.reason}; nothing is sent there")
            self._looking.begin(self._place, away=False)

    def _came_up(self) -> None:
        """Nothing will be asked at the terminal any more: ssh reconnects in batch mode."""
        _leave_terminal()
        self._announce_ssh()
        with self._lock:
            self._up = True
            self._tell({"up": True})
        journal.note(self._reach.name, f"up: {self._owner.ports}")

    def _announce_ssh(self) -> None:
        if (self._reach.services.get("ssh") or {}).get("host_key"):
            port = self._tunnels.port("ssh")
            try:
                self._place.announce_port(port)
            except (errors.MlboxError, OSError) as error:
                self._say(f"`ssh -p {port}` does not know the session: {error}")

    def _found(self, now: Found, away: bool) -> None:
        """It is there as it was, was started anew, has ended, waits in line, or nobody could tell."""
        if isinstance(now, Place):
            self._follow(now)
        elif isinstance(now, errors.Ended) or (isinstance(now, errors.NotFound) and not self._reach.moves):
            self._finish("ended", now.message)
        elif isinstance(now, errors.NotFound) and not away:
            self._explain(now.message, f"{now.message}; the tunnels follow it")

    def _explain(self, why: str, words: str, **changes: object) -> None:
        """Why it is not up: said once, until it is."""
        if why not in ("", self._owner.why):
            self._set(why=why, **changes)
        if why not in {"", *self._explained}:
            self._explained.add(why)
            self._say(words)

    def _follow(self, place: Place) -> None:
        reach, was = place.reach, self._reach
        if reach.start() == was.start():
            return
        what = f"the session was started anew on {reach.host}"
        if reach.services.keys() != was.services.keys():  # a port leads to one service
            self._finish("stopped", f"{what}, with other services")
            return
        self._place = place
        self._tunnels.anew(Key(reach.id, reach.gate_token()), what)
        self._set(host=reach.host, why=what)
        self._announce_ssh()
        self._say(f"{what}; its ports here stay, and its addresses are new")
        self._tell({"reach": reach.to_wire()})


def _leave_terminal() -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
