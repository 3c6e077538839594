"""What the user's ssh configuration says about a host: asked of `ssh -G`, or read here where there is no ssh."""

from __future__ import annotations

import getpass
import glob
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlbox import errors
from mlbox.client.transports import keys
from mlbox.client.transports.fabric.library import load
from mlbox.client.transports.openssh import explain


@dataclass(frozen=True)
class Settings:
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


def resolve(name: str, ssh_config: str) -> Settings:
    user, host, port = parts(name)
    found = (_from_ssh if shutil.which("ssh") else _from_files)(host, ssh_config)

    def last(key: str, default: str = "") -> str:
        value = found.get(key, [default])[0]
        return "" if value.lower() == "none" else value

    hostname, number = last("hostname", host), port or _number(last("port", "22"))
    login = user or last("user", getpass.getuser())
    expand = keys.expander(host, hostname, number, login, last("hostkeyalias"))
    known = last("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
    known += " " + last("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2")
    identities = [os.path.expanduser(expand(file)) for file in found.get("identityfile", keys.defaults())]
    return Settings(
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


def parts(name: str) -> tuple[str, str, int]:
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
    _, paramiko = load()
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
