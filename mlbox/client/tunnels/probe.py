"""Does the far end of a link answer? Asked end to end, through the link, by a thread per link.

The default question goes to the guest's socket (guest/control.py). Where the session has a key, the answer must prove
that it is the guest's: on the host or the rendezvous the path may be somebody else's by now, after a reboot say, and
what goes there next are tokens.
  answered  the guest's line came
  silent    nothing came within the time: the network, or a stopped ssh
  stranger  a line came, and it was not the guest's
  refused   the link works and says there is nobody behind it (end of data, reset, no such socket)
A refusal while ssh is dying looks the same; its end is reported right after and counts for more.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable

from mlbox.client.tunnels.events import Backoff
from mlbox.client.tunnels.link import Link
from mlbox.core.proof import proves

Probe = Callable[[str, float, bool], bool]
"""probe(path, timeout in seconds, whether this link is asked for the first time): True if it answered, False if not in
time; raises OSError if refused, and Stranger if somebody else answered."""

START_FIRST, START_LAST = 0.001, 0.1  # seconds between looks for the sockets of a link that is starting
AGAIN = 0.5  # seconds until a probe that failed is tried again
AGAIN_LAST = 15.0  # seconds, at most, where the guest is not there: that may be for long
_LONGEST = 16 * 1024  # bytes of an answer
# 5 to 60 ms after a login sshd says its host keys, unasked, and what it says next waits (Nagle) for TCP to acknowledge
# that: 40 ms, unless something goes the other way. The opening of a connection does.
_PUSHES = (2,) * 12 + (6,) * 12  # ms


class Stranger(Exception):
    """What answers in the guest's place does not know the session's key."""


def ping(path: str, timeout: float, first: bool = False, key: str = "") -> bool:
    """The default probe. `key`: the session's; without one (an older mlbox's) any line is the guest's."""
    deadline, nonce = time.monotonic() + timeout, secrets.token_hex(16) if key else None
    with contextlib.ExitStack() as opened:
        try:
            sock = _connected(opened, path, timeout)
            sock.sendall(json.dumps({"op": "ping", **({"nonce": nonce} if nonce else {})}).encode() + b"\n")
            waiting = select.poll()
            waiting.register(sock, select.POLLIN)
            for pause in _PUSHES if first else ():
                if waiting.poll(pause):
                    break
                _connected(opened, path, timeout)
            line = _line(sock, deadline)
        except (socket.timeout, BlockingIOError):  # BlockingIOError: a stopped ssh whose backlog is full
            return False
    if nonce and not _proves(line, key, nonce):
        raise Stranger
    return True


def _connected(opened: contextlib.ExitStack, path: str, timeout: float) -> socket.socket:
    sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.settimeout(timeout)
    sock.connect(path)
    return sock


def _line(sock: socket.socket, deadline: float) -> bytes:
    """Raises ConnectionResetError where it closes without one, socket.timeout."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(4096)
        if not data:
            raise ConnectionResetError("closed without an answer")
        line += data
    return line


def _proves(line: bytes, key: str, nonce: str) -> bool:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and proves(said.get("proof"), key, nonce)


class Prober:
    """Asks again and again, each time after `begin()`, and tells "answered", "silent", "refused" or "stranger", until
    stop()."""

    def __init__(
        self,
        link: Link,
        path: str,
        probe: Probe,
        timeout: float,
        every: float,
        begin: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._link = link
        self._path = path
        self._probe = probe
        self._timeout = timeout
        self._every = every
        self._begin = begin
        self._tell = tell
        self._absent = Backoff(min(AGAIN, every), AGAIN_LAST)
        self._now = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tunnel-probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; join() waits for a probe that is under way."""
        self._stop.set()
        self._now.set()

    def hurry(self) -> None:
        """Ask now, and as often as at first."""
        self._now.set()

    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._link.ready():  # it is seen at most a two-hundredth later than it comes
            pause = (time.monotonic() - begun) / 200
            if self._stop.wait(min(START_LAST, max(START_FIRST, pause))):
                return
        first = True
        while not self._stop.is_set():
            self._begin()
            answer = self._ask(first)
            first = False
            if not self._stop.is_set():
                self._tell(answer)
            if self._now.wait(self._pause(answer)):
                self._now.clear()
                self._absent.reset()

    def _pause(self, answer: str) -> float:
        if answer in ("refused", "stranger"):
            return self._absent.delay()
        self._absent.reset()
        return self._every if answer == "answered" else min(AGAIN, self._every)

    def _ask(self, first: bool) -> str:
        try:
            return "answered" if self._probe(self._path, self._timeout, first) else "silent"
        except Stranger:
            return "stranger"
        except OSError:
            return "refused" if self._link.ready() else "silent"
