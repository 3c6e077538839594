"""Sessions, wherever they run: finding one, and what it takes to come to it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Callable, TypeVar

from mlbox import errors
from mlbox.client import output, ssh_config, state
from mlbox.client.hosts import ask_all, known_hosts, told, why
from mlbox.client.reach import Reach
from mlbox.client.remote import Host, connect, of_session
from mlbox.client.transports import LOCAL
from mlbox.core import ids, text

Json = dict[str, Any]
T = TypeVar("T")


def at_session(wanted: str, host: str, config: state.Config, act: Callable[[Host], T]) -> T:
    """Do `act` at the host where a session runs: the one named, the one remembered, or else the one that is found by
    asking all. What is remembered may be over, and another of that name run elsewhere. Raises NotFound."""
    place = _known_place(wanted, host, config)
    if place is not None:
        try:
            return act(place)
        except (errors.Ended, errors.Several):
            raise
        except (errors.NotFound, errors.Unreachable) as error:
            if host or set(known_hosts(config)) <= {place.name}:
                raise
            # Where it is remembered nobody answers: another of its name, elsewhere, is not meant.
            known = _called(wanted) if isinstance(error, errors.Unreachable) else []
            found = _elsewhere(known[0]["id"] if len(known) == 1 else wanted, place.name, config, error)
        return act(found)
    return act(ask_around(wanted, config))


def _elsewhere(wanted: str, known: str, config: state.Config, error: errors.MlboxError) -> Host:
    """Another host that has it. Where none says so, it stays with what is known: its host can't be reached."""
    try:
        found = ask_around(wanted, config)
    except errors.MlboxError:
        if isinstance(error, errors.Unreachable):
            raise error from None
        raise
    if found.name == known:  # it is reached, and what was to be done there was not
        raise error
    return found


def _called(wanted: str) -> list[Json]:
    """Those that this laptop remembers by that name or id; some may be over."""
    return [{**s, "id": id_} for id_, s in _remembered().items() if wanted and wanted in (id_, s["name"])]


def _known_place(wanted: str, host: str, config: state.Config) -> Host | None:
    matching = _called(wanted)
    if len(matching) == 1 and host in ("", matching[0]["host"]):
        return of_session(matching[0], config)
    if host:
        roots = {s.get("root", "") for s in matching if s["host"] == host}
        return _met(wanted, host, config) or connect(host, config, roots.pop() if len(roots) == 1 else "")
    if len({s["host"] for s in matching}) == 1:
        return connect(matching[0]["host"], config, matching[0].get("root", ""))
    return None


def _met(wanted: str, host: str, config: state.Config) -> Host | None:
    """The way to a session on a host that can't be dialled, as the hosts that can be tell. None where none of them says
    so of it. Raises NotFound."""
    known = known_hosts(config)
    if host in known or known == [LOCAL]:
        return None
    replies = ask_all(known, "sessions", {}, config)
    via = away(replies).get(host)
    if via is None:
        return None
    there = _meant([s for s in listed(replies) if s["host"] == host], wanted)
    if len(there) == 1:
        return of_session(there[0], config)
    if there:
        those = ", ".join(f"{text.safe(s['name'])} ({s['id']})" for s in there)
        raise errors.Several(f"{len(there)} sessions of yours run on {host}: {those}", "say which")
    what = f"no session {text.safe(wanted)!r}" if wanted else "no session of yours"
    raise errors.NotFound(f"{what} is running on {host}, which is met at {via}", "mlbox session list shows what runs")


def away(replies: Mapping[str, Json | errors.MlboxError]) -> dict[str, str]:
    """Hosts that can't be dialled -> the rendezvous of each."""
    told = [reply["met_at"] for reply in replies.values() if not isinstance(reply, errors.MlboxError)]
    return {host: via for met_at in told for host, via in met_at.items()}


def ask_around(wanted: str, config: state.Config) -> Host:
    """Raises NotFound, and where no host could be asked what the first of them failed with."""
    replies = ask_all(known_hosts(config), "sessions", {}, config)
    meant = _meant(listed(replies), wanted)
    there = {s["host"]: s for s in meant}
    failed = {name: reply for name, reply in replies.items() if isinstance(reply, errors.MlboxError)}
    if len(there) == 1:
        [(name, one)] = there.items()
        if others := [s for s in _called(wanted) if s["host"] in failed and s["id"] != one["id"]]:
            those = ", ".join(f"{s['host']} ({s['id']})" for s in others)
            raise errors.Several(
                f"{text.safe(wanted)} may be the one on {name} ({one['id']}), or on {those}, which was not reached",
                f"say which, by its id or with --host {name}",
            )
        return of_session(one, config)
    unasked = [f"not asked: {name} ({why(name, error)})" for name, error in failed.items()]
    if failed and len(failed) == len(replies):
        name, first = next(iter(failed.items()))
        raise type(first)(told(name, first), "\n".join([first.hint, *unasked[1:]]).strip())
    if there:
        those = ", ".join(f"{text.safe(s['name'])} on {s['host']} ({s['id']})" for s in meant)
        raise errors.Several(f"{len(meant)} sessions could be meant: {those}", "say which, by its id or with --host")
    if near := text.nearest(wanted, [s["name"] for s in listed(replies)]):
        unasked = [f"did you mean {near}?", *unasked]
    what = f"no session {text.safe(wanted)!r}" if wanted else "no session of yours"
    asked = ", ".join([*(name for name in replies if name not in failed), *sorted(away(replies))])
    hint = "mlbox session list shows what runs" if listed(replies) else "mlbox session HOST starts one"
    raise errors.NotFound(f"{what} is running on {asked}", "\n".join(unasked) or hint)


