"""SSH to sessions by name: `ssh -F <state>/ssh_config NAME`, or plain `ssh NAME` once that file is included.

    ssh.d/<id>.conf, .json, .known_hosts      one running session: its names, its place (client/proxy.py), its key
    ssh.d/<id>.<pid>.conf, .known_hosts       one attached client: `ssh -p PORT USER@localhost`
    proxy.py                                  the way to a session, for ssh's ProxyCommand

A session's entry is written by every command that learns where it runs, and goes with the first that learns of its
end; it needs no client. The session's own host key is known by the session's id, not by an address.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import pwd
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.client import ssh_files, state, ways
from mlbox.core import ids, text

Json = dict[str, Any]
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@\\-]{0,63}\$?(?<!\\)")  # LAB\ada: of a Windows domain
_HOST_KEY = re.compile(r"[a-z0-9@.-]{3,60} [A-Za-z0-9+/]{16,2000}={0,3}")
_SOCKET = re.compile(r"/[^\s:%$\\\"']{1,99}")  # as a tunnel can forward it (tunnels/link.py)
_PROXY = (pkgutil.get_data("mlbox.client", "proxy.py") or b"").decode()


def top() -> Path:
    return state.home() / "ssh_config"


def folder() -> Path:
    return state.home() / "ssh.d"


# ---- a session, by its name --------------------------------------------------------------------------------


def enter(
    session: str, name: str, facts: Mapping[str, Any], way: Mapping[str, Any], keys: Sequence[str], agent: str = "",
    owner: str = "",
) -> str:  # fmt: skip
    """The name by which ssh now knows a session. `facts`: its SSH service, as the host told (socket, user, host_key);
    `way`: what of the place (client/proxy.py) is this machine's to say; `owner`: of a colleague's. Raises MlboxError on
    words of the host's that could mean more to ssh than they should."""
    user, host_key, remote = str(facts["user"]), str(facts["host_key"]), str(facts["socket"])
    _check(session, user, host_key)
    if not (text.is_name(name) and _SOCKET.fullmatch(remote)):
        raise errors.MlboxError("the host replied what can't be a session's name or socket")
    place = {**way, "id": session, "name": name, "remote": remote, "find": _find(session, way)}
    names = _free_names(session, name, way, owner)
    base, alias = folder() / session, f"mlbox-{session}"
    state.write(state.home() / "proxy.py", _PROXY)
    state.write(Path(f"{base}.json"), json.dumps(place))
    state.write(Path(f"{base}.known_hosts"), f"{alias} {host_key}\n")
    words = (sys.executable, "-I", "-S", str(state.home() / "proxy.py"), f"{base}.json")
    command = shlex.join(words).replace("%", "%%")
    lines = [f"Host {' '.join(names)}", f"  HostKeyAlias {alias}", f"  User {user}"]
    lines += [f"  ProxyCommand {command}", "  ProxyUseFdpass yes"]
    lines += _verified(f"{base}.known_hosts", keys, agent, owner)
    state.write(Path(f"{base}.conf"), "\n".join(lines) + "\n")
    _write_top()
    return names[0]


def _find(session: str, way: Mapping[str, Any]) -> list[str]:
    """The command that looks for it where it moved to."""
    program = os.path.abspath(sys.argv[0])
    words = [sys.executable, program, "ssh-config", "proxy", session]
    file = _file(way)
    return [*words, "--ssh-config", file] if file else words


def _file(way: Mapping[str, Any]) -> str:
    """The configuration by which its host is reached, where it is not ssh's own."""
    ssh = list(way["ssh"])
    return str(ssh[ssh.index("-F") + 1]) if "-F" in ssh else ""


def _free_names(session: str, name: str, way: Mapping[str, Any], owner: str) -> list[str]:
    """Its own name, unless that is a host's or another session's; and two longer ones, which are all that a colleague's
    has: whoever names it would choose what `ssh NAME` and a push to NAME mean here."""
    others = {alias for id_, aliases in names().items() if id_ != session for alias in aliases}
    wanted = (*(() if owner else (name,)), f"mlbox-{name}")
    taken = {alias for alias in wanted if alias == way["host"] or ssh_files.is_host(alias, _file(way), top())}
    return [*(alias for alias in wanted if alias not in others | taken), f"mlbox-{session.lower()}"]


def shortened(session: str) -> str:
    """The name by which ssh knows a session; empty without an entry."""
    found = names().get(session, [])
    return found[0] if found else ""


def named(wanted: str) -> str:
    """The name by which ssh knows the one session that is called so, by name or id; empty where there is no entry."""
    found = [aliases[0] for id_, aliases in names().items() if wanted and wanted in (id_, *aliases)]
    return found[0] if len(found) == 1 else ""


def names() -> dict[str, list[str]]:
    """All entries: id -> the names that ssh knows it by."""
    found = {}
    for path in sorted(folder().glob("*.conf")):
        with contextlib.suppress(OSError):
            first = path.read_text().partition("\n")[0].split()
            if ids.is_ulid(path.stem) and first[:1] == ["Host"]:
                found[path.stem] = first[1:]
    return found


