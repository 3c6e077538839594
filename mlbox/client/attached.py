"""A session as seen from the laptop: its tunnels up, its block printed, its end noticed.

The tunnels are another process's (client/holder.py), which we start, or join where one holds them already. It dials
while the container still starts; its probe waits for the guest, so that no time is lost and nothing is asked in vain.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable

import mlbox
from mlbox import errors
from mlbox.client import output, owners, ssh_config, state
from mlbox.client.reach import Reach
from mlbox.client.talk import Talk
from mlbox.core import text
from mlbox.core.port import Port
from mlbox.core.services import TITLES

Json = dict[str, Any]
_UP = 60.0  # s for the tunnel to come up after the session is ready
_REPLY = 20.0  # s
_BEGIN = 60.0  # s for the holder to begin; a laptop may be busy
# It is the same program, and by this name ssh starts it where a session has moved (ssh_config.py).
_PROGRAM = (
    "import sys; sys.path[0], sys.argv[0] = sys.argv[1:3]; from mlbox.client import hold; hold.main(int(sys.argv[3]))"
)


class Attached:
    """One client of a session's tunnels. `ended` is set, with `why`, when they are, or the session itself is, gone.

    `say` hears what happens by itself, from any thread."""

    def __init__(self, reach: Reach, config: state.Config, ports: Sequence[Port], say: Callable[[str], None]) -> None:
        self.reach, self.say = reach, say
        self.ended, self.why = threading.Event(), ""
        self.over = False  # ended, and it was the session
        self.ports: dict[str, int] = {}
        self.extra: dict[str, int] = {}  # port inside -> port here
        self._config, self._wanted = config, ports
        self._remains = False  # in the background, as those that we took over were
        self._talk: Talk | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[Json | None] = queue.Queue()
        self._asked = 0
        self._up = threading.Event()

    # ---- the process that holds the tunnels --------------------------------------------------------

    def dial(self) -> None:
        """Have the local ports taken and a connection begun; returns at once. Where this session's tunnels are held
        already, join. Raises MlboxError."""
        deadline = time.monotonic() + _BEGIN
        while self._talk is None:
            if not self._join() and not self._start():
                if time.monotonic() > deadline:
                    owners.answer(None, self.reach.name)
                time.sleep(0.1)  # another one has just begun, or is about to be gone
        threading.Thread(target=self._listen, args=(self._talk,), daemon=True).start()
        for port in self._wanted:
            self.add(port)
        if self._remains:
            self.stay()

    def _join(self) -> bool:
        talk = owners.converse(self.reach.id)
        if talk is None:
            return False
        try:
            reply = talk.receive(_REPLY) if talk.send({"op": "watch"}) else None
        except TimeoutError:
            talk.close()
            owners.answer(None, self.reach.name)
        if reply is None:
            talk.close()
            return False
        found = owners.answer(reply, self.reach.name)
        elsewhere = found.get("start") != self.reach.start()  # or it is an older mlbox's process, which does not follow
        if elsewhere or (found["barred"] and output.may_ask()):
            talk.close()
            self._take_over(found)
            return False
        self._take(talk, found)
        return True

    def _take_over(self, found: Json) -> None:
        """On the same ports: its host logs nobody in who can't be asked, and it has no terminal; or it has not heard
        yet that the session was started anew."""
        for owner in owners.living():
            if owner.session == self.reach.id:
                owners.end(owner, "stopped", "its tunnels are dialled anew, from another terminal")
        self._config = replace(self._config, ports={**self._config.ports, **found["ports"]})
        here = {port.inside for port in self._wanted}
        kept = [Port(int(local), int(inside)) for inside, local in found["extra"].items() if int(inside) not in here]
        self._wanted = [*self._wanted, *kept]
        self._remains = self._remains or bool(found["background"])

    def _start(self) -> bool:
        """False where another one was faster."""
        ours, its = socket.socketpair()
        talk = Talk(ours)
        argv = _holder(its.fileno())
        # ^C before it is set up for it would be a traceback of its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with its:
                self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, pass_fds=(its.fileno(),))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            talk.send({"reach": self.reach.to_wire(), "config": asdict(self._config)})
            reply = None
            with contextlib.suppress(TimeoutError):
                reply = talk.receive(_BEGIN)
            found = owners.answer(reply, self.reach.name)
        except BaseException:  # ^C too: the process that holds them ends with its last client
            talk.close()
            raise
        if "taken" in found:
            talk.close()
            return False
        self._take(talk, found)
        for name, (wanted, got) in found["moved"].items():
            self.say(f"port {wanted} is taken here; {TITLES[name]} is on {got}")
        return True

    def _take(self, talk: Talk, found: Json) -> None:
        self._talk, self.ports, self.extra = talk, found["ports"], found["extra"]

    def _listen(self, talk: Talk) -> None:
        """What it tells, until its end."""
        while (message := talk.receive()) is not None:
            if "say" in message:
                self.say(str(message["say"]))
            elif "reach" in message:
                self.reach = Reach(**message["reach"])
                self.say("\n  ".join(["its addresses from now on:", *addresses(self)]))
            elif "up" in message:
                self._up.set()
            elif "ended" in message:
                self.why, self.over = str(message["ended"]), True
            elif "stopped" in message:
                self.why = f"{message['stopped']}; the session goes on (mlbox session attach {self.reach.name})"
            else:
                self._replies.put(message)
        self.why = self.why or (
            f"the process that held its tunnels is gone; the session goes on (mlbox session attach {self.reach.name})"
        )
        self.ended.set()
        self._up.set()
        self._replies.put(None)

    def _ask(self, op: str, **arguments: Any) -> Json:
        reply = None
        if self._talk is not None:
            with contextlib.suppress(TimeoutError):
                reply = self._reply(self._talk, {"op": op, **arguments})
        return owners.answer(reply, self.reach.name)

    def _reply(self, talk: Talk, question: Json) -> Json | None:
        """None where the other end is gone. Raises TimeoutError. Questions have numbers, for the reply to one that was
        given up may come when the next is asked; an older mlbox's process does not repeat them."""
        self._asked += 1
        if not talk.send({**question, "number": self._asked}):
            return None
        deadline = time.monotonic() + _REPLY
        while True:
            try:
                reply = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if reply is None or reply.get("number", self._asked) == self._asked:
                return reply

    # ---- what a client can have done ----------------------------------------------------------------

    def wait_up(self, reach: Reach) -> None:
        """The guest is there, and `reach` is all about it: until the tunnel reaches it and each service answers through
        it. Raises Unreachable."""
        self.reach = reach
        self._ask("ready", reach=reach.to_wire())
        if not self._up.wait(_UP) or self.ended.is_set():
            raise errors.Unreachable(
                f"the session {reach.name} runs, but no tunnel to it comes up" + (self.why and f": {self.why}"),
                f"mlbox session attach {reach.name} --host {reach.host}",
            )
        for line in self._check_ends():
            output.warn(line)

    def add(self, port: Port) -> int:
        """A port of the session's on this machine: which one it became. Raises MlboxError."""
        reply = self._ask("add", local=port.local, inside=port.inside)
        local = self.extra[str(port.inside)] = int(reply["local"])
        if reply["new"] and local != port.local:
            self.say(f"port {port.local} is taken here; the session's port {port.inside} is on {local}")
        return local

    def reconnect(self) -> None:
        self._ask("reconnect")

    def stay(self) -> None:
        """The tunnels stay when we have left."""
        self._ask("stay")

    def close(self) -> bool:
        """Leave; whether the tunnels stay: somebody else needs them, or they were told to. Else they are gone on
        return."""
        talk, self._talk = self._talk, None
        if talk is None:
            return False
        remains = False
        if not self.ended.is_set():
            try:
                remains = bool(((self._reply(talk, {"op": "leave"}) or {}).get("reply") or {}).get("remains"))
            except TimeoutError:
                remains = True  # it does not answer; it will see that we have left
        talk.close()
        if not remains:
            owners.await_end(self.reach.id)
        if self._process is not None:
            self._process.poll()
        return remains

    # ---- does all answer? -----------------------------------------------------------------------------

    def _check_ends(self) -> list[str]:
        wrong = []
        for name in self.reach.services:
            try:
                if name == "ssh":
                    self._check_ssh()
                else:
                    self._check_http(name)
            except (OSError, http.client.HTTPException) as error:
                wrong.append(f"{TITLES[name]} does not answer through the tunnel: {error}")
        return wrong

    def _check_http(self, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=20)
        try:
            path = "/api" if name == "jupyter" else f"/healthz?tkn={self.reach.services[name]['token']}"
            connection.request("GET", path, headers={"Host": f"localhost:{self.ports[name]}"})
            status = connection.getresponse().status
            if status >= 400:
                raise http.client.HTTPException(f"HTTP {status}")
        finally:
            connection.close()

    def _check_ssh(self) -> None:
        with socket.create_connection(("127.0.0.1", self.ports["ssh"]), timeout=20) as probe:
            if not probe.recv(64).startswith(b"SSH-"):
                raise OSError("no SSH banner")

    # ---- the block -------------------------------------------------------------------------------

    def urls(self) -> dict[str, str]:
        """Where each service is on this machine, with the token that opens it."""
        return self.reach.urls(self.ports)


def block(attached: Attached, absent: Mapping[str, str]) -> str:
    """What a person needs to work in the session."""
    reach, urls = attached.reach, attached.urls()
    lines = [f"Interactive session is running:  {output.bold(reach.name)}  (job {reach.id})"]
    if "ssh" in urls:
        lines.append(f"SSH:        {ssh_config.words(reach.id, attached.ports['ssh'], reach.services['ssh']['user'])}")
    lines += addresses(attached)
    lines += [f"{f'Port {inside}:':<12}localhost:{local}" for inside, local in attached.extra.items()]
    lines += [f"{TITLES[name] + ':':<12}not there: {text.safe(why)}" for name, why in absent.items()]
    return "\n".join(lines)


def addresses(attached: Attached) -> list[str]:
    """Of what is a page."""
    urls = attached.urls()
    return [f"{TITLES[name] + ':':<12}{urls[name]}" for name in ("jupyter", "vscode") if name in urls]


def _holder(descriptor: int) -> tuple[str, ...]:
    where, program = str(Path(mlbox.__file__).parents[1]), os.path.abspath(sys.argv[0])
    return (sys.executable, "-c", _PROGRAM, where, program, str(descriptor))
