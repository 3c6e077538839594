"""The user's own public keys: what a session lets in. No key is copied, and none leaves the laptop."""

from __future__ import annotations

import functools
import getpass
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from mlbox.client import state

_KINDS = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")


def expander(name: str, hostname: str, port: int, user: str, alias: str) -> Callable[[str], str]:
    """What ssh puts for the %-words in the names of files. `name`: of the host, as it was typed."""
    words = {"h": hostname, "n": name, "p": str(port), "r": user, "k": alias or name, "%": "%"}
    words.update({"u": getpass.getuser(), "d": str(Path.home()), "L": socket.gethostname().split(".")[0]})
    return lambda text: re.sub(r"%(.)", lambda found: words.get(found[1], found[0]), text)


def defaults() -> tuple[str, ...]:
    """The files that ssh tries by itself."""
    names = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
    return tuple(str(path) for path in (Path.home() / ".ssh" / name for name in names) if path.is_file())


def own() -> tuple[str, ...]:
    """A key of mlbox's own, for a user who has none: made once, on this machine, used for sessions only."""
    path = state.home() / "id_ed25519"
    if not path.is_file() and shutil.which("ssh-keygen"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mlbox", "-f", str(path))
    return (str(path),) if path.is_file() else ()


def identities(files: Iterable[str], agent: str = "") -> tuple[str, ...]:
    """These files, those that are there; and mlbox's own key where neither they nor the agent show a public half: who
    logs in with a password has none that a session could know."""
    there = tuple(name for name in files if os.path.isfile(name))
    shown = any(_public_half(Path(name)).startswith(_KINDS) for name in there) or _agent(agent)
    return there if shown else (*there, *own())


def public(identity_files: Iterable[str], agent: str = "") -> tuple[str, ...]:
    """The public halves of these files (from their .pub, or the key itself where it opens without a
    passphrase), and all that the agent offers. `agent`: ssh's IdentityAgent, where the user has one."""
    found = [_public_half(Path(os.path.expanduser(name))) for name in identity_files]
    lines = [*found, *_agent(agent)]
    return tuple(dict.fromkeys(line.strip() for line in lines if line.startswith(_KINDS)))


def _public_half(path: Path) -> str:
    try:
        return path.with_name(path.name + ".pub").read_text()
    except OSError:
        pass
    if not path.is_file():
        return ""
    return _said("ssh-keygen", "-y", "-P", "", "-f", str(path))


def _agent(named: str) -> list[str]:
    """What it offers; "The agent has no identities." is no key."""
    path = os.environ.get("SSH_AUTH_SOCK", "")
    if named.startswith("$"):
        path = os.environ.get(named[1:].strip("{}"), "")
    elif named not in ("", "SSH_AUTH_SOCK"):
        path = "" if named == "none" else named
    return _said("ssh-add", "-L", SSH_AUTH_SOCK=path).splitlines() if path else []


def _run(*argv: str, **env: str) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, env={**os.environ, **env}
        )
    except (subprocess.TimeoutExpired, OSError):
        return ""
    return done.stdout if done.returncode == 0 else ""


_said = functools.cache(_run)  # a command asks for its keys several times