def elsewhere(session: str, than: str, config: state.Config, lab: str = "") -> Host:
    """The host where a session of one's own runs that may be on `than` no more, as the lab's other hosts tell. `lab`:
    as in reveal. Raises Ended where they tell that, and NotFound. A colleague's door may offer any id: what is found
    there is none's own."""
    replies = ask_all([name for name in known_hosts(config) if name != than], "sessions", {}, config)
    for one in (one for name, reply in replies.items() for one in listed({name: reply})):
        if one["id"] == session and not one.get("owner"):
            return of_session(one, config)
    for name, reply in replies.items():
        if not isinstance(reply, errors.MlboxError):
            with contextlib.suppress(errors.HostUnready, errors.Unreachable):  # it is of no lab, or away by now
                connect(name, config).call(
                    "sessions", {"session": session, "lab": lab}
                )  # the log tells all that it is over
                break
    raise errors.NotFound(f"no other host of the lab runs session {session}", "mlbox session list shows what runs")


def listed(replies: dict[str, Json | errors.MlboxError]) -> list[Json]:
    """Sessions with their hosts as this laptop calls them. Those on hosts that can't be asked are told by each of the
    others, and listed once."""
    found: dict[str, Json] = {}
    for name, reply in replies.items():
        for session in [] if isinstance(reply, errors.MlboxError) else reply["sessions"]:
            found.setdefault(session["id"], session if "via" in session else {**session, "host": name})
    return list(found.values())


def _meant(those: list[Json], wanted: str) -> list[Json]:
    """By name, id, or the beginning or end of an id, as a host has it. A colleague's is meant only where it is said
    which; OWNER/ before it says whose."""
    owner, _, name = wanted.rpartition("/")
    if not name:
        return [] if owner else [one for one in those if "owner" not in one]
    those = [one for one in those if owner in ("", one.get("owner"))]
    exact = [one for one in those if name in (one["id"], one["name"])]
    return exact or [one for one in those if ids.is_part(name, one["id"])]


def _remembered() -> dict[str, Json]:
    """Sessions started from this laptop: id -> its name, host and root there."""
    return state.load("sessions.json")


def remembered(wanted: str, host: str) -> tuple[str, str]:
    """The host and the id of the last session of that name that this laptop knows (on `host`, if one is named); empty
    texts without one. An id means something after a session's end, a name does not."""
    named = [(s["host"], id_) for id_, s in _remembered().items() if wanted and s["name"] == wanted]
    return next((pair for pair in sorted(named, key=lambda p: p[1], reverse=True) if host in ("", pair[0])), ("", ""))


def reveal(host: Host, wanted: str, lab: str = "") -> Json:
    """What it takes to reach it; this laptop's keys are let in from now on. Raises Ended where it was on
    record in `lab` (Reach.lab) and is there no more."""
    keys = list(host.transport.public_keys())
    reply = host.call("sessions", {"session": wanted, "reveal": True, "authorized_keys": keys, "lab": lab})
    session = dict(reply["session"])
    _check_owner(host, session)
    return session


def _check_owner(host: Host, session: Json) -> None:
    """An id is one person's session for ever, and any user's door can offer it: what this laptop knew for one's own or
    for a colleague's is not taken from another. Raises Refused."""
    known, now = _remembered().get(session["id"]), session.get("owner", "")
    if known is None or not now:
        return
    before = known.get("owner", "")
    if before != now and (before or known["host"] == host.name):
        was = f"{before}'s" if before else "yours"
        raise errors.Refused(
            f"session {session['id']} was {was}, and now {now} offers one by its id",
            "it has ended, or is not shared any more; ask its owner",
        )


def reach(host: Host, session: Json) -> Reach:
    return Reach.of(session, host.name, host.root)


def enter(host: Host, session: Json) -> None:
    """It runs there: remembered, and known to ssh by its name from now on."""
    name, owner = session["name"], session.get("owner", "")
    state.remember_session(session["id"], name, host.name, host.root, host.via, owner)
    # By the rendezvous, where nothing else leads.
    services = reach(host, session).services if host.via else session["services"]
    facts = services.get("ssh")
    way = host.transport.way(facts["socket"]) if facts else None
    if facts is None or way is None:
        return
    place = {**way, "root": host.root, "moves": bool(session.get("queued"))}
    keys, agent = host.transport.identity_files(), host.transport.agent()
    known = ssh_config.enter(session["id"], name, facts, place, keys, agent, owner)
    if known != (f"mlbox-{name}" if owner else name):
        other = [id_ for id_, aliases in ssh_config.names().items() if name in aliases and id_ != session["id"]]
        what = f"another session ({other[0]})" if other else "something else"
        output.warn(f"{name} means {what} to ssh here already; the session is {known}")


def word_for(session: str, name: str) -> str:
    """What a person may call it: its id, where another one that ssh knows here has its name."""
    others = (id_ for id_ in ssh_config.names() if id_ != session)
    return session if any(ssh_config.place(id_).get("name") == name for id_ in others) else name


def summary(session: Json) -> str:
    parts = [text.count(len(session["gpus"]), "GPU"), text.safe(session["image"]) or "no container"]
    if session["since"]:
        parts.append(f"{session['state']} {text.duration(time.time() - session['since'])} ago")
    return ", ".join(parts)


def public(session: Json) -> Json:
    """Facts for --json; the URLs carry their tokens, nothing else does."""
    keys = ("id", "name", "gpus", "image", "runtime", "absent", "ends")
    return {key: session[key] for key in keys if key in session}


def logs(host: Host, wanted: str) -> str:
    """The ends of its services' logs, other people's escapes made harmless."""
    reply = host.call("sessions", {"session": wanted, "logs": True})
    return "\n".join(f"--- {text.safe(name)}\n{text.safe(content)}" for name, content in reply["logs"].items())
