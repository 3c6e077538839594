"""A session that its owner shares: what its keeper tells a colleague at its door, and what is believed of that. Pure.

The keeper is another user's program, and its words end up on the colleague's terminal, in files and in ssh's
arguments. So whose session it is and where its sockets are is not among them, and the rest is taken by its form only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mlbox.core import text
from mlbox.errors import HostUnready

Json = dict[str, Any]

GUEST = "guest"  # the service whose socket is the guest's own
_SERVICES = ("jupyter", "vscode", "ssh", GUEST)
_SECRET = re.compile(r"[0-9a-f]{32}")
_FORMS = {
    "token": re.compile(r"[A-Za-z0-9_-]{1,200}"),
    "user": re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}\$?"),
    "host_key": re.compile(r"[a-z0-9@.-]{3,60} [A-Za-z0-9+/]{16,2000}={0,3}"),
    "folder": re.compile(r"/[^\x00-\x1f\x7f]{0,500}"),
}
_NEEDED = {"jupyter": ("token",), "vscode": ("token", "folder"), "ssh": ("user", "host_key", "folder"), GUEST: ()}
_KEY = re.compile(r"((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]{2,60} [A-Za-z0-9+/]{16,16000}={0,3})(?: .*)?")
_MOST_KEYS, _MOST_OF_KEYS = 32, 64 * 1024  # of one person; characters
_LONGEST = 300  # characters of a word for people


def is_service(name: object) -> bool:
    return name in _SERVICES


def socket_name(secret: str, service: str) -> str:
    """In the door's folder. `secret` is one colleague's: whoever does not know it can't put a socket in its place."""
    return f"{secret}.{service}"


def keys(lines: Iterable[object], people: int = 1) -> list[str]:
    """Public keys for authorized_keys: without options or comments, and no more than so many people have."""
    found = [match[1] for line in lines if isinstance(line, str) and (match := _KEY.fullmatch(line.strip()))]
    kept, size = list[str](), 0
    for key in list(dict.fromkeys(found))[: _MOST_KEYS * people]:
        size += len(key)
        if size > _MOST_OF_KEYS * people:
            break
        kept.append(key)
    return kept


def facts(said: Mapping[str, Any], session: str, owner: str, host: str) -> Json:
    """A colleague's session as lists show it (host/handlers/sessions.describe), and whose it is. Raises HostUnready."""
    name, gpus, since = said.get("name"), said.get("gpus"), said.get("since")
    if not isinstance(name, str) or not text.is_name(name):
        raise _strange(owner)
    return {
        "id": session, "name": name, "state": "started", "host": host, "user": owner, "owner": owner, "queued": False,
        "gpus": [_word(gpu) for gpu in gpus][:256] if isinstance(gpus, list) else [],
        "image": _word(said.get("image")), "runtime": _word(said.get("runtime")),
        "trouble": _words(said.get("trouble")), "since": since if type(since) in (int, float) else 0, "shared": [],
    }  # fmt: skip


def reach(said: Mapping[str, Any], folder: str, owner: str) -> Json:
    """What it takes to reach it, as session.json has it of one's own; `folder`: the door's. Raises HostUnready."""
    secret, told, key = said.get("secret"), said.get("services"), said.get("guest_key", "")
    if not isinstance(secret, str) or not _SECRET.fullmatch(secret) or not isinstance(told, Mapping):
        raise _strange(owner)
    if key != "" and not (isinstance(key, str) and _FORMS["token"].fullmatch(key)):  # an older mlbox's has none
        raise _strange(owner)
    services = {}
    for name in _SERVICES[:-1]:
        if name in told:
            given = told[name] if isinstance(told[name], Mapping) else {}
            services[name] = {"socket": f"{folder}/{socket_name(secret, name)}", **_formed(name, given, owner)}
    return {
        "services": services, "guest_socket": f"{folder}/{socket_name(secret, GUEST)}", "guest_key": key,
        "absent": {name: why for name, why in _words(said.get("absent")).items() if is_service(name)},
    }  # fmt: skip


def logs(said: Mapping[str, Any]) -> dict[str, str]:
    told = said.get("logs")
    found = told.items() if isinstance(told, Mapping) else ()
    return {_word(name): str(content) for name, content in found}


def _formed(service: str, given: Mapping[str, Any], owner: str) -> dict[str, str]:
    found = {word: given.get(word) for word in _NEEDED[service]}
    if not all(isinstance(value, str) and _FORMS[word].fullmatch(value) for word, value in found.items()):
        raise _strange(owner)
    return {word: str(value) for word, value in found.items()}


def _word(said: object) -> str:
    return text.safe(said).replace("\n", " ")[:_LONGEST] if isinstance(said, str) else ""


def _words(said: object) -> dict[str, str]:
    return {_word(name): _word(why) for name, why in said.items()} if isinstance(said, Mapping) else {}


def _strange(owner: str) -> HostUnready:
    return HostUnready(f"{owner}'s session says of itself what can't be", "is it of another mlbox than yours?")
