"""The user's own SSH configuration and known_hosts, as far as mlbox reads them: which names mean a machine already."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlbox.client import state
from mlbox.client.transports import keys, known_hosts

DEPTH = 16  # ssh's own limit of Includes within Includes
_KNOWN = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_ADDRESSES = "/etc/hosts"


def is_host(name: str, file: str, ours: Path) -> bool:
    """Whether that name means a machine here: to ssh's configuration, by a known key, to this machine or to mlbox.
    `file`: a configuration beside ssh's own; `ours`: the one of sessions, which the user's includes."""
    if name == "localhost" or name in _of_mlbox() or name in _of_this_machine():
        return True
    patterns = [pattern.lower() for pattern in _own("host", file, ours)]
    for_all = ("", "mlbox-")  # Host mlbox-*: what a user has for sessions
    if any(pattern.strip("*?") not in for_all and fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
        return True
    return any(line.hosts.strip("*?,") for line in known_hosts.about(_known(name, file, ours), name))


def hosts(file: str, ours: Path) -> list[str]:
    """The machines that the user's ssh has names for."""
    return [pattern for pattern in _own("host", file, ours) if not set(pattern) & set("*?!")]


def _of_mlbox() -> set[str]:
    return {host.rpartition("@")[2].lower() for host in (*state.load("hosts.json"), *state.config().hosts)}


def _of_this_machine() -> set[str]:
    return {word for line in lines(_ADDRESSES) for word in line.partition("#")[0].lower().split()[1:]}


def _known(name: str, file: str, ours: Path) -> list[str]:
    """The known_hosts files of all hosts, for who may be known by the name is not asked of ssh."""
    named = [*_own("userknownhostsfile", file, ours), *_own("globalknownhostsfile", file, ours)]
    expand = keys.expander(name, name, 22, "", "")
    return [os.path.expanduser(expand(one)) for one in dict.fromkeys((*_KNOWN, *named))]


def _own(keyword: str, file: str, ours: Path) -> list[str]:
    files = [file, str(Path.home() / ".ssh/config"), "/etc/ssh/ssh_config"]
    return [word for one in files if one for word in _values(keyword, one, ours, 0)]


def _values(keyword: str, file: str, ours: Path, depth: int) -> Iterator[str]:
    """What lines of that keyword say, in a file and those that it includes, but ours."""
    for line in lines(file) if depth < DEPTH else ():
        found, *words = parts(line)
        if found == keyword:
            yield from words
        elif found == "include":
            for path in included(words):
                if path != str(ours):
                    yield from _values(keyword, path, ours, depth + 1)


def lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(errors="replace").splitlines()
    except OSError:
        return []


def included(words: Iterable[str]) -> Iterator[str]:
    """The files that an Include line's words are for."""
    for word in words:
        yield from sorted(glob.glob(os.path.join(Path.home(), ".ssh", os.path.expanduser(word))))


def parts(line: str) -> list[str]:
    """A line's keyword, in small letters, and its arguments; of an empty line or a comment one empty word."""
    found = re.match(r"\s*(\w+)(?:\s*=\s*|\s+)(.*)", line)
    if found is None:
        return [""]
    return [found[1].lower(), *(quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', found[2]))]
