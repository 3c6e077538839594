"""The way of `ssh NAME` to the session's own sshd, without an attached client: connects, and leaves that to ssh.

    python3 -I -S proxy.py PLACE.json       an entry's ProxyCommand (client/ssh_config.py writes it)

    ssh NAME ═ a local socket ═ one shared ssh connection to the host ═ the session's socket ═ sshd -i

ssh takes the connection itself (ProxyUseFdpass), and this ends. For a client that knows no such thing it copies.

It stands alone and imports little: it is started for each `ssh NAME`, `scp` and `git fetch`. While the shared
connection is up there is no question to the host. A session that is not where it was is looked for by mlbox itself
(the place's `find`). The shared connection has no keepalive, so that silence kills no shell; a new `ssh NAME` that
hears nothing through it leaves it to what it carries, and dials another.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import stat
import sys
from _thread import start_new_thread
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Union

_GREETED_WITHIN = 8.0  # s; sshd speaks first
_CONTROL = 5.0  # s for the connection's own process, here, to answer; it may be a stopped one
_TAKEN = 5.0  # s for ssh to take a connection, which it waits for
_TRIES = 3
_PERSIST = "10m"
_PLACE = ("id", "name", "host", "control", "local", "remote")

# What came of a look at a socket: nothing listens there; nobody is behind it; it is silent.
ABSENT, GONE, SILENT = "absent", "gone", "silent"
Answer = Union[str, socket.socket]


class Unreachable(Exception):
    pass


def main(arguments: Sequence[str]) -> int:
    try:
        place = _read(arguments[0])
        return join(place, _reach_or_find(place))
    except Unreachable as error:
        print(f"mlbox: {error}", file=sys.stderr)
        return 255
    except KeyboardInterrupt:
        return 130


def _reach_or_find(place: Mapping[str, Any]) -> Answer:
    """What is not where it was is mlbox's to look for; this process then becomes mlbox."""
    try:
        answer = reach(place)
    except Unreachable:
        if not place["moves"]:  # nobody else could know more
            raise
        answer = GONE
    except OSError:  # its folder was cleared away: mlbox makes it anew
        answer = GONE
    if answer == GONE and place["find"]:
        os.execv(place["find"][0], place["find"])
    return answer


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            place = json.load(file)
        if isinstance(place, dict) and all(isinstance(place.get(name), str) for name in _PLACE):
            return {"ssh": [], "find": [], "moves": False, **place}
    except (OSError, ValueError):
        pass
    raise Unreachable(f"{path} tells of no session (mlbox session list writes the entries of those that run)")


def join(place: Mapping[str, Any], answer: Answer) -> int:
    """Hand the connection to ssh, or copy until either side ends; says so where there is none."""
    if isinstance(answer, str):
        print(f"mlbox: {place['name']} does not answer on {place['host']}", file=sys.stderr)
        return 255
    if _takes_connections():
        with socket.socket(fileno=os.dup(1)) as ssh:
            ssh.settimeout(_TAKEN)
            socket.send_fds(ssh, [b"\0"], [answer.fileno()])
            with suppress(OSError):  # until ssh has it: a Mac may clear away a socket that is open only on its way
                ssh.recv(1)
        os._exit(0)  # ssh waits for this process's end
    start_new_thread(_send, (answer,))
    try:
        while data := answer.recv(1 << 18):
            _write(1, data)
    except (OSError, KeyboardInterrupt):
        pass
    os._exit(0)  # the other thread reads from a caller that may stay silent


def _takes_connections() -> bool:
    """ssh with ProxyUseFdpass has one socket for both directions, and says nothing. Others have pipes, or a socket for
    each; or one socket, as libssh has, but greet through it while this program starts."""
    inwards, outwards = os.fstat(0), os.fstat(1)
    one = stat.S_ISSOCK(outwards.st_mode) and os.path.samestat(inwards, outwards)
    return one and not select.select([0], [], [], 0)[0]


