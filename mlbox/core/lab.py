"""lab.yaml, checked: hosts, queues, limits, allow-lists. People edit it, so each error names its key.

    from_document(document, where)   what a YAML parser made of the file, to a Lab; raises Usage

Absent limits are none (written as 0 here). Everything has a default: an empty file is a lab with one
queue, `default`, that every host serves.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from mlbox.core import resources, text
from mlbox.core.resources import Resources
from mlbox.core.section import Place, Section, nearest
from mlbox.core.session import TUNNELS

ON_HOST_LOSS = ("requeue", "hold")
EVERYONE = "*"
OUTPUT_LIMIT = 1024  # MiB, where neither the job nor lab.yaml says anything


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
    output_limit: int = 0  # MiB of output kept of an attempt, for jobs that name none
    max_output_limit: int = 0  # MiB
    priority: int = 0  # orders the queues of a host that lists none; who may preempt whom
    preemptible: bool = False
    preempts: bool = False

    def time_limit_for(self, asked: int) -> int:
        """Seconds that a job gets which asks for `asked` (0: for none in particular); 0 is endless."""
        limit = asked or self.time_limit
        if not self.max_time_limit:
            return limit
        return min(limit or self.max_time_limit, self.max_time_limit)

    def output_limit_for(self, asked: int) -> int:
        """MiB of output that are kept of a job's attempt which asks for `asked` (0: for none in particular)."""
        limit = asked or self.output_limit or OUTPUT_LIMIT
        return min(limit, self.max_output_limit or limit)


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

    def own_name(self, called: str) -> str:
        """A host's own, also by ssh's name for it; as it is where none is called so, or several."""
        own = [name for name, host in self.hosts.items() if host.ssh == called]
        return own[0] if len(own) == 1 and called not in self.hosts else called

    def host(self, name: str) -> Host:
        """As written, or the defaults: a host need not be listed to serve."""
        return self.hosts.get(name) or Host(name, name, (), _by_priority(self.queues))

    def limits_of(self, user: str) -> UserLimits:
        return self.users.get(user) or self.users.get(EVERYONE) or UserLimits()

    def priority(self, user: str, asked: int) -> int:
        """What a job's priority is worth among other users' jobs: whoever lowers it lets them pass; to pass them is for
        the lab to allow."""
        return min(asked, self.limits_of(user).max_priority)

    def output_limit(self, queue: str, asked: int) -> int:
        """MiB; also of a queue that was taken out of lab.yaml just now."""
        return self.queues.get(queue, Queue(queue)).output_limit_for(asked)

    def refusal(self, user: str, queue: str, asked: Resources, output_limit: int = 0) -> str:
        """Why the lab's rules would never let `user` run this in `queue`; empty if they could. `output_limit`: MiB, as
        asked for, or 0."""
        if queue not in self.queues:
            return f"there is no queue {text.safe(queue)}{nearest(queue, self.queues)}"
        rule, count = self.queues[queue], asked.request.count or 0
        if asked.time_limit > rule.max_time_limit > 0:
            return f"queue {queue} gives at most {text.duration(rule.max_time_limit)}"
        if output_limit > rule.max_output_limit > 0:
            return f"queue {queue} keeps at most {text.mebibytes(rule.max_output_limit)} of output"
        if count > rule.max_gpus_per_user > 0:
            return f"queue {queue} gives a user at most {text.count(rule.max_gpus_per_user, 'GPU')}"
        if count > self.limits_of(user).max_gpus > 0:
            return f"this lab gives {text.safe(user)} at most {text.count(self.limits_of(user).max_gpus, 'GPU')}"
        return ""


def _by_priority(queues: Mapping[str, Queue]) -> tuple[str, ...]:
    return tuple(sorted(queues, key=lambda name: -queues[name].priority))


# ---- reading -------------------------------------------------------------------------------------


def from_document(document: object, where: str = "lab.yaml", place: Place = lambda keys: "") -> Lab:
    """`document` is what a YAML parser returned for the file `where`. Raises Usage; `place` says where in the file the
    value of these keys is, as its words begin."""
    top = Section(where, place, (), document)
    top.knows("hosts", "queues", "users", "fair_share", "allow", "on_host_loss", "output_limit", "max_output_limit")
    output = _output(top, 0, 0)
    listed = top.part("queues").parts(text.is_name) or [Section(where, place, ("queues", "default"), None)]
    queues = {part.name: _queue(part, *output) for part in listed}
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


def _host(part: Section, queues: Mapping[str, Queue]) -> Host:
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


def _output(part: Section, default: int, most: int) -> tuple[int, int]:
    """Output's limits as this part of the file has them, or else as given."""
    own, most = part.mebibytes("output_limit"), part.mebibytes("max_output_limit") or most
    if own > most > 0:
        raise part.wrong("output_limit", "must not be above max_output_limit")
    return own or default, most


def _queue(part: Section, output: int, max_output: int) -> Queue:
    """`output`, `max_output`: the whole lab's."""
    part.knows(*(f.name for f in fields(Queue) if f.name != "name"))
    default, most = part.seconds("time_limit"), part.seconds("max_time_limit")
    if default > most > 0:
        raise part.wrong("time_limit", "must not be above max_time_limit")
    output, max_output = _output(part, output, max_output)
    return Queue(
        part.name,
        max_running=part.number("max_running"),
        max_running_per_user=part.number("max_running_per_user"),
        max_gpus_per_user=part.number("max_gpus_per_user"),
        time_limit=default,
        max_time_limit=most,
        output_limit=output,
        max_output_limit=max_output,
        priority=part.number("priority", least=-1000, most=1000),
        preemptible=part.flag("preemptible"),
        preempts=part.flag("preempts"),
    )


def _user(part: Section) -> UserLimits:
    part.knows("max_running", "max_gpus", "max_priority")
    most = part.number("max_priority", most=1000)
    return UserLimits(part.number("max_running"), part.number("max_gpus"), most)
