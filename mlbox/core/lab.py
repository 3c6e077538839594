"""lab.yaml, checked: hosts, queues, limits, allow-lists. People edit it, so each error names its key.

    from_document(document, where)   what a YAML parser made of the file, to a Lab; raises Usage

Absent limits are none (written as 0 here). Everything has a default: an empty file is a lab with one
queue, `default`, that every host serves.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mlbox.core import resources, text
from mlbox.core.resources import Resources
from mlbox.core.session import TUNNELS
from mlbox.errors import Usage

Place = Callable[[Sequence[object]], str]
ON_HOST_LOSS = ("requeue", "hold")
EVERYONE = "*"


@dataclass(frozen=True)
class Host:
    """What lab.yaml says of a host."""

    name: str
    ssh: str = ""  # what `ssh` calls it
    labels: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()  # that it serves, in their order
    via: str = ""  # where its reverse tunnels end, if it has any (an ssh name)
    reverse: bool = False  # all its tunnels are: it can't be dialled itself


@dataclass(frozen=True)
class Queue:
    """Limits count the whole lab's running jobs; 0 is no limit."""

    name: str
    max_running: int = 0
    max_running_per_user: int = 0
    max_gpus_per_user: int = 0
    time_limit: int = 0  # s, for jobs that name none
    max_time_limit: int = 0  # s
    priority: int = 0  # orders the queues of a host that lists none; who may preempt whom
    preemptible: bool = False
    preempts: bool = False

    def time_limit_for(self, asked: int) -> int:
        """Seconds that a job gets which asks for `asked` (0: for none in particular); 0 is endless."""
        limit = asked or self.time_limit
        if not self.max_time_limit:
            return limit
        return min(limit or self.max_time_limit, self.max_time_limit)


@dataclass(frozen=True)
class UserLimits:
    """Over all queues; 0 is no limit."""

    max_running: int = 0
    max_gpus: int = 0
    max_priority: int = 0  # up to which theirs count among other users' jobs, too (Lab.priority)


@dataclass(frozen=True)
class Lab:
    """lab.yaml, whole."""

    hosts: Mapping[str, Host] = field(default_factory=dict)
    queues: Mapping[str, Queue] = field(default_factory=lambda: {"default": Queue("default")})
    users: Mapping[str, UserLimits] = field(default_factory=dict)
    half_life: int = 7 * 86400  # s after which a GPU-second counts half in fair share
    engine_args: tuple[str, ...] = ()  # allowed beside the safe ones (session.check_engine_args)
    mounts: tuple[str, ...] = ()  # folders that may be mounted, with what is in them
    on_host_loss: str = "requeue"  # of jobs that say nothing themselves

    def ssh_name(self, host: str) -> str:
        """What a laptop's ssh may call it; empty where it can't be dialled."""
        found = self.host(host)
        return "" if found.reverse else found.ssh

    def host(self, name: str) -> Host:
        """As written, or the defaults: a host need not be listed to serve."""
        return self.hosts.get(name) or Host(name, name, (), _by_priority(self.queues))

    def limits_of(self, user: str) -> UserLimits:
        return self.users.get(user) or self.users.get(EVERYONE) or UserLimits()

    def priority(self, user: str, asked: int) -> int:
        """What a job's priority is worth among other users' jobs: whoever lowers it lets them pass; to pass them is for
        the lab to allow."""
        return min(asked, self.limits_of(user).max_priority)

    def refusal(self, user: str, queue: str, asked: Resources) -> str:
        """Why the lab's rules would never let `user` run this in `queue`; empty if they could."""
        if queue not in self.queues:
            return f"there is no queue {text.safe(queue)}{_nearest(queue, self.queues)}"
        rule, count = self.queues[queue], asked.request.count or 0
        if asked.time_limit > rule.max_time_limit > 0:
            return f"queue {queue} gives at most {text.duration(rule.max_time_limit)}"
        if count > rule.max_gpus_per_user > 0:
            return f"queue {queue} gives a user at most {text.count(rule.max_gpus_per_user, 'GPU')}"
        if count > self.limits_of(user).max_gpus > 0:
            return f"this lab gives {text.safe(user)} at most {text.count(self.limits_of(user).max_gpus, 'GPU')}"
        return ""


def _by_priority(queues: Mapping[str, Queue]) -> tuple[str, ...]:
    return tuple(sorted(queues, key=lambda name: -queues[name].priority))


def _nearest(word: str, known: Collection[str]) -> str:
    near = text.nearest(word, known)
    return f"; did you mean {near}?" if near else ""


# ---- reading -------------------------------------------------------------------------------------


def from_document(document: object, where: str = "lab.yaml", place: Place = lambda keys: "") -> Lab:
    """`document` is what a YAML parser returned for the file `where`. Raises Usage; `place` says where in the file the
    value of these keys is, as its words begin."""
    top = _Section(where, place, (), document)
    top.knows("hosts", "queues", "users", "fair_share", "allow", "on_host_loss")
    queues = {part.name: _queue(part) for part in top.part("queues").parts(text.is_name)} or Lab().queues
    fair, allow = top.part("fair_share"), top.part("allow")
    fair.knows("half_life")
    allow.knows("engine_args", "mounts")
    if fair.data.get("half_life") is not None and not fair.seconds("half_life"):
        raise fair.wrong("half_life", "must be more than 0")
    return Lab(
        hosts={part.name: _host(part, queues) for part in top.part("hosts").parts(resources.is_label)},
        queues=queues,
        users={part.name: _user(part) for part in top.part("users").parts(_is_user)},
        half_life=fair.seconds("half_life") or Lab.half_life,
        engine_args=allow.words("engine_args", lambda a: a.startswith("--") and a.isprintable(), "such as --ipc"),
        mounts=allow.words("mounts", _is_folder, "a folder's full path, without .. or a / at its end"),
        on_host_loss=top.one_of("on_host_loss", ON_HOST_LOSS),
    )


