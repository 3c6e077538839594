"""This user's live sessions on this host, and those that colleagues share with this user; with `reveal`, what it takes
to reach one (tokens, sockets)."""

from __future__ import annotations

import os
from typing import Any

from mlbox import errors
from mlbox.core import ids, text
from mlbox.core.session import Spec
from mlbox.host import colleague, door, files, here, lab, peer, store, view
from mlbox.host.job import Job
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    live = [job for job in sweep(found) if is_session(job)]
    wanted = call.args.get("session")
    if wanted is None:
        listed = [*map(describe, live), *out_of_reach(found), *door.visible()]
        return {"host": found.host, "sessions": listed, "met_at": _met_at(found)}
    try:
        picked = door.found_or(lambda: pick(live, str(wanted), found), str(wanted))
    except errors.NotFound:
        if call.root is not None and not (found.root / "users").exists():
            lab.identify(found.root)  # one that is not there (yet) tells of no session that it is over
        if call.args.get("lab") and _is_gone(found, str(wanted), str(call.args["lab"])):
            raise errors.Ended("the session has ended, and what it left was removed") from None
        raise
    if not isinstance(picked, Job):
        return door.answer(*picked, call.args)
    job = picked
    reply: Json = {"host": found.host, "session": describe(job)}
    if call.args.get("logs"):
        reply["logs"] = files.tails(job.logs)
    if call.args.get("reveal"):
        reach = files.read_json(job.conf / "session.json")
        if not isinstance(reach, dict):
            raise errors.NotFound(f"session {describe(job)['name']} is still starting", "again in a moment")
        _let_in(job, [str(key) for key in call.args.get("authorized_keys", [])])
        reply["session"].update(reach)
        if reply["session"]["queued"]:
            reply["session"]["lab"] = _place(found)
    return reply


def _place(found: store.Store) -> str:
    """Where this user's jobs are: which ROOT, and by what name there."""
    return f"{lab.identify(found.root)}/{found.user}"


def _is_gone(found: store.Store, session: str, place: str) -> bool:
    """Of what was in that place this very one has nothing any more: what has ended can be pruned."""
    if not ids.is_ulid(session) or _place(found) != place:
        return False
    try:
        os.stat(found.job(session).folder / "spec.json")
    except FileNotFoundError:
        return True
    except OSError:  # closed, or away: that is no end
        return False
    return False


def is_session(job: Job) -> bool:
    """A damaged one counts as a session: it is shown, and can be ended."""
    try:
        return job.spec().session
    except errors.NotFound:
        return True


def _met_at(found: store.Store) -> dict[str, str]:
    """The lab's other hosts that can't be dialled -> the rendezvous of each."""
    if not (found.root / "mlbox.json").exists():
        return {}
    return {n: host.via for n, host in lab.rules(found).lab.hosts.items() if host.reverse and n != found.host}


def out_of_reach(found: store.Store) -> list[Json]:
    """This user's sessions on hosts that can't be asked themselves, as their logs tell, with where to meet them."""
    made = [(found.job(id_), via) for name, via in _met_at(found).items() for id_ in _live(found, name)]
    return [{**describe(job), "via": via, "trouble": _tunnel_trouble(job)} for job, via in made if is_session(job)]


def _live(found: store.Store, host: str) -> list[str]:
    names = [name for name in view.names(found.on(host) / "live") if ids.is_ulid(name)]
    return [name for name in names if not found.is_fenced(found.job(name), host)]


def _tunnel_trouble(job: Job) -> Json:
    told = files.read_json(job.attempt(1) / "tunnel.json")
    return {} if not isinstance(told, dict) or told.get("up") else {"tunnel": str(told.get("why"))}


def _let_in(job: Job, keys: list[str]) -> None:
    """Its owner comes from another laptop: that one's keys open the session too."""
    path = job.conf / "authorized_keys"
    content = files.content(path)
    if content is None:
        return
    known = content.decode(errors="replace").splitlines()
    new = [key for key in keys if key not in known and "\n" not in key]
    if new:
        files.write_whole(path, "".join(f"{key}\n" for key in [*known, *new]).encode())


def pick_own(live: list[Job], wanted: str, found: store.Store) -> Job:
    """For what only its owner can do. Raises Refused where it is a colleague's."""
    picked = door.found_or(lambda: pick(live, wanted, found), wanted)
    if isinstance(picked, Job):
        return picked
    shared = picked[1]
    raise errors.Refused(f"{shared['name']} is {shared['owner']}'s session", "only its owner can do that")


def describe(job: Job) -> Json:
    """Facts without secrets; `trouble` names services that have ended since."""
    state = job.state()
    try:
        spec = job.spec().work
    except errors.MlboxError:  # damaged: shown all the same, and by its id it can be ended
        spec = Spec(name=job.id.lower())
    return {
        "id": job.id, "name": spec.name, "state": state.name, "host": state.facts.get("host", ""),
        "gpus": list(state.facts.get("gpus", ())), "image": spec.image,
        "runtime": state.facts.get("runtime", spec.runtime),
        "trouble": files.read_json(job.conf / "trouble.json") or {}, "since": state.facts.get("at", 0),
        "ends": state.facts.get("ends", 0),
        "user": here.user_name(), "queued": "queue" in state.facts,
        "shared": sorted(peer.name(person.uid) for person in colleague.recorded(job)),
    }  # fmt: skip


def pick(live: list[Job], wanted: str, store_: store.Store) -> Job:
    """By name, id, or the beginning or end of an id; no text at all means the only one."""
    if ids.is_ulid(wanted):
        ended = store_.job(wanted).state()
        if ended.name and not ended.live:
            raise errors.Ended(f"the session has ended: {ended.facts.get('why', ended.name)}")
        if ended.waiting:
            raise errors.NotFound("the session waits in line", f"mlbox show {wanted} says why")
    named = {job: describe(job)["name"] for job in live}
    found = [job for job in live if wanted in ("", job.id, named[job])]
    found = found or [job for job in live if ids.is_part(wanted, job.id)]
    names = ", ".join(named.values())
    if not found:
        hint = f"running here: {names}" if names else "mlbox session list shows what runs"
        which = f"no session {text.safe(wanted)!r} of yours, or shared with you," if wanted else "no session of yours"
        raise errors.NotFound(f"{which} is running on {here.host_name()}", hint)
    if len(found) > 1:
        those = ", ".join(f"{named[job]} ({job.id})" for job in found)
        raise errors.Several(f"{len(found)} sessions of yours are running on {here.host_name()}: {those}", "say which")
    return found[0]
