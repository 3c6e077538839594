"""SSH by name to attached sessions: `ssh -F <state>/ssh_config NAME`, or plain `ssh NAME` once that file is included.

One file per attached client, made when its tunnel is up and removed with it. The session's own host key is
known by the session's id, not by its port, so a port that another session had before raises no false alarm;
and by the port as well, for `ssh -p PORT localhost`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from mlbox import errors
from mlbox.client import state
from mlbox.core import ids, text

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}\$?")
_HOST_KEY = re.compile(r"[a-z0-9@.-]{3,60} [A-Za-z0-9+/]{16,2000}={0,3}")


def top() -> Path:
    return state.home() / "ssh_config"


def _folder() -> Path:
    return state.home() / "ssh.d"


def add(session: str, name: str, port: int, user: str, host_key: str, identity_files: Sequence[str]) -> None:
    """Raises MlboxError on words of the host's that could mean more to ssh than they should."""
    if not (ids.is_ulid(session) and text.is_name(name) and _USER.fullmatch(user) and _HOST_KEY.fullmatch(host_key)):
        raise errors.MlboxError("the host replied what can't be a session's name, user or host key")
    _forget_the_dead()
    mine = f"{name}.{os.getpid()}"
    known, alias = _folder() / f"{mine}.known_hosts", f"mlbox-{session}"
    state.write(known, f"{alias},[localhost]:{port},[127.0.0.1]:{port} {host_key}\n")
    identities = "".join(f'  IdentityFile "{file}"\n' for file in identity_files)
    verified = f'  UserKnownHostsFile "{known}"\n  StrictHostKeyChecking yes\n'
    address = f"  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias {alias}\n  User {user}\n"
    by_name = f"Host {name}\n{address}{verified}{identities}"
    by_port = f'Match host localhost,127.0.0.1 exec "test %p = {port}"\n{verified}{identities}'
    state.write(_folder() / f"{mine}.conf", by_name + by_port)
    state.write(
        top(),
        "# Written by mlbox: the attached sessions. Include it from ~/.ssh/config if you like.\n"
        f'Include "{_folder()}/*.conf"\n',
    )


def remove(name: str) -> None:
    for suffix in ("conf", "known_hosts"):
        (_folder() / f"{name}.{os.getpid()}.{suffix}").unlink(missing_ok=True)


def _forget_the_dead() -> None:
    """Entries of clients that were killed."""
    for path in _folder().glob("*.*.*"):
        pid = path.name.split(".")[1]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pid.isdigit():
                os.kill(int(pid), 0)
            continue
        path.unlink(missing_ok=True)


def words(name: str, port: int, user: str) -> str:
    """What a person may type. By port alone only where the user's own configuration includes ours, which is what
    knows the session's host key."""
    if _included():
        return f"ssh {name}    (or: ssh -p {port} {user}@localhost)"
    return f"ssh -F {shlex.quote(str(top()))} {name}    (port {port})"


def _included() -> bool:
    try:
        lines = (Path.home() / ".ssh/config").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    included = [line.split(None, 1)[1] for line in lines if re.match(r"\s*include\s+\S", line, re.IGNORECASE)]
    words = [word for line in included for word in re.findall(r'"([^"]*)"|(\S+)', line)]
    return any(os.path.expanduser(quoted or plain) == str(top()) for quoted, plain in words)
