"""mlbox session shutdown: end a session; its container is gone and its GPUs are free on return."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox import errors
from mlbox.client import options, output, owners, sessions, ssh_config, state
from mlbox.client.remote import Host
from mlbox.core import text


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(description="End a session.")
    options.dry_run(made)
    options.session(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    return run(arguments.session, arguments.host, options.config(arguments), arguments.json)


def run(wanted: str, host: str, config: state.Config, as_json: bool) -> int:
    try:
        return sessions.at_session(wanted, host, config, lambda there: end(there, wanted, as_json))
    except errors.Several:
        raise
    except errors.NotFound:  # running nowhere; how it ended is known by its id
        place, known = sessions.remembered(wanted, host)
        if not known:
            raise
        return sessions.at_session(known, place, config, lambda there: end(there, known, as_json))


def end(host: Host, wanted: str, as_json: bool) -> int:
    with output.Progress() as progress:
        progress.say(f"{'asking' if host.dry else 'ending the session on'} {host.name}")
        reply = host.call("shutdown", {"session": wanted})
    ended = reply["session"]
    if not host.dry:
        _forget(ended["id"], reply.get("already", "shut down"))
    if as_json:
        output.facts({"id": ended["id"], "name": ended["name"], "freed": reply["freed"]}, host.dry)
    elif "already" in reply:
        print(f"{text.safe(ended['name'])} had ended already: {text.safe(reply['already'])}")
    else:
        freed = f"; {text.count(len(reply['freed']), 'GPU')} free again" if reply["freed"] else ""
        print(f"{ended['name']} {'would end' if host.dry else 'has ended'}{freed}")
    return 0


def _forget(session: str, why: str) -> None:
    state.update("sessions.json", session, None)
    ssh_config.drop(session)
    for owner in owners.living():
        if owner.session == session:
            owners.end(owner, "ended", f"the session has ended: {why}")
