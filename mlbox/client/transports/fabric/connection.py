"""A connection to one host: dialled through jump hosts or a ProxyCommand, verified, logged in, and watched."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from mlbox import errors
from mlbox.client import output
from mlbox.client.transports.fabric.hostkey import Verifier
from mlbox.client.transports.fabric.library import load
from mlbox.client.transports.fabric.login import Keyring, Login
from mlbox.client.transports.fabric.settings import Settings, resolve
from mlbox.client.transports.openssh import explain
from mlbox.client.tunnels.link import POLITE

_CONNECT = 10  # seconds for each of: TCP, the server's banner, the key exchange, a channel
_LOGIN = 60  # seconds; a FIDO key in an agent waits for a finger
_ASK, _SILENT = 5.0, 15.0  # seconds: as OpenSSH's ServerAliveInterval=5 ServerAliveCountMax=3
_CHANNELS = 8


class _Watched:
    """A socket, or what paramiko takes for one, that knows when it last heard something."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.heard = time.monotonic()

    def recv(self, size: int) -> bytes:
        data: bytes = self._sock.recv(size)
        self.heard = time.monotonic()
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Connection:
    """An ssh connection that is up, and how many channels it carries (counted by its pool)."""

    def __init__(self, made: Any, sock: _Watched, below: contextlib.ExitStack, watch: bool) -> None:
        self._made, self._sock, self._below = made, sock, below
        self.used, self.room = 0, _CHANNELS
        self.why = ""
        self._over = threading.Event()
        if watch:
            for run in (self._ask, self._watch):
                threading.Thread(target=run, name="fabric-pulse", daemon=True).start()

    def alive(self) -> bool:
        return bool(self._made.transport.is_active())

    def start(self, command: str) -> Any:
        channel = self._made.transport.open_session(timeout=_CONNECT)
        channel.exec_command(command)
        return channel

    def through(self, hostname: str, port: int) -> Any:
        return self._made.transport.open_channel("direct-tcpip", (hostname, port), ("", 0), timeout=_CONNECT)

    def close(self, why: str = "") -> None:
        self.why = self.why or why
        self._over.set()
        with contextlib.suppress(Exception):  # whatever is left of it, it is given up
            self._made.client.close()
            self._below.close()

    def _ask(self) -> None:
        while self.alive() and not self._over.wait(_ASK):
            with contextlib.suppress(Exception):  # the connection has ended, which whoever uses it tells
                self._made.transport.global_request("keepalive@openssh.com", wait=True)

    def _watch(self) -> None:
        while self.alive() and not self._over.wait(1):
            if time.monotonic() - self._sock.heard > _SILENT:
                self.close(f"the connection timed out: nothing came for {_SILENT:g} s")


class Dialler:
    """Makes connections to one host. `watch`: close them on silence. `ask`: a person is there to be asked."""

    def __init__(self, name: str, ssh_config: str, keyring: Keyring, watch: bool, ask: bool) -> None:
        self._name, self._ssh_config, self._keyring = name, ssh_config, keyring
        self._watch, self._may_ask = watch, ask

    def __call__(self) -> Connection:
        return self._dial(self._name, None, self._watch, 0)

    def _dial(self, name: str, hops: str | None, watch: bool, depth: int) -> Connection:
        """hops: ProxyJump's, where they don't come from this host's own settings."""
        settings = resolve(name, self._ssh_config)
        with contextlib.ExitStack() as below, told(name):
            jump = settings.proxy_jump if hops is None else hops
            if jump and depth > 8:
                raise errors.Usage(f"{name}: ProxyJump leads round in a circle")
            if jump:
                before, _, last = jump.rpartition(",")
                gateway = self._dial(last, before or None, False, depth + 1)
                below.callback(gateway.close)
                sock = gateway.through(settings.hostname, settings.port)
            elif settings.proxy_command:
                sock = _through_command(settings.proxy_command, below)
            else:
                sock = socket.create_connection((settings.hostname, settings.port), _CONNECT)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            below.callback(sock.close)
            watched = _Watched(sock)
            made = self._login(name, settings, watched, below)
            return Connection(made, watched, below.pop_all(), watch)

    def _login(self, name: str, settings: Settings, sock: _Watched, below: contextlib.ExitStack) -> Any:
        fabric, _ = load()
        verifier = Verifier(name, settings)
        login = Login(settings, self._keyring, self._may_ask and output.may_ask())
        overrides = {"load_ssh_configs": False, "authentication": {"strategy_class": lambda **_: login}}
        options = {"sock": sock, "transport_factory": verifier.transport}
        made = fabric.Connection(
            host=settings.hostname,
            user=settings.user,
            port=settings.port,
            config=fabric.Config(lazy=True, overrides=overrides),
            forward_agent=False,
            connect_timeout=_CONNECT,
            connect_kwargs={**options, "banner_timeout": _CONNECT, "auth_timeout": _LOGIN, "channel_timeout": _CONNECT},
        )
        made.client.set_missing_host_key_policy(verifier)
        below.callback(made.client.close)
        made.open()
        return made


def _through_command(command: str, below: contextlib.ExitStack) -> socket.socket:
    """A ProxyCommand. paramiko's own never notices the command's end. Its end here is the end of its stdin."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    below.callback(_end, process)
    return ours


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(POLITE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def told(host: str) -> Iterator[None]:
    """What paramiko and sockets raise, as what ssh would have said about it."""
    _, paramiko = load()
    try:
        yield
    except socket.gaierror as error:
        raise explain(host, f"Could not resolve hostname: {error.strerror}") from None
    except paramiko.AuthenticationException as error:
        raise explain(host, f"Permission denied ({error})") from None
    except (socket.timeout, TimeoutError):
        raise explain(host, f"connect to host {host}: timed out") from None
    except OSError as error:
        raise explain(host, f"connect to host {host}: {error.strerror or error}") from None
    except (paramiko.SSHException, EOFError) as error:
        raise explain(host, str(error) or "the server ended the connection") from None
