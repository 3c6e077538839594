"""Finding a job by what a person types: its id, a beginning or an end of it, or its name; of an array `NAME[2]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from mlbox import errors
from mlbox.core import ids, text
from mlbox.host import archive, ready, store, view
from mlbox.host.job import Job

_ELEMENT = re.compile(r"(.+)[\[_]([0-9]{1,5})\]?")  # `sweep[2]`, as it is shown; `sweep_2`, which no shell reads
_RECENT = 300  # ended jobs that a name or a part of an id is looked for in
_OPENED = 3000  # of a user's, whose names are read; of an array's folder in the line one stands for all
_FEW = 20  # of these, which are looked at when they are meant


def job(found: store.Store, wanted: str, whole: bool = False) -> Job:
    """`whole`: an array that is called by its name is meant as one, and stood for by its first job. Raises NotFound
    where there is none, or more than one."""
    wanted = wanted.strip()
    users = list(view.known_users(found))
    if ids.is_ulid(wanted.upper()):
        for user in (found.user, *users):
            made = found.job(wanted.upper(), user)
            if made.is_there():
                return made
        raise absent(found, wanted.upper())
    others = [user for user in users if user != found.user]
    matching = _matching(found, wanted, [found.user]) or _matching(found, wanted, others)
    matching = _meant(found, matching, wanted, whole)
    if not matching:
        raise errors.NotFound(f"there is no job {text.safe(wanted)!r}", _where(found))
    if len(matching) > 1:
        raise errors.NotFound(f"several jobs are called {text.safe(wanted)!r}", _instead(matching))
    return next(iter(matching.values()))


def _meant(found: store.Store, matching: dict[str, Job], wanted: str, whole: bool) -> dict[str, Job]:
    """Where a name is used again: those that have not ended; else the newest, but of an array none before others."""
    if len(matching) < (1 if whole else 2):
        return matching
    living = {id_: made for id_, made in matching.items() if made.state().live}
    if whole:
        living, matching = _firsts(found, living, wanted), _firsts(found, matching, wanted)
    newest = max(matching)
    spec = matching[newest].shown()
    meant = is_element(wanted) or (spec.name == wanted and (whole or not spec.array))
    return living or ({newest: matching[newest]} if meant else matching)


def _where(found: store.Store) -> str:
    """To look for one that was not found."""
    if sum(1 for _ in _known(found, found.user)) > _OPENED:
        return f"by its id: so many wait that only the first {_OPENED} were looked at by name"
    return "mlbox jobs --all shows what there is"


def _instead(matching: dict[str, Job]) -> str:
    """By what one of these is called alone."""
    newest = sorted(matching)[-3:]
    titles = [matching[id_].shown().title for id_ in newest]
    if len({matching[id_].shown().array for id_ in matching} - {""}) == 1 and all("[" in title for title in titles):
        return "one of them: " + ", ".join(titles)
    return "by id: " + ", ".join(newest)


def _firsts(found: store.Store, those: dict[str, Job], wanted: str) -> dict[str, Job]:
    """With one for all of an array that is called so."""
    specs = ((made, made.shown()) for made in those.values())
    firsts = (found.job(spec.array, made.owner) if spec.array and spec.name == wanted else made for made, spec in specs)
    return {first.id: first for first in firsts}


def is_element(wanted: str) -> bool:
    """Whether one job of an array is called so, and not the array: its first one has the array's id."""
    return _ELEMENT.fullmatch(wanted) is not None


def absent(found: store.Store, id_: str) -> errors.NotFound:
    return errors.NotFound(f"there is no job {id_} in {found.root}", "mlbox jobs --all shows what there is")


def _matching(found: store.Store, wanted: str, users: Iterable[str]) -> dict[str, Job]:
    if element := _ELEMENT.fullmatch(wanted):
        name = element[1].upper() if ids.is_ulid(element[1].upper()) else element[1]
        return _elements(found, name, int(element[2]), users)
    matching: dict[str, Job] = {}
    for user in users:
        for number, those in enumerate(_known(found, user)):
            named = number < _OPENED and wanted and found.job(those[0], user).name() == wanted
            meant = [id_ for id_ in those if ids.is_part(wanted, id_)] + (those[:_FEW] if named else [])
            matching.update((id_, found.job(id_, user)) for id_ in meant)
    return {id_: made for id_, made in matching.items() if made.is_there()}


def _elements(found: store.Store, name: str, index: int, users: Iterable[str]) -> dict[str, Job]:
    """One of each array of that name, or that id, from its first job on: of a long one few are looked through."""
    specs = ((made.owner, made.shown()) for made in _matching(found, name, users).values())
    firsts = {(spec.array, owner) for owner, spec in specs if spec.array and name in (spec.name, spec.array)}
    those = (found.job(ids.following(first, index), owner) for first, owner in firsts)
    return {made.id: made for made in those if made.is_there()}


def array(found: store.Store, name: str) -> list[Job]:
    """What has not ended of this user's one array of that name; empty where there is none, or another job too."""
    if ids.is_ulid(name.upper()):
        return []
    living = [made for made in _matching(found, name, [found.user]).values() if made.state().live]
    firsts = {made.spec().array if made.spec().name == name else "" for made in living}
    if len(firsts) != 1 or firsts == {""}:
        return []
    return [made for made in of_array(found, found.job(firsts.pop())) if made.state().live]


def of_array(found: store.Store, first: Job) -> Iterator[Job]:
    """All of it, by counting on from its first job."""
    made = first
    while made.folder.exists():
        yield made
        made = found.job(ids.following(made.id), first.owner)


def living(found: store.Store, name: str) -> Job | None:
    """One of this user's that has this name, and runs or waits; of however many."""
    called = (those for those in chain(*_at_work(found, found.user)) if found.job(those[0]).name() == name)
    return next((made for those in called for made in map(found.job, those) if made.state().live), None)


def _at_work(found: store.Store, user: str) -> tuple[Iterator[list[str]], Iterator[list[str]]]:
    """What runs, and what waits; those that stand together as one."""
    running = ([run.id] for run in view.running_of(found, user))
    queues = ready.queues(found, user)
    return running, chain.from_iterable(ready.together(found, user, queue) for queue in queues)


def _known(found: store.Store, user: str) -> Iterator[list[str]]:
    """What waits last: of that there may be very much."""
    running, waiting = _at_work(found, user)
    ended = archive.latest(found, user, _RECENT, lambda line: found.job(line["id"], user).is_there())
    return chain(running, ([row["id"]] for row in ended), waiting)


def mine(found: store.Store, wanted: str) -> Job:
    """One that this user may change."""
    made = job(found, wanted)
    if made.owner != found.user:
        raise errors.Refused(f"job {made.id} is {text.safe(made.owner)}'s", "only its owner can do that")
    return made