def _send(connection: socket.socket) -> None:
    try:
        while True:
            data = os.read(0, 1 << 18)
            if not data:
                break  # ssh has gone, and with it the reader of what still comes
            connection.sendall(data)
    except OSError:
        pass
    os._exit(0)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def reach(place: Mapping[str, Any]) -> Answer:
    """The greeted connection, or GONE where the host has no such socket (any more). Raises Unreachable."""
    if not place["ssh"]:  # this machine
        found = greeting(place["remote"])
        return GONE if found == ABSENT else found
    _check_private(os.path.dirname(place["control"]))
    for _ in range(_TRIES):
        before = _inode(place["local"])
        found = greeting(place["local"])
        if found not in (ABSENT, SILENT):
            return found
        lock = _lock(f"{place['control']}.lock")
        try:
            if _inode(place["local"]) != before:
                continue  # somebody else was faster
            if found == SILENT:
                _remove(place["control"])
            _forward(place)
        finally:
            os.close(lock)
    raise Unreachable(f"{place['host']} does not answer")


def _lock(path: str) -> int:
    """A descriptor with the lock of the file that is there; one that was swept (client/ways.py) keeps nobody out."""
    while True:
        lock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _inode(path) == os.fstat(lock).st_ino:
            return lock
        os.close(lock)


def _check_private(folder: str) -> None:
    """Makes it where it is absent. Raises Unreachable where others can reach into it: a reboot empties /tmp, and then
    anybody can take its name, and lay links in it."""
    if not os.path.lexists(folder):
        os.makedirs(folder, 0o700, exist_ok=True)
    found = os.lstat(folder)
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return
    if found.st_uid == os.getuid():
        raise Unreachable(f"{folder} is not a private folder: remove it, or chmod 700 {folder}")
    raise Unreachable(f"{folder} is not yours but {_user(found.st_uid)}'s: ask them, or an administrator, to remove it")


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def greeting(path: str) -> Answer:
    """The connection to a socket, once its server has said something, which is still to be read."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_GREETED_WITHIN)
        connection.connect(path)
        said = connection.recv(1, socket.MSG_PEEK)
    except (socket.timeout, BlockingIOError):  # BlockingIOError: the backlog of a stopped ssh is full
        connection.close()
        return SILENT
    except ConnectionResetError:
        said = b""
    except OSError:
        connection.close()
        return ABSENT
    if not said:
        connection.close()
        return GONE
    connection.settimeout(None)
    return connection


def _forward(place: Mapping[str, Any]) -> None:
    """Have the local socket lead to the session's, over the connection that is up or a new one."""
    _remove(place["local"])
    if os.path.exists(place["control"]):
        if _lead(place):
            return
        _remove(place["control"])  # a dead connection is not for this one to end
    # Ours come first: ssh takes the first value of an option. Ports that the user forwards there are not for this one.
    options = [f"ControlPath={place['control']}", "ControlMaster=yes", f"ControlPersist={_PERSIST}"]
    options += ["StreamLocalBindUnlink=yes", "StreamLocalBindMask=0177", "ClearAllForwardings=yes"]
    options += ["ServerAliveInterval=0", "ConnectTimeout=10"]
    dial = [*place["ssh"], *(word for option in options for word in ("-o", option)), "-f", "-N", "-T", "-a", "-x"]
    code, said = _run([*dial, "--", place["host"]])
    if code != 0:
        raise Unreachable(f"{place['host']} is not reached: {said.strip() or f'ssh ended with {code}'}")
    sys.stderr.write(said)
    sys.stderr.flush()
    if not _lead(place):
        raise Unreachable(f"the connection to {place['host']} leads nowhere; run the same command again")


def _lead(place: Mapping[str, Any]) -> bool:
    """Over the connection that is up. Without the user's configuration, whose own forwards would be asked for too."""
    ssh = [place["ssh"][0], "-F", "/dev/null", "-o", f"ControlPath={place['control']}", "-O", "forward"]
    code, _ = _run([*ssh, "-L", f"{place['local']}:{place['remote']}", "--", place["host"]], _CONTROL)
    return code == 0 and os.path.exists(place["local"])  # a forward whose socket was removed is said to be there


def _run(argv: Sequence[str], timeout: float | None = None) -> tuple[int, str]:
    """Its code and what it said. To a file: the connection that ssh leaves behind would hold a pipe open. What it
    asks (a passphrase, a code, whether to trust a key) it asks at the terminal, or by SSH_ASKPASS."""
    import subprocess
    import tempfile

    with tempfile.TemporaryFile() as said:
        try:
            code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            return 255, f"{argv[0]} does not end"
        except OSError as error:
            return 255, f"{argv[0]}: {error.strerror}"
        said.seek(0)
        return code, said.read()[-16384:].decode(errors="replace")


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
