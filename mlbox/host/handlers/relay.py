"""Ask a host that can't be dialled: the call goes on to it by its session's reverse tunnel, which ends here."""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import time
from typing import Any

from mlbox import errors
from mlbox.core import reverse, text, wire
from mlbox.host import colleague, files, here, lab, lookup, peer, store
from mlbox.host.handlers.logs import pause
from mlbox.host.job import Job
from mlbox.host.serve import Call

Json = dict[str, Any]
_PATIENCE = 30.0  # s for a tunnel that is being dialled


def run(call: Call) -> Json:
    found, verb = store.Store(call.root), str(call.args.get("verb", ""))
    if verb not in reverse.RELAYED:
        raise errors.Usage(f"a host that can't be dialled is not asked for {text.safe(verb)!r}")
    lab.identify(found.root)  # or a session of a ROOT that is not there yet would have ended
    job = lookup.mine(found, str(call.args.get("session", "")))
    with connect(found, job) as connection:
        request = wire.Request(verb, dict(call.args.get("args", {})), secrets.token_hex(8))
        connection.sendall(request.encode())
        return _with_shares(job, _relayed(call, connection, request.nonce))


def connect(found: store.Store, job: Job) -> socket.socket:
    """Raises Ended where the session has, Unreachable where its tunnel does not come up, HostUnready where
    the sockets' folder is not the user's."""
    folder = files.private_folder(here.boot_folder())  # in anybody else's, anybody might answer
    path = folder / reverse.lasting(job.id, reverse.CALL)
    deadline = time.monotonic() + _PATIENCE
    while True:
        state = job.state()
        if not state.live:
            raise errors.Ended(f"the session has ended: {state.facts.get('why', state.name)}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except OSError:
            connection.close()
        if time.monotonic() > deadline:
            if state.waiting:
                raise errors.Unreachable(
                    f"{job.id} waits in line, so no tunnel of it is up", f"mlbox show {job.id} says why"
                )
            host = str(state.facts.get("host", ""))
            told = files.read_json(job.attempt(1) / "tunnel.json")
            why = told.get("why") if isinstance(told, dict) else ""
            raise errors.Unreachable(
                f"the reverse tunnel of {host} to {found.host} is not up" + (f": {why}" if why else ""),
                f"the session goes on there, and dials again and again; see {job.attempt(1)}/tunnel.json",
            )
        pause()


def _with_shares(job: Job, reply: Json) -> Json:
    """Who joins it here is on record here alone."""
    if isinstance(session := reply.get("session"), dict) and "shared" in session:
        names = {*session["shared"], *(peer.name(person.uid) for person in colleague.recorded(job))}
        reply["session"] = {**session, "shared": sorted(names)}
    return reply


def _relayed(call: Call, connection: socket.socket, nonce: str) -> Json:
    """Its reply; its progress passes through. When the caller goes, the other end hears it."""
    reader = wire.MessageReader(nonce)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if 0 in ready and not os.read(0, 65536):
                selector.unregister(0)
                connection.shutdown(socket.SHUT_WR)
            if connection.fileno() not in ready:
                continue
            data = connection.recv(65536)
            if not data:
                raise errors.Unreachable("the reverse tunnel broke during the call", "again in a moment")
            for message in reader.feed(data):
                if "reply" in message:
                    return dict(message["reply"])
                if "error" in message:
                    raise wire.decode_error(message["error"])
                call.progress(**message.get("progress", {}))