def place(session: str) -> Json:
    """Where its entry leads; empty without one."""
    try:
        found = json.loads((folder() / f"{session}.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def drop(session: str) -> None:
    """It has ended; ssh leaves the socket that it forwarded to it."""
    local = place(session).get("local")
    if local:
        with contextlib.suppress(OSError):
            os.unlink(str(local))
    for suffix in ("conf", "json", "known_hosts"):
        (folder() / f"{session}.{suffix}").unlink(missing_ok=True)
    ways.sweep({place(other).get("local") for other in names()})


def keep_only(host: str, root: str, living: Iterable[str]) -> None:
    """`host` has told all that run there, of that ROOT. One from a queue may run elsewhere now; its entry finds out."""
    kept = set(living)
    for session in names():
        found = place(session)
        here = (found.get("host"), found.get("root", "")) == (host, root)
        if here and session not in kept and not found.get("moves"):
            drop(session)


# ---- an attached client, by its port -----------------------------------------------------------------------


def add(
    session: str, port: int, user: str, host_key: str, keys: Sequence[str], agent: str = "", owner: str = ""
) -> None:
    """`ssh -p PORT USER@localhost` knows the session's key. Raises MlboxError as `enter` does."""
    _check(session, user, host_key)
    _forget_the_dead()
    base = folder() / f"{session}.{os.getpid()}"
    state.write(Path(f"{base}.known_hosts"), f"[localhost]:{port},[127.0.0.1]:{port} {host_key}\n")
    match = f'Match host localhost,127.0.0.1 exec "test %p = {port}"'
    lines = [match, *_verified(f"{base}.known_hosts", keys, agent, owner)]
    state.write(Path(f"{base}.conf"), "\n".join(lines) + "\n")
    _write_top()


def remove(session: str) -> None:
    for suffix in ("conf", "known_hosts"):
        (folder() / f"{session}.{os.getpid()}.{suffix}").unlink(missing_ok=True)


def _forget_the_dead() -> None:
    """Entries of clients that were killed."""
    for path in folder().glob("*.*.*"):
        pid = path.name.split(".")[1]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pid.isdigit():
                os.kill(int(pid), 0)
            continue
        path.unlink(missing_ok=True)


# ---- both --------------------------------------------------------------------------------------------------


def _check(session: str, user: str, host_key: str) -> None:
    if not (ids.is_ulid(session) and _USER.fullmatch(user) and _HOST_KEY.fullmatch(host_key)):
        raise errors.MlboxError("the host replied what can't be a session's id, user or host key")


def _verified(known_hosts: str, keys: Sequence[str], agent: str, owner: str) -> list[str]:
    lines = [f'  UserKnownHostsFile "{known_hosts}"', "  StrictHostKeyChecking yes"]
    lines += ["  PubkeyAuthentication yes", "  PreferredAuthentications publickey"]  # whatever the user's hosts take
    lines += ["  ForwardAgent no", "  ForwardX11 no"] if owner else []  # they are for hosts of the user's own
    files = [("IdentityAgent", agent), *(("IdentityFile", file) for file in keys)]
    return [*lines, *(f'  {option} "{file.replace("%", "%%")}"' for option, file in files if file)]


def _write_top() -> None:
    head = "# Written by mlbox: its sessions. `mlbox ssh-config install` includes it from ~/.ssh/config.\n"
    content = f'{head}Include "{folder()}/*.conf"\n'
    with contextlib.suppress(OSError):
        if top().read_text() == content:
            return
    state.write(top(), content)


# ---- the user's own configuration --------------------------------------------------------------------------


def includes(line: str) -> bool:
    """Whether a line of the user's configuration includes ours."""
    keyword, *words = ssh_files.parts(line)
    return keyword == "include" and any(os.path.expanduser(word) == str(top()) for word in words)


def words(session: str, port: int, user: str) -> str:
    """What a person may type. By port alone only where the user's own configuration includes ours, which is what
    knows the session's host key."""
    known = shortened(session)
    if not known:  # its host is not reached by ssh (transport = "fabric")
        return f"{by_file()} -p {port} {shlex.quote(user)}@localhost"
    if known_to_ssh():
        return f"ssh {known}    (or: ssh -p {port} {shlex.quote(user)}@localhost)"
    return f"{by_file()} {known}    (port {port})"


def by_file() -> str:
    return f"ssh -F {shlex.quote(str(top()))}"


def known_to_ssh() -> bool:
    """Whether ssh knows sessions without an option: it looks in the account's home, whatever HOME says."""
    return included() and Path.home().resolve() == _account_home().resolve()


def _account_home() -> Path:
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a uid without an account, with which ssh does nothing at all
        return Path.home()


def included() -> bool:
    return holds(ssh_files.lines(str(Path.home() / ".ssh/config")))


def holds(lines: Iterable[str], depth: int = 0) -> bool:
    """Whether these lines of a configuration, or those that they include, include ours whatever host is meant: what
    follows a Host or Match line is for those hosts only."""
    for_all = True
    for line in lines:
        keyword, *words = ssh_files.parts(line)
        if keyword in ("host", "match"):
            for_all = [word.lower() for word in words] == (["*"] if keyword == "host" else ["all"])
        elif for_all and keyword == "include":
            more = ssh_files.included(words) if depth < ssh_files.DEPTH else ()
            if includes(line) or any(holds(ssh_files.lines(path), depth + 1) for path in more):
                return True
    return False
