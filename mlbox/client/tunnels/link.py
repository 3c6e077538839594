"""One way to a session's sockets: an ssh process that forwards them, or nothing at all when they are here.

`ssh -N -L LOCAL.sock:REMOTE.sock ... HOST` runs on a connection of its own, not the commands': killing a tunnel
must not kill commands. It is a ControlMaster only to be handed connections (handover.py). LOCAL.sock carries the
link's generation, so two links live side by side. Ready means that the sockets exist; a probe through one tells
that it works. stderr says why it ended.
ssh dies with us, also after kill -9, on Linux (PR_SET_PDEATHSIG, tied to the thread that started it).
Assumed: OpenSSH 6.7 or newer. ExitOnForwardFailure stays off: a LocalForward of the user's own for this
host is held by the first link and would make every later one fail; ours are checked by path instead.
ServerAliveInterval is off: it kills connections that TCP would heal; the probe sees silence.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from mlbox.client import state
from mlbox.client.tunnels.handover import takes_connections
from mlbox.errors import MlboxError, Unreachable

PATH_LIMIT = 100  # bytes; sun_path holds 104 (macOS) or 108 (Linux), and ssh wants a little
CONTROL_LIMIT = (
    PATH_LIMIT - 17
)  # bytes; ssh makes it under a name that is so much longer, and ends where that is too long
POLITE = 0.5  # seconds between SIGTERM and SIGKILL; ssh -N has nothing to save
_FORWARDABLE = re.compile(r"/[^\s:%$\\\"']*")  # ssh expands %, $ and splits at :
_GUARD = """\
import os, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM
except Exception:  # a Python without ctypes, or a C library without prctl: then it may outlive us
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit("mlbox ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""
_SHORT_GUARD = '[ "$PPID" = "$0" ] || { echo mlbox ended >&2; exit 1; }; exec "$@"'


class Link(Protocol):
    """A way to the sockets. `start` may raise MlboxError or OSError; nothing else here raises."""

    def start(self, ended: Callable[[], None]) -> None:
        """Begin to come up, without waiting. `ended` is called once, from any thread, when it has died."""

    def ready(self) -> bool:
        """Whether its local sockets exist (they may not answer yet)."""

    def path(self, service: str) -> str: ...

    def handover(self, service: str) -> tuple[str, str] | None:
        """Its ssh's control socket and the service's path on the host, where that ssh takes connections."""

    def alive(self) -> bool: ...

    def close(self) -> None:
        """End it, and leave nothing behind. Any number of times."""

    def stderr(self) -> str:
        """The last lines it said."""


class LocalLink:
    """The services run on this machine: their own sockets, always alive."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = dict(paths)

    def start(self, ended: Callable[[], None]) -> None:
        pass

    def ready(self) -> bool:
        return True

    def path(self, service: str) -> str:
        return self._paths[service]

    def handover(self, service: str) -> tuple[str, str] | None:
        return None

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def stderr(self) -> str:
        return ""


class SshLink:
    """An ssh process that forwards {service: socket on the host} to sockets in `directory`.

    The directory is made (0700) if missing, and not removed. ssh: program and options: ("ssh", "-F", cfg).
    batch: never ask for anything (for reconnects without a terminal); such a process is also out of reach of
    the terminal's ^C. fast_cipher: prefer aes128-gcm. Raises MlboxError if a path can't be forwarded.
    """

    def __init__(
        self,
        ssh: tuple[str, ...],
        destination: str,
        forwards: Mapping[str, str],
        directory: Path,
        generation: int,
        *,
        batch: bool = True,
        fast_cipher: bool = False,
        connect_timeout: int = 10,
    ) -> None:
        self._paths = {name: str(directory / f"{generation}-{name}") for name in forwards}
        for path in (*self._paths.values(), *forwards.values()):
            _check(path)
        control = str(directory / f"{generation}-control")
        self._control = (
            control if len(os.fsencode(control)) <= CONTROL_LIMIT and _FORWARDABLE.fullmatch(control) else ""
        )
        self._forwards = dict(forwards)
        self._directory = directory
        self._batch = batch
        self._argv = (
            *(ssh[0], "-N", "-T", "-a", "-x"),
            *_options(ssh[1:], self._control, batch, fast_cipher, connect_timeout),
            *ssh[1:],
            *(part for name in forwards for part in ("-L", f"{self._paths[name]}:{forwards[name]}")),
            *("--", destination),
        )
        self._lines: collections.deque[str] = collections.deque(maxlen=20)
        self._process: subprocess.Popen[bytes] | None = None
        self._waiter: threading.Thread | None = None
        self._failure: OSError | None = None

    @property
    def argv(self) -> tuple[str, ...]:
        return self._argv

    @property
    def pid(self) -> int:
        """The process's id; 0 before start()."""
        return self._process.pid if self._process else 0

    def start(self, ended: Callable[[], None]) -> None:
        if shutil.which(self._argv[0]) is None:
            raise Unreachable(f"No program {self._argv[0]} here.", "Install the OpenSSH client.")
        state.private(self._directory)
        spawned = threading.Event()
        self._waiter = threading.Thread(target=self._live, args=(spawned, ended), name="tunnel-ssh", daemon=True)
        self._waiter.start()
        spawned.wait()
        if self._failure is not None:
            raise self._failure

    def ready(self) -> bool:
        return all(os.path.exists(path) for path in self._paths.values())

    def path(self, service: str) -> str:
        return self._paths[service]

    def handover(self, service: str) -> tuple[str, str] | None:
        return (self._control, self._forwards[service]) if self._control and takes_connections(self._argv[0]) else None

    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def close(self) -> None:
        self._kill(signal.SIGTERM)
        self._kill(signal.SIGCONT)  # a stopped process must see the SIGTERM
        if self._waiter is not None:
            self._waiter.join(POLITE)
            self._kill(signal.SIGKILL)
            self._waiter.join()

    def stderr(self) -> str:
        return "\n".join(self._lines)

    def _live(self, spawned: threading.Event, ended: Callable[[], None]) -> None:
        """The process's whole life, in the one thread whose end kills it."""
        try:
            self._unlink()  # with a control socket of that name, one that was killed, ssh would make none
            process = self._spawn()
        except OSError as error:
            self._failure = error
            return
        finally:
            spawned.set()
        assert process.stderr is not None
        reader = threading.Thread(target=self._listen, args=(process.stderr,), name="tunnel-stderr", daemon=True)
        reader.start()
        process.wait()
        reader.join(1.0)  # a ProxyCommand that outlives ssh may hold the pipe
        self._unlink()
        ended()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            _guarded(self._argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=self._batch,
        )
        return self._process

    def _listen(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in iter(lambda: stderr.readline(4096), b""):
                text = line.decode("utf-8", "replace").strip()
                if text:
                    self._lines.append(text)

    def _kill(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if process.returncode is None:
                os.killpg(process.pid, number) if self._batch else os.kill(process.pid, number)

    def _unlink(self) -> None:
        for path in (*self._paths.values(), self._control):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _options(
    given: tuple[str, ...], control: str, batch: bool, fast_cipher: bool, connect_timeout: int
) -> tuple[str, ...]:
    """Ours come first: ssh takes the first value of an option. ControlPersist would send ssh to the background."""
    options = [
        *(f"ControlPath={control or 'none'}", f"ControlMaster={'yes' if control else 'no'}", "ControlPersist=no"),
        "ExitOnForwardFailure=no",
        *("StreamLocalBindUnlink=yes", "StreamLocalBindMask=0177", "ServerAliveInterval=0", "LogLevel=INFO"),
    ]
    if batch:
        options.append("BatchMode=yes")
    if fast_cipher:
        options.append("Ciphers=^aes128-gcm@openssh.com")
    if not any("connecttimeout" in word.lower() for word in given):
        options.append(f"ConnectTimeout={connect_timeout}")
    return tuple(part for option in options for part in ("-o", option))


def _check(path: str) -> None:
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise MlboxError(f"{path} is too long for a socket ({PATH_LIMIT} bytes).", "Use a shorter folder.")
    if not _FORWARDABLE.fullmatch(path):
        raise MlboxError(f"ssh can't forward the socket {path!r}.", "Use a folder with a plain name.")


def _guarded(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not sys.platform.startswith("linux"):
        return argv
    if _setpriv():
        return ("setpriv", "--pdeathsig", "TERM", "sh", "-c", _SHORT_GUARD, str(os.getpid()), *argv)
    return (sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *argv) if sys.executable else argv


@functools.cache
def _setpriv() -> bool:
    """Whether util-linux's is here, and new enough (2.33): a tenth of what a Python takes to start."""
    with contextlib.suppress(OSError):
        argv = ("setpriv", "--pdeathsig", "TERM", "true")
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    return False
