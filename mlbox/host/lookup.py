"""Finding a job by what a person types: its id, a beginning or an end of it, or its name; of an array `NAME[2]`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from mlbox import errors
from mlbox.core import ids, text
from mlbox.host import archive, ready, store, view
from mlbox.host.job import Job

_LEAST = 3  # letters of an id that may stand for it
_ELEMENT = re.compile(r"(.+)[\[_]([0-9]{1,5})\]?")  # `sweep[2]`, as it is shown; `sweep_2`, which no shell reads
_RECENT = 300  # ended jobs, and waiting ones per queue, that a name or a part of an id is looked for in


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
    matching = _matching(found, wanted)
    own = {id_: made for id_, made in matching.items() if made.owner == found.user}
    matching = _meant(found, own or matching, wanted, whole)
    if not matching:
        raise errors.NotFound(f"there is no job {text.safe(wanted)!r}", "mlbox jobs --all shows what there is")
    if len(matching) > 1:
        raise errors.NotFound(f"{len(matching)} jobs are called {text.safe(wanted)!r}", _instead(matching))
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


def _matching(found: store.Store, wanted: str) -> dict[str, Job]:
    if element := _ELEMENT.fullmatch(wanted):
        name = element[1].upper() if ids.is_ulid(element[1].upper()) else element[1]
        return _elements(found, name, int(element[2]))
    users = view.known_users(found)
    known = ((id_, made) for user in users for id_, made in _known(found, user))
    return {id_: made for id_, made in known if _is(made, id_, wanted) and made.is_there()}


def _elements(found: store.Store, name: str, index: int) -> dict[str, Job]:
    """One of each array of that name, or that id, from its first job on: of a long one few are looked through."""
    specs = ((made.owner, made.shown()) for made in _matching(found, name).values())
    firsts = {(spec.array, owner) for owner, spec in specs if spec.array and name in (spec.name, spec.array)}
    those = (found.job(ids.following(first, index), owner) for first, owner in firsts)
    return {made.id: made for made in those if made.is_there()}


def array(found: store.Store, name: str) -> list[Job]:
    """What has not ended of this user's one array of that name; empty where there is none, or another job too."""
    if ids.is_ulid(name.upper()):
        return []
    living = [made for made in _matching(found, name).values() if made.owner == found.user and made.state().live]
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
    """One of this user's that has this name, and runs or waits."""
    running = (run.id for run in view.running_of(found, found.user))
    places = ((queue, p) for queue in ready.queues(found, found.user) for p in ready.places(found, found.user, queue))
    waiting = (job.id for queue, place in places if (job := ready.at(found, found.user, queue, place)))
    known = (found.job(id_) for id_ in chain(running, waiting))
    return next((made for made in known if made.shown().name == name and made.state().live), None)


def _known(found: store.Store, user: str) -> Iterator[tuple[str, Job]]:
    seen = [run.id for run in view.running_of(found, user)]
    seen += [job.id for queue in ready.queues(found, user) for job in ready.heads(found, user, queue, _RECENT)]
    ended = archive.latest(found, user, _RECENT, lambda id_: found.job(id_, user).is_there())
    seen += [str(row["id"]) for row in ended]
    yield from ((id_, found.job(id_, user)) for id_ in dict.fromkeys(seen) if ids.is_ulid(id_))


def _is(made: Job, id_: str, wanted: str) -> bool:
    if len(wanted) >= _LEAST and (id_.startswith(wanted.upper()) or id_.endswith(wanted.upper())):
        return True
    try:
        return made.spec().name == wanted
    except errors.NotFound:
        return False


def mine(found: store.Store, wanted: str) -> Job:
    """One that this user may change."""
    made = job(found, wanted)
    if made.owner != found.user:
        raise errors.Refused(f"job {made.id} is {text.safe(made.owner)}'s", "only its owner can do that")
    return made
