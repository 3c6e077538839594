"""fabric (on paramiko), for machines without an OpenSSH client: commands, and as a last resort tunnels.

    connect   our own TCP socket (TCP_NODELAY), a jump host's channel, or a ProxyCommand's pipe, given to fabric
    command   one session channel; channels share a connection, 8 at most (sshd's MaxSessions is 10)
    tunnel    per connection to a local unix socket one channel, on which the host part's `connect` copies bytes

What fabric does wrong by itself, and what is done here instead:
    any host key is welcome      only a key in the user's or the system's known_hosts is, whatever
                                 StrictHostKeyChecking says; read here, as paramiko knows no @revoked or patterns
    an hour on a dead link       every step of connecting has its limit; a connection on which nothing at all has
                                 come for 15 s, though asked every 5, is closed, and all that waits on it wakes
    no Include                   the settings come from `ssh -G`; without an ssh, Include is expanded here. One
                                 inside Host or Match counts up to the first Host or Match of the included file
    ~/.fabric.yaml, ~/.ssh read twice: neither is read by fabric

A tunnel's connections are its own, and silence does not close them: TCP may heal, the tunnel's probe sees it.
Not here: host certificates, GSSAPI, FIDO key files, IdentityAgent other than none, logins in two steps.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import getpass
import glob
import hashlib
import hmac
import logging
import os
import re
import secrets
import select
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from mlbox import errors
from mlbox.client import output, remote, state
from mlbox.client.transports import keys
from mlbox.client.transports.openssh import explain
from mlbox.client.tunnels import Link
from mlbox.client.tunnels.link import PATH_LIMIT, POLITE
from mlbox.core import wire

_CONNECT = 10  # seconds for each of: TCP, the server's banner, the key exchange, a channel
_LOGIN = 60  # seconds; a FIDO key in an agent waits for a finger
_ASK, _SILENT = 5.0, 15.0  # seconds: as OpenSSH's ServerAliveInterval=5 ServerAliveCountMax=3
_CHANNELS = 8
_MISSING = 97  # remote._run_command: the host part is not there
_KEPT = 16384  # bytes of error output

Dial = Callable[[], "_Connection"]


def _load() -> tuple[Any, Any]:
    """fabric and paramiko; 270 ms the first time."""
    try:
        import fabric
        import paramiko
    except ImportError as error:
        message = f'transport = "fabric" needs the Python package fabric, and it does not load here: {error}'
        raise errors.Usage(message, 'pip install fabric, or set transport = "openssh" in config.toml') from None
    # Without a handler logging prints paramiko's tracebacks on stderr; what they say comes as an error as well.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    return fabric, paramiko


# Settings: what the user's ssh configuration says about a host


@dataclass(frozen=True)
class _Settings:
    hostname: str
    port: int
    user: str
    identity_files: tuple[str, ...]  # that exist
    identities_only: bool
    agent: bool
    proxy_jump: str
    proxy_command: str
    known_hosts: tuple[str, ...]
    key_name: str  # under which its key is known


def _resolve(name: str, ssh_config: str) -> _Settings:
    user, host, port = _parts(name)
    found = (_from_ssh if shutil.which("ssh") else _from_files)(host, ssh_config)

    def last(key: str, default: str = "") -> str:
        value = found.get(key, [default])[0]
        return "" if value.lower() == "none" else value

    hostname, number = last("hostname", host), port or _number(last("port", "22"))
    login = user or last("user", getpass.getuser())
    tokens = {"h": hostname, "n": host, "p": str(number), "r": login, "k": last("hostkeyalias") or host, "%": "%"}
    tokens.update({"u": getpass.getuser(), "d": str(Path.home()), "L": socket.gethostname().split(".")[0]})

    def expand(text: str) -> str:
        return re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), text)

    known = last("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
    known += " " + last("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2")
    identities = [os.path.expanduser(expand(file)) for file in found.get("identityfile", keys.defaults())]
    return _Settings(
        hostname=hostname,
        port=number,
        user=login,
        identity_files=tuple(file for file in dict.fromkeys(identities) if os.path.isfile(file)),
        identities_only=last("identitiesonly") == "yes",
        agent=found.get("identityagent", [""])[0].lower() != "none",
        proxy_jump=last("proxyjump"),
        proxy_command=expand(last("proxycommand")),
        known_hosts=tuple(os.path.expanduser(expand(file)) for file in _words(known)),
        key_name=last("hostkeyalias") or _key_name(hostname, number),
    )


def _parts(name: str) -> tuple[str, str, int]:
    """[ssh://][user@]host[:port] -> user, host, port (0: not said); a bare IPv6 address has no port."""
    found = re.fullmatch(r"(?:ssh://)?(?:(.*)@)?(?:\[(.+)\]|([^:]+)|(.+:.*:.*))(?::(\d+))?/?", name)
    if found is None or name.startswith("-") or any(c.isspace() for c in name):
        raise errors.Usage(f"{name!r} can't be a host's name")
    user, bracketed, plain, bare, port = found.groups()
    return user or "", bracketed or plain or bare, int(port or 0)


def _number(port: str) -> int:
    if not port.isdigit():
        raise errors.Usage(f"the ssh configuration says Port {port}")
    return int(port)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # `ssh -G` does not quote: an apostrophe in a folder's name
        return text.split()


def _key_name(hostname: str, port: int) -> str:
    return hostname.lower() if port == 22 else f"[{hostname.lower()}]:{port}"


def _from_ssh(host: str, ssh_config: str) -> dict[str, list[str]]:
    argv = ["ssh", *(("-F", ssh_config) if ssh_config else ()), "-G", "--", host]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise explain(host, done.stderr)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def _from_files(host: str, ssh_config: str) -> dict[str, list[str]]:
    """By paramiko's reader, which knows no Include."""
    _, paramiko = _load()
    files = [ssh_config] if ssh_config else ["~/.ssh/config", "/etc/ssh/ssh_config"]
    lines: list[str] = []
    for file in files:
        lines += ["Host *", *_lines(os.path.expanduser(file), "Host *", 0)]
    try:
        found = paramiko.SSHConfig.from_text("\n".join(lines)).lookup(host)
    except (paramiko.SSHException, KeyError, ValueError) as error:
        raise errors.Usage(f"{' or '.join(files)} can't be read: {error}") from None
    return {
        key: list(value) if isinstance(value, list) else ["none" if value is None else str(value)]
        for key, value in found.items()
    }


def _lines(file: str, block: str, depth: int) -> Iterator[str]:
    """A configuration's lines with the included files in their places; `block` is the Host or Match around."""
    try:
        content = Path(file).read_text(errors="replace")
    except OSError:
        return  # a configuration is optional, as for ssh
    for line in content.splitlines():
        words = line.strip().replace("=", " ", 1).split(None, 1)
        keyword = words[0].lower() if words else ""
        if keyword in ("host", "match"):
            block = line
        if keyword != "include" or len(words) < 2:
            yield line
            continue
        for pattern in _words(words[1]):
            for path in sorted(glob.glob(os.path.join(Path.home(), ".ssh", os.path.expanduser(pattern)))):
                if depth < 16:  # ssh's own limit
                    yield from _included(path, block, depth + 1)
        yield block  # what follows belongs to it again


def _included(path: str, block: str, depth: int) -> Iterator[str]:
    always = block.split() == ["Host", "*"]
    for line in _lines(path, block, depth):
        if not always and line.strip().lower().startswith(("host ", "match ", "host=", "match=")) and line != block:
            return
        yield line


# The host's key


@dataclass(frozen=True)
class _KnownKeys:
    """What the known_hosts files say about one name."""

    keys: tuple[tuple[str, bytes], ...]
    revoked: frozenset[bytes]


def _known(files: tuple[str, ...], name: str) -> _KnownKeys:
    found: list[tuple[str, bytes]] = []
    revoked = set()
    for file in files:
        try:
            lines = Path(file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            marker, *fields = line.split() if line.startswith("@") else ["", *line.split()]
            with contextlib.suppress(ValueError):  # a line that is no base64 counts for nothing
                if len(fields) < 3 or fields[0].startswith("#") or not _names(fields[0], name):
                    continue
                blob = base64.b64decode(fields[2])
                if marker == "@revoked":
                    revoked.add(blob)
                elif not marker:  # a @cert-authority would vouch for certificates, which paramiko can't read
                    found.append((fields[1], blob))
    return _KnownKeys(tuple(found), frozenset(revoked))


def _names(field: str, name: str) -> bool:
    """Whether a line's first field (a hash, or patterns with * ? and !) means this host."""
    if field.startswith("|1|"):
        salt, _, digest = field[3:].partition("|")
        made = hmac.new(base64.b64decode(salt), name.encode(), "sha1").digest()
        return hmac.compare_digest(base64.b64encode(made).decode(), digest)
    matched = False
    for pattern in field.lower().split(","):
        expression = re.escape(pattern.lstrip("!")).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(expression, name.lower()):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched


class _Verifier:
    """Asked by paramiko about every host's key, as no key is ever given to it: raises, unless it is known."""

    def __init__(self, host: str, settings: _Settings) -> None:
        self._host, self._settings = host, settings
        self._known = _known(settings.known_hosts, settings.key_name)

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        blob = key.asbytes()
        if blob in self._known.revoked:
            message = f"{self._host} showed a host key that is marked as revoked (Host key verification failed)"
            raise errors.Unreachable(message, "ask its administrator")
        if any(blob == known for _, known in self._known.keys):
            return
        digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        shown = f"{key.get_name()} SHA256:{digest}"
        file = self._settings.known_hosts[0] if self._settings.known_hosts else "~/.ssh/known_hosts"
        line = f"{self._settings.key_name} {key.get_name()} {key.get_base64()}"
        if self._known.keys:
            message = (
                f"{self._host} showed another host key than the one you know: {shown} (Host key verification failed)"
            )
            hint = f"it was reinstalled, or somebody is in between: ask its administrator; only then change {file}"
        else:
            message = f"{self._host}'s host key is not known on this machine yet (Host key verification failed)"
            hint = f"it showed {shown}; where its administrator says the same, add this line to {file}:\n{line}"
        raise errors.Unreachable(message, hint)

    def transport(self, sock: Any, **options: Any) -> Any:
        """paramiko's Transport, that asks first for the kinds of key that are known."""
        _, paramiko = _load()
        made = paramiko.Transport(sock, **options)
        security = made.get_security_options()
        kinds = {"rsa-sha2-512" if kind == "ssh-rsa" else kind for kind, _ in self._known.keys}
        security.key_types = sorted(security.key_types, key=lambda kind: kind not in kinds)
        return made


# The login


class _Keyring:
    """Private keys by file, read once; a passphrase is asked for once, and only where `ask` allows."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def load(self, file: str, ask: bool) -> Any:
        """The key, or None where it can't be had."""
        if file not in self._loaded:
            key = _read_key(file, None)
            if key is _LOCKED:
                key = _read_key(file, getpass.getpass(f"passphrase of {file}: ")) if ask else None
            if key is None or key is _LOCKED:
                return None
            self._loaded[file] = key
        return self._loaded[file]


_LOCKED = object()


def _read_key(file: str, passphrase: str | None) -> Any:
    _, paramiko = _load()
    try:
        return paramiko.PKey.from_path(file, passphrase.encode() if passphrase else None)
    except (TypeError, paramiko.PasswordRequiredException):
        return _LOCKED
    except (paramiko.SSHException, OSError, ValueError, paramiko.pkey.UnknownKeyType):
        return None


class _Login:
    """paramiko's "auth strategy": in OpenSSH's order, and with its IdentitiesOnly."""

    def __init__(self, settings: _Settings, keyring: _Keyring, ask: bool) -> None:
        self._settings, self._keyring, self._ask = settings, keyring, ask

    def authenticate(self, transport: Any) -> None:
        _, paramiko = _load()
        more: list[str] = []
        for key in self._keys():
            try:
                more = transport.auth_publickey(self._settings.user, key)
            except paramiko.BadAuthenticationType as error:
                raise paramiko.AuthenticationException(f"the server takes {', '.join(error.allowed_types)}") from None
            except paramiko.AuthenticationException:
                continue
            if not more:
                return
            raise paramiko.AuthenticationException(f"after the key the server asks for {', '.join(more)}")
        raise paramiko.AuthenticationException("publickey")

    def _keys(self) -> Iterator[Any]:
        _, paramiko = _load()
        agent = paramiko.Agent() if self._settings.agent else None
        offered = {key.asbytes(): key for key in (agent.get_keys() if agent else ())}
        files = []
        for file in self._settings.identity_files:
            key = offered.pop(_public_blob(file), None)
            if key is not None:
                yield key
            else:
                files.append(file)
        if not self._settings.identities_only:
            yield from offered.values()
        yield from (key for key in (self._keyring.load(file, self._ask) for file in files) if key is not None)


def _public_blob(file: str) -> bytes:
    try:
        return base64.b64decode(Path(f"{file}.pub").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return b""


# Connections


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


class _Connection:
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
            with contextlib.suppress(Exception):
                self._made.transport.global_request("keepalive@openssh.com", wait=True)

    def _watch(self) -> None:
        while self.alive() and not self._over.wait(1):
            if time.monotonic() - self._sock.heard > _SILENT:
                self.close(f"the connection timed out: nothing came for {_SILENT:g} s")


class _Dialler:
    """Makes connections to one host. `watch`: close them on silence. `ask`: a person is there to be asked."""

    def __init__(self, name: str, ssh_config: str, keyring: _Keyring, watch: bool, ask: bool) -> None:
        self._name, self._ssh_config, self._keyring = name, ssh_config, keyring
        self._watch, self._may_ask = watch, ask

    def __call__(self) -> _Connection:
        return self._dial(self._name, None, self._watch, 0)

    def _dial(self, name: str, hops: str | None, watch: bool, depth: int) -> _Connection:
        """hops: ProxyJump's, where they don't come from this host's own settings."""
        settings = _resolve(name, self._ssh_config)
        with contextlib.ExitStack() as below, _told(name):
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
            return _Connection(made, watched, below.pop_all(), watch)

    def _login(self, name: str, settings: _Settings, sock: _Watched, below: contextlib.ExitStack) -> Any:
        fabric, _ = _load()
        verifier = _Verifier(name, settings)
        login = _Login(settings, self._keyring, self._may_ask and output.may_ask())
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
def _told(host: str) -> Iterator[None]:
    """What paramiko and sockets raise, as what ssh would have said about it."""
    _, paramiko = _load()
    try:
        yield
    except socket.gaierror as error:
        raise explain(host, f"Could not resolve hostname: {error.strerror}") from None
    except paramiko.AuthenticationException as error:
        raise explain(host, f"Permission denied ({error})") from None
    except (socket.timeout, TimeoutError):
        raise explain(host, "the connection timed out") from None
    except OSError as error:
        raise explain(host, error.strerror or str(error)) from None
    except (paramiko.SSHException, EOFError) as error:
        raise explain(host, str(error) or "the server ended the connection") from None


class _Pool:
    """Connections to one host, and channels on them; made when they are needed. For any number of threads."""

    def __init__(self, host: str, dial: Dial) -> None:
        self._host, self._dial = host, dial
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._closed = False

    def open(self, command: str) -> _Channel:
        """Raises Unreachable."""
        while True:
            connection, fresh = self._take()
            try:
                with _told(self._host):
                    return _Channel(connection.start(command), connection, self._give_back)
            except errors.MlboxError as error:
                self._refused(connection, error.message)
                if fresh:
                    raise

    def prepare(self) -> None:
        self._give_back(self._take()[0])

    def alive(self) -> bool:
        return any(connection.alive() for connection in list(self._connections))

    def close(self) -> None:
        self._closed = True  # not under the lock: a connection that is being made must not be waited for
        for connection in list(self._connections):
            connection.close("closed")

    def _take(self) -> tuple[_Connection, bool]:
        """A connection with room for one channel more, and whether it is new."""
        with self._lock:
            for connection in [each for each in self._connections if not each.alive()]:
                self._connections.remove(connection)
                connection.close()
            free = [each for each in self._connections if each.used < each.room]
            connection = free[0] if free else self._dial()
            if not free:
                self._connections.append(connection)
            if self._closed:
                connection.close()
                raise errors.Unreachable(f"{self._host}: closed")
            connection.used += 1
            return connection, not free

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            connection.used -= 1

    def _refused(self, connection: _Connection, why: str) -> None:
        """No channel could be had. Where others run on it, it is full (sshd's MaxSessions); else it is broken."""
        with self._lock:
            connection.used -= 1
            connection.room = connection.used
        if connection.used == 0 or not connection.alive():
            connection.close(why)


class _Channel:
    """One command. Its error output is read at once, for it would fill the window that it shares with the rest."""

    def __init__(self, channel: Any, connection: _Connection, done: Callable[[_Connection], None]) -> None:
        self._channel, self._connection, self._done = channel, connection, done
        self._lock = threading.Lock()
        self._killed = False
        self._said = b""
        self._listener = threading.Thread(target=self._listen, name="fabric-stderr", daemon=True)
        self._listener.start()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                sent = self._channel.send(bytes(view[:32768]))
                if sent == 0:
                    raise EOFError
                view = view[sent:]
        except Exception:  # paramiko's many ways of saying so
            raise errors.Unreachable("the connection ended while a request was sent") from None

    def close_input(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.shutdown_write()

    def read(self) -> bytes:
        try:
            data: bytes = self._channel.recv(65536)
        except Exception:  # the connection ended in the middle of it; wait() tells
            return b""
        return data

    def wait(self) -> int:
        code = int(self._channel.recv_exit_status())
        self._listener.join()
        return code if code >= 0 else 255

    def errors(self) -> str:
        text = self._said.decode(errors="replace")
        if self._channel.exit_status >= 0 or text.strip():
            return text
        if self._connection.alive():
            return "a signal ended the command"
        return self._connection.why or "the connection ended"

    def kill(self) -> None:
        with self._lock:
            if self._killed:
                return
            self._killed = True
        with contextlib.suppress(Exception):
            self._channel.close()
        self._done(self._connection)

    def _listen(self) -> None:
        with contextlib.suppress(Exception):
            while data := self._channel.recv_stderr(65536):
                self._said = (self._said + data)[-_KEPT:]


# Tunnels


class _FabricLink:
    """Local sockets whose connections each run `connect` on the host (see Link)."""

    def __init__(self, pool: _Pool, forwards: Mapping[str, str], folder: Path, generation: int) -> None:
        self._pool, self._forwards, self._folder = pool, dict(forwards), folder
        self._paths = {name: str(folder / f"{generation}-{name}") for name in forwards}
        for path in self._paths.values():
            if len(os.fsencode(path)) > PATH_LIMIT:
                raise errors.MlboxError(f"{path} is too long for a socket ({PATH_LIMIT} bytes)", "use a shorter folder")
        self._lines: collections.deque[str] = collections.deque(maxlen=20)
        self._wake, self._woken = socket.socketpair()
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="fabric-link", daemon=True)
        self._ended: Callable[[], None] = lambda: None

    def start(self, ended: Callable[[], None]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._folder.stat().st_mode & 0o077:
            raise errors.MlboxError(f"{self._folder} is open to others", f"chmod 700 {self._folder}")
        self._ended = ended
        self._thread.start()

    def ready(self) -> bool:
        return self._ready.is_set()

    def path(self, service: str) -> str:
        return self._paths[service]

    def alive(self) -> bool:
        return self._thread.ident is not None and not self._over.is_set()

    def close(self) -> None:
        self._over.set()
        self._wake.close()
        self._pool.close()
        if self._thread.ident is not None:
            self._thread.join(POLITE)  # one that is being connected ends by itself, a little later

    def stderr(self) -> str:
        return "\n".join(self._lines)

    def _live(self) -> None:
        try:
            self._pool.prepare()
            self._accept()
        except errors.MlboxError as error:
            self._lines.append(error.message)
        except OSError as error:
            self._lines.append(str(error))
        finally:
            self._over.set()
            self._pool.close()
            self._ended()

    def _accept(self) -> None:
        with contextlib.ExitStack() as stack:
            listeners = {stack.enter_context(self._listen(name)): name for name in self._paths}
            for path in self._paths.values():
                stack.callback(Path(path).unlink, missing_ok=True)
            self._ready.set()
            while not self._over.is_set() and self._pool.alive():
                # Looked at every half second: paramiko tells nobody that a connection has ended.
                for listener in select.select([*listeners, self._woken], [], [], 0.5)[0]:
                    if listener is not self._woken:
                        local, _ = listener.accept()
                        arguments = (local, self._forwards[listeners[listener]])
                        threading.Thread(target=self._serve, args=arguments, name="fabric-splice", daemon=True).start()
            if not self._over.is_set():
                self._lines.append("the connection ended")

    def _listen(self, name: str) -> socket.socket:
        path = Path(self._paths[name])
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        return listener

    def _serve(self, local: socket.socket, path: str) -> None:
        with local:
            try:
                channel, first = self._connect(path)
            except errors.MlboxError as error:
                self._lines.append(error.message)
                return
            sender = threading.Thread(target=_send, args=(local, channel), name="fabric-splice", daemon=True)
            sender.start()
            with contextlib.suppress(OSError):
                local.sendall(first)
                while data := channel.read():
                    local.sendall(data)
            channel.kill()
            with contextlib.suppress(OSError):
                local.shutdown(socket.SHUT_RDWR)  # wakes the sender; what was sent stays readable
            sender.join()

    def _connect(self, path: str) -> tuple[_Channel, bytes]:
        """A channel joined to the socket at `path`, and what it has said already."""
        part = remote.host_part()
        name = f"mlbox-{hashlib.sha256(part).hexdigest()}.pyz"
        request = wire.Request("connect", {"socket": path}, secrets.token_hex(8))
        code, said = 0, ""
        for command, before in ((remote._run_command(name), b""), (remote._plant_command(len(part), name), part)):
            channel = self._pool.open(command)
            try:
                with contextlib.suppress(errors.Unreachable):  # the exit code says more
                    channel.write(before + request.encode())
                found = _connected(channel, request.nonce)
            except BaseException:
                channel.kill()
                raise
            if found is not None:
                return channel, found
            code, said = channel.wait(), channel.errors()
            channel.kill()
            if code != _MISSING:
                break
        raise errors.Unreachable(f"connect ended with exit code {code}: {said.strip()[-400:]}")


def _connected(channel: _Channel, nonce: str) -> bytes | None:
    """Read up to the reply; what came after it in the same block belongs to the service. None: no reply came."""
    reader, rest = wire.MessageReader(nonce), b""
    while data := channel.read():
        rest += data
        while b"\n" in rest:
            line, _, rest = rest.partition(b"\n")
            for message in reader.feed(line + b"\n"):
                if "error" in message:
                    raise wire.decode_error(message["error"])
                if "reply" in message:
                    return rest
    return None


def _send(local: socket.socket, channel: _Channel) -> None:
    with contextlib.suppress(OSError, errors.Unreachable):
        while data := local.recv(65536):
            channel.write(data)
    channel.close_input()


class Fabric:
    def __init__(self, host: str, ssh_config: str) -> None:
        _load()
        _parts(host)
        self.host, self._ssh_config = host, ssh_config
        self._keyring = _Keyring()
        self._pool = _Pool(host, self._dialler(watch=True, ask=True))
        self._warned = False

    def open(self, command: str) -> _Channel:
        return self._pool.open(command)

    def failure(self, code: int, stderr: str) -> errors.MlboxError:
        return explain(self.host, stderr)

    def identity_files(self) -> tuple[str, ...]:
        there = _resolve(self.host, self._ssh_config).identity_files
        return there or (() if os.environ.get("SSH_AUTH_SOCK") else keys.own())

    def public_keys(self) -> tuple[str, ...]:
        return keys.public(self.identity_files())

    def way(self, socket: str) -> dict[str, Any] | None:
        return None  # it is for machines without ssh

    def link(self, forwards: Mapping[str, str], folder: Path, generation: int) -> Link:
        if not self._warned:
            self._warned = True
            output.warn("tunnels over fabric are slow, most of all with many connections: better install OpenSSH")
        dialler = self._dialler(watch=False, ask=generation == 1)
        return _FabricLink(_Pool(self.host, dialler), forwards, folder, generation)

    def _dialler(self, watch: bool, ask: bool) -> _Dialler:
        return _Dialler(self.host, self._ssh_config, self._keyring, watch, ask)


def make(host: str, config: state.Config) -> Fabric:
    return Fabric(host, config.ssh_config)
