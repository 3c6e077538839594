"""mlbox ssh-config: the line in your SSH configuration by which `ssh NAME` reaches a session."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from mlbox import errors
from mlbox.client import options, output, proxy, sessions, ssh_config, ssh_include, state
from mlbox.client.remote import Host

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(description="The line in ~/.ssh/config by which ssh knows sessions by name.")
    verbs = made.add_subparsers(dest="do", metavar="WHAT", required=True, parser_class=type(made))
    for name, words in (
        ("install", "put it in, as shown"), ("remove", "take it out"), ("show", "whether it is there, and for whom"),
        ("proxy", "used by ssh itself: become the connection to a session"),
    ):  # fmt: skip
        shown = name != "proxy"  # nobody types that one
        one = verbs.add_parser(name, help=words, description=words) if shown else verbs.add_parser(name)
        if name == "show":
            one.add_argument("--json", action="store_true", help="print facts as JSON")
        elif name == "proxy":
            one.add_argument("session", metavar="ID")
            one.add_argument("--ssh-config", metavar="F", help="ssh's configuration file (ssh -F)")
        else:
            options.dry_run(one)
    return made


def main(arguments: argparse.Namespace) -> int:
    if arguments.do == "show":
        return _show(arguments.json)
    if arguments.do == "proxy":
        arguments.root = None
        return _proxy(arguments.session, options.config(arguments))
    act = ssh_include.install if arguments.do == "install" else ssh_include.remove
    change = act(arguments.dry_run)
    print(change or f"{ssh_include.config()} is as it should be")
    if change:  # a diff alone tells neither
        output.note(f"{ssh_include.config()} {'would be changed like this' if arguments.dry_run else 'was changed'}")
    return 0


def _show(as_json: bool) -> int:
    places = {id_: ssh_config.place(id_) for id_ in ssh_config.names()}
    rows = [
        {"id": id_, "names": names, "name": places[id_].get("name", ""), "host": places[id_].get("host", "")}
        for id_, names in ssh_config.names().items()
    ]
    if as_json:
        output.facts({"included": ssh_config.included(), "line": ssh_include.line(), "sessions": rows})
        return 0
    if ssh_config.included():
        print(f"{ssh_include.config()} includes mlbox's: {ssh_include.line()}")
    else:
        print(f"{ssh_include.config()} does not have this line (mlbox ssh-config install): {ssh_include.line()}")
    if rows:  # the last name is its id, which nobody types where there is another
        cells = [(" ".join(row["names"][:-1] or row["names"]), row["id"], row["host"]) for row in rows]
        output.table(("SSH NAME", "SESSION", "HOST"), cells)
    return 0


def _proxy(session: str, config: state.Config) -> int:
    """It is not where its entry says: find it, mend the entry, and be the connection. stdout is ssh's."""
    try:
        _look_for(session, config)
    except errors.Ended:
        ssh_config.drop(session)
        raise
    place = ssh_config.place(session)
    if not place:
        raise errors.NotFound(f"session {session} has no SSH server", f"mlbox session info {session}")
    try:
        return proxy.join(place, proxy.reach(place))
    except proxy.Unreachable as error:
        print(f"mlbox: {error}", file=sys.stderr)
        return 255


def _look_for(session: str, config: state.Config) -> None:
    """Where it was it is not, or that host is down: the others of its lab first."""
    old = ssh_config.place(session)
    known = state.load("sessions.json").get(session, {})
    if old.get("moves"):
        settings = replace(config, root=str(known.get("root") or config.root))
        try:
            return _enter(sessions.elsewhere(session, str(old.get("host")), settings), session)
        except errors.Ended:
            raise
        except errors.NotFound:
            pass
    where = "" if known.get("via") else str(old.get("host", ""))  # its entry's host is only the rendezvous
    sessions.at_session(session, where, config, lambda host: _enter(host, session))


def _enter(host: Host, session: str) -> None:
    sessions.enter(host, sessions.reveal(host, session))
