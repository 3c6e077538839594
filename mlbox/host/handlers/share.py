"""Let a colleague join a session, or take that back: who is at its door does it, at once (host/sharing.py). That is its
keeper; of a session on a host that can't be dialled it is its tunnel's end here, at the rendezvous, by which colleagues
come.

With `keys` it is the tunnel's end that asks, on the session's own host: these of colleagues' open its sshd.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mlbox import errors
from mlbox.core import sharing, text
from mlbox.host import behind, colleague, files, here, keeping, lab, peer, store
from mlbox.host.handlers import relay
from mlbox.host.handlers.logs import pause
from mlbox.host.handlers.sessions import describe, is_session, out_of_reach, pick, pick_own
from mlbox.host.job import Job
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]
_PATIENCE = 20.0  # s
_TRIES = 50  # pauses that a keeper which has just taken over gets to listen


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    wanted, user, lets = str(call.args.get("session", "")), str(call.args.get("user", "")), bool(call.args.get("lets"))
    live = [job for job in sweep(found) if is_session(job)]
    if "keys" in call.args:
        return _take_keys(pick(live, wanted, found), call.args["keys"])
    far = wanted in [session["id"] for session in out_of_reach(found)]
    job = found.job(wanted) if far else pick_own(live, wanted, found)
    name = describe(job)["name"]
    uid = _uid(user, lets)
    _check(found, job, name, far)
    if far and lets:
        relay.connect(found, job).close()  # waits for a tunnel that is being dialled; to take something back needs none
    if found.dry:
        reply, session = _foreseen(job, name, uid, lets, far)
    else:
        word = {"op": "share" if lets else "unshare", "uid": uid}
        reply, session = (_tell_far(found, job, name, word) if far else _tell(job, name, word)), describe(job)
    return {
        "host": found.host, "session": session, "user": peer.name(uid), "changed": bool(reply.get("changed")),
        "ended": int(reply.get("ended", 0)), "trouble": str(reply.get("trouble", "")),
    }  # fmt: skip


def _uid(user: str, lets: bool) -> int:
    """Refused, not NotFound, which would mean the session."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        if lets or not user.isdigit():
            message = f"there is no user {text.safe(user)!r} on {here.host_name()}"
            raise errors.Refused(message, "write the name that your colleague logs in with there") from None
        uid = int(user)  # of somebody who has no account any more
    if uid == os.getuid():
        raise errors.Refused(f"{text.safe(user)} is you", "it is yours already")
    return uid


def _take_keys(job: Job, given: object) -> Json:
    reach = files.read_json(job.conf / "session.json")
    if not isinstance(reach, dict):
        raise errors.HostUnready(f"session {describe(job)['name']} is still starting", "again in a moment")
    behind.put_keys(job.conf / behind.VIA_KEYS, sharing.keys(given if isinstance(given, list) else [], colleague.MOST))
    return {"session": reach}


def _check(found: store.Store, job: Job, name: str, far: bool) -> None:
    state, reach = job.state(), files.read_json(job.conf / "session.json")
    if not far and isinstance(reach, dict) and "via" in reach and lab.rules(found).lab.host(found.host).reverse:
        via = text.safe(reach["via"]["via"])
        hint = "tell it by mlbox on a laptop; one that is as new asks there"
        raise errors.Refused(f"colleagues come to {name} by {via}, which lets them in", hint)
    if state.live and state.name != "started" if far else not isinstance(reach, dict):
        raise errors.NotFound(f"session {name} is still starting", "again in a moment")
    if not peer.known():
        raise errors.Refused(
            f"{name} can't be shared: {here.host_name()} does not tell who connects to a socket", "Linux does"
        )


def _tell_far(found: store.Store, job: Job, name: str, word: Json) -> Json:
    try:
        if word["op"] == "share":
            return _tell(job, name, word, lambda: job.state().live)
        for _ in range(_TRIES):
            with suppress(errors.HostUnready):
                return _tell(job, name, word, lambda: False)
            lock = keeping.taken(job.door_lock)
            if lock >= 0:  # nobody is at its door, or can come there meanwhile
                try:
                    return _take_out(job, word["uid"])
                finally:
                    os.close(lock)
            pause()
        raise _deaf(name)
    except errors.HostUnready as error:
        host = job.state().facts.get("host", "")
        again = f"mlbox host add {host} --via {found.host}"
        hint = f"its tunnel's end does not see {found.root}, or is an older mlbox's ({again} renews it)"
        raise errors.HostUnready(error.message, hint) from None


def _take_out(job: Job, uid: int) -> Json:
    """Its next tunnel's end reads the record."""
    people = colleague.recorded(job)
    left = [person for person in people if person.uid != uid]
    trouble = colleague.take_out(job, left) if len(left) < len(people) else ""
    if not left:
        job.clear_door()
    return {"changed": len(left) < len(people), "trouble": trouble}


def _tell(job: Job, name: str, word: Json, lives: Callable[[], bool] | None = None) -> Json:
    """`lives`: whether who is not at the door now will come (its keeper)."""
    for _ in range(_TRIES):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(_PATIENCE)
                connection.connect(str(job.control))
                connection.sendall(json.dumps(word).encode() + b"\n")
                with connection.makefile("rb") as answer:
                    said = json.loads(answer.readline() or b"{}")
            except (ConnectionResetError, BrokenPipeError):  # who was there has just left
                said = {}
            except (FileNotFoundError, ConnectionRefusedError):
                if not (lives() if lives else keeping.lives(job)):
                    break
                pause()
                continue
            except (OSError, ValueError) as error:
                raise errors.MlboxError(f"who is at the door of {name} does not answer: {error}", "again") from None
        if "error" in said:
            raise _refused(job, name, said["error"])
        if said:
            return {"trouble": "", **said}
        pause()
    raise _deaf(name)


def _refused(job: Job, name: str, why: str) -> errors.Refused:
    return errors.Refused(f"{name} can't be shared: {why}", f"see {job.keeper_log(job.state())} on the host")


def _deaf(name: str) -> errors.HostUnready:
    return errors.HostUnready(
        f"nobody listens for it at the door of {name}", "one that an older mlbox started can't share; start it anew"
    )


def _foreseen(job: Job, name: str, uid: int, lets: bool, far: bool) -> tuple[Json, Json]:
    """What the keeper would say to that, and the session behind it. It is not asked: an older one would do it."""
    if not job.control.exists() and (lets or not far):
        raise _deaf(name)
    people = [person.uid for person in colleague.recorded(job)]
    changed = (uid in people) != lets
    if changed and lets and len(people) >= colleague.MOST:
        raise _refused(job, name, colleague.TOO_MANY)
    left = {*people, uid} if lets else {*people} - {uid}
    return {"changed": changed}, {**describe(job), "shared": sorted(map(peer.name, left))}
