"""Let a colleague join a session, or take that back: its keeper does it, at once (host/sharing.py)."""

from __future__ import annotations

import json
import os
import pwd
import socket
from typing import Any

from mlbox import errors
from mlbox.core import text
from mlbox.host import colleague, files, here, keeping, peer, store
from mlbox.host.handlers.logs import pause
from mlbox.host.handlers.sessions import describe, is_session, pick_own
from mlbox.host.job import Job
from mlbox.host.serve import Call
from mlbox.host.sweep import sweep

Json = dict[str, Any]
_PATIENCE = 20.0  # s
_TRIES = 50  # pauses that a keeper which has just taken over gets to listen


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    wanted, user, lets = str(call.args.get("session", "")), str(call.args.get("user", "")), bool(call.args.get("lets"))
    job = pick_own([job for job in sweep(found) if is_session(job)], wanted, found)
    name = describe(job)["name"]
    uid = _uid(user, lets)
    _check(job, name)
    if found.dry:
        reply, session = _foreseen(job, name, uid, lets)
    else:
        reply, session = _tell(job, name, {"op": "share" if lets else "unshare", "uid": uid}), describe(job)
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


def _check(job: Job, name: str) -> None:
    reach = files.read_json(job.conf / "session.json")
    if not isinstance(reach, dict):
        raise errors.NotFound(f"session {name} is still starting", "again in a moment")
    if "via" in reach:
        via, host = text.safe(reach["via"]["via"]), here.host_name()
        raise errors.Refused(
            f"{name} can't be shared: your colleague would come by {via}, and who comes from there {host} can't tell",
            "start one without a reverse tunnel, on a host that your colleague can log in to, and share that",
        )
    if not peer.known():
        raise errors.Refused(
            f"{name} can't be shared: {here.host_name()} does not tell who connects to a socket", "Linux does"
        )


def _tell(job: Job, name: str, word: Json) -> Json:
    for _ in range(_TRIES):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(_PATIENCE)
                connection.connect(str(job.control))
                connection.sendall(json.dumps(word).encode() + b"\n")
                with connection.makefile("rb") as answer:
                    said = json.loads(answer.readline() or b"{}")
            except (FileNotFoundError, ConnectionRefusedError):
                if not keeping.lives(job):
                    break
                pause()
                continue
            except (OSError, ValueError) as error:
                raise errors.MlboxError(f"the keeper of {name} does not answer: {error}", "try again") from None
        if "error" in said or not said:
            why = said.get("error", "it said nothing")
            raise _refused(job, name, why)
        return dict(said)
    raise _deaf(name)


def _refused(job: Job, name: str, why: str) -> errors.Refused:
    return errors.Refused(f"{name} can't be shared: {why}", f"see {job.keeper_log(job.state())} on the host")


def _deaf(name: str) -> errors.HostUnready:
    return errors.HostUnready(
        f"the keeper of {name} does not listen for it", "one that an older mlbox started can't share; start it anew"
    )


def _foreseen(job: Job, name: str, uid: int, lets: bool) -> tuple[Json, Json]:
    """What the keeper would say to that, and the session behind it. It is not asked: an older one would do it."""
    if not job.control.exists():
        raise _deaf(name)
    people = [person.uid for person in colleague.recorded(job)]
    changed = (uid in people) != lets
    if changed and lets and len(people) >= colleague.MOST:
        raise _refused(job, name, colleague.TOO_MANY)
    left = {*people, uid} if lets else {*people} - {uid}
    return {"changed": changed}, {**describe(job), "shared": sorted(map(peer.name, left))}
