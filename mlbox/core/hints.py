"""A job as schedulers see it: where it stands in line, or what it holds. From its log, or from anybody's hint of it.

Hints are other users' files: their content is believed only so far as no job is harmed by a false one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from mlbox.core import ids, shape, text
from mlbox.core.job import MOST_IN_ARRAY, PRIORITIES, JobSpec, check_dependencies, dependencies
from mlbox.core.log import State, moment, number
from mlbox.core.resources import Resources
from mlbox.core.schedule import Running, Waiting
from mlbox.errors import Usage

Json = dict[str, Any]
_MOST_RANK = 499_999  # as the names of ready hints hold it (host/ready.py)
_KINDS = ("job", "session")
_MOST_AMOUNT, _MOST_TIME = 2**31, 1e12


def waiting(job: str, owner: str, spec: JobSpec, state: State) -> Waiting:
    """Where a job stands in line: as it was submitted, and moved since."""
    facts = state.facts
    return Waiting(
        job, owner, str(facts.get("queue", spec.queue)), spec.resources, number(facts.get("priority", spec.priority)),
        number(facts.get("rank", 0)), spec.after, spec.array, spec.array_limit, moment(facts.get("not_before")),
        "session" if spec.session else "job", state.moves,
    )  # fmt: skip


def waiting_to_wire(found: Waiting) -> Json:
    return {**asdict(found), "after": [one.to_wire() for one in found.after]}


def waiting_from_wire(job: str, owner: str, data: Mapping[str, Any]) -> Waiting:
    """A ready hint of anybody's. The file's name and owner say whose job it is, never its content. Raises Usage."""
    kept = {f.name: data[f.name] for f in fields(Waiting) if f.name in data}
    defaults = Waiting(job, owner)
    for name, value in kept.items():
        if name not in ("resources", "after") and type(value) is not type(getattr(defaults, name)):
            raise Usage(f"a waiting job's {name} is of the wrong type")
    kept["resources"] = Resources.from_wire(shape.mapping("resources", data.get("resources", {})))
    kept["after"] = dependencies(data.get("after", []))
    made = Waiting(**{**kept, "id": job, "owner": owner})
    check_dependencies(made.after)
    good = (
        made.priority in PRIORITIES and -_MOST_RANK <= made.rank <= _MOST_RANK and text.is_name(made.queue)
        and 0 <= made.array_limit <= MOST_IN_ARRAY and math.isfinite(made.not_before) and made.kind in _KINDS
        and (not made.array or ids.is_ulid(made.array))
    )  # fmt: skip
    if not good:
        raise Usage("a waiting job's place is beyond what can be asked for")
    return made


def running_from_wire(job: str, owner: str, host: str, data: Mapping[str, Any]) -> Running:
    """A live hint of anybody's, with the same caution. Raises Usage."""
    defaults = Running(job, owner, host)
    kept = {f.name: data[f.name] for f in fields(Running) if f.name in data}
    for name, value in kept.items():
        wanted = (int, float) if name == "started" else type(getattr(defaults, name))
        if name != "gpus" and not isinstance(value, wanted):
            raise Usage(f"a running job's {name} is of the wrong type")
    kept["gpus"] = tuple(str(uuid) for uuid in shape.sequence("gpus", data.get("gpus", [])))
    made = Running(**{**kept, "id": job, "owner": owner, "host": host})
    amounts = (made.share, made.cpus, made.memory, made.time_limit)
    # Whoever says to hold less than nothing would make room for two; a time beyond all bounds breaks sums.
    if not all(0 <= amount <= _MOST_AMOUNT for amount in amounts) or not -_MOST_TIME < made.started < _MOST_TIME:
        raise Usage("a running job holds what no job can")
    if made.priority not in PRIORITIES or made.kind not in _KINDS:
        raise Usage("a running job is where no job can be")
    if made.queue and not text.is_name(made.queue):  # a session that was started on its host is in none
        raise Usage("a running job is where no job can be")
    return made