def _is_user(name: str) -> bool:
    return name == EVERYONE or resources.is_label(name) or (name[:1] == "_" and resources.is_label(name[1:]))


def _is_folder(path: str) -> bool:
    return path.startswith("/") and path.isprintable() and posixpath.normpath(path) == path


def _host(part: _Section, queues: Mapping[str, Queue]) -> Host:
    part.knows("ssh", "labels", "queues", "tunnel", "via")
    served = part.words("queues", lambda name: name in queues, "the queues are " + ", ".join(queues))
    if part.data.get("queues") is None:
        served = _by_priority(queues)
    via, reverse = part.text("via"), part.one_of("tunnel", TUNNELS) == "reverse"
    if (reverse and not via) or (via and not is_ssh_name(via)):
        raise part.wrong("via", "must name the host where its reverse tunnels end")
    ssh = part.text("ssh") or part.name
    if not is_ssh_name(ssh):
        raise part.wrong("ssh", "must be a name that ssh knows, or user@host")
    labels = part.words("labels", resources.is_label, "letters, digits, '.', '_' and '-'")
    return Host(part.name, ssh, labels, served, via, reverse)


def is_ssh_name(name: str) -> bool:
    """One word that ssh cannot take for an option."""
    return bool(name) and name[0] != "-" and name.isprintable() and not any(c in name for c in " '\"\\$`;&|<>")


def _queue(part: _Section) -> Queue:
    part.knows(*(f.name for f in fields(Queue) if f.name != "name"))
    default, most = part.seconds("time_limit"), part.seconds("max_time_limit")
    if default > most > 0:
        raise part.wrong("time_limit", "must not be above max_time_limit")
    return Queue(
        part.name,
        max_running=part.number("max_running"),
        max_running_per_user=part.number("max_running_per_user"),
        max_gpus_per_user=part.number("max_gpus_per_user"),
        time_limit=default,
        max_time_limit=most,
        priority=part.number("priority", least=-1000, most=1000),
        preemptible=part.flag("preemptible"),
        preempts=part.flag("preempts"),
    )


def _user(part: _Section) -> UserLimits:
    part.knows("max_running", "max_gpus", "max_priority")
    most = part.number("max_priority", most=1000)
    return UserLimits(part.number("max_running"), part.number("max_gpus"), most)


class _Section:
    """A mapping of the document, and its path in it; an empty section is one without keys."""

    def __init__(self, where: str, place: Place, path: tuple[object, ...], data: object) -> None:
        self.where, self.place, self.path, self.name = where, place, path, str(path[-1]) if path else ""
        if data is not None and not isinstance(data, dict):
            raise self._wrong(path, "must map names to values", "see conf/lab.yaml for an example")
        self.data: dict[Any, Any] = data or {}

    def wrong(self, key: object, problem: str) -> Usage:
        return self._wrong((*self.path, key), problem)

    def _wrong(self, path: tuple[object, ...], problem: str, hint: str = "") -> Usage:
        name = text.safe(".".join(map(str, path))) or "the file"
        return Usage(f"{self.where}: {self.place(path)}{name} {problem}", hint)

    def knows(self, *keys: str) -> None:
        for key in self.data:
            if key not in keys:
                raise self.wrong(key, "is unknown" + (_nearest(str(key), keys) or f"; there are: {', '.join(keys)}"))

    def part(self, key: str) -> _Section:
        return _Section(self.where, self.place, (*self.path, key), self.data.get(key))

    def parts(self, is_name: Callable[[str], bool]) -> list[_Section]:
        for key in self.data:
            if not isinstance(key, str) or not is_name(key):
                raise self.wrong(key, "can't be a name here; quote it if it is a number or a word of YAML's")
        return [_Section(self.where, self.place, (*self.path, key), value) for key, value in self.data.items()]

    def number(self, key: str, least: int = 1, most: int = 10**6) -> int:
        value = self.data.get(key)
        if value is None:
            return 0
        if type(value) is not int:
            raise self.wrong(key, "must be a number")
        if not least <= value <= most:
            none = "; leave it out for no limit" if value == 0 else ""
            raise self.wrong(key, f"must be a number from {least} to {most}{none}")
        return value

    def seconds(self, key: str) -> int:
        value = self.data.get(key)
        if value is None:
            return 0
        try:
            return resources.parse_duration(value)
        except Usage as error:
            raise self.wrong(key, f"must be a duration: {error.hint}") from None

    def text(self, key: str) -> str:
        value = self.data.get(key, "")
        if not isinstance(value, str):
            raise self.wrong(key, "must be text")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.data.get(key, allowed[0])
        if value not in allowed:
            raise self.wrong(key, f"must be one of: {', '.join(allowed)}")
        return str(value)

    def words(self, key: str, is_good: Callable[[str], bool], hint: str) -> tuple[str, ...]:
        values = self.data.get(key)
        if values is None:
            return ()
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise self.wrong(key, "must be a list of words, such as [a, b]")
        for value in values:
            if not is_good(value):
                raise self.wrong(key, f"can't have {text.safe(value)!r}: {hint}")
        if len(set(values)) != len(values):
            raise self.wrong(key, "has a word twice")
        return tuple(values)
