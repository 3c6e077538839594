"""mlbox session attach: join a session, and serve the person until they leave or it ends."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from mlbox.client import options, output, sessions, ssh_config, ssh_include, state
from mlbox.client.attached import Attached, block
from mlbox.client.commands import shutdown
from mlbox.client.console import Console
from mlbox.client.remote import Host
from mlbox.core import port
from mlbox.core.port import Port

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(description="Join a session.")
    options.session(made)
    made.add_argument("--port", action="append", metavar="P|LOCAL:P", help="bring port P inside here too; repeat")
    made.add_argument("--detach", action="store_true", help="leave again; the tunnels stay in the background")
    return made


def main(arguments: argparse.Namespace) -> int:
    ports = [port.parse(word) for word in arguments.port or ()]
    config = options.config(arguments)
    return run(arguments.session, arguments.host, config, ports, arguments.detach, arguments.json)


def run(wanted: str, host: str, config: state.Config, ports: Sequence[Port], detach: bool, as_json: bool) -> int:
    return sessions.at_session(wanted, host, config, lambda there: join(there, wanted, config, ports, detach, as_json))


def join(
    host: Host, wanted: str, config: state.Config, ports: Sequence[Port], detach: bool, as_json: bool,
    yes: bool = False, then: Callable[[Mapping[str, str]], None] | None = None,
) -> int:  # fmt: skip
    """`then` hears where each service is on this machine, once all is told."""
    found = sessions.reveal(host, wanted)
    with output.Progress() as progress:
        progress.say("connecting the tunnels")
        attached = Attached(sessions.reach(host, found), config, ports, progress.keep)
        try:
            attached.dial()
            attached.wait_up(attached.reach)
        except BaseException:
            attached.close()
            raise
    return work(host, attached, found, detach, as_json, yes, then)


def work(
    host: Host, attached: Attached, session: Json, detach: bool, as_json: bool, yes: bool,
    then: Callable[[Mapping[str, str]], None] | None = None,
) -> int:  # fmt: skip
    """Print the block, then serve the person until they leave or the session ends; with `detach`, leave at once."""
    chosen = "detach"
    # Before the block is there to be read: whoever has read it may end us by a signal.
    console = None if detach else Console(attached, lambda: sessions.logs(host, session["id"]))
    try:
        sessions.enter(host, session)
        if not as_json:
            ssh_include.offer(yes)
        if as_json:
            facts = {**sessions.public(session), "host": host.name, "urls": attached.urls(), "ports": attached.extra}
            output.facts(facts)
        else:
            print(block(attached, session.get("absent", {})), flush=True)
        if then is not None:
            then(attached.urls())
        if console is not None:
            chosen = console.run()
        if chosen == "detach":
            attached.stay()
    except KeyboardInterrupt:
        chosen = "leave"
    finally:
        attached.close()
    name = session["name"]
    if chosen == "ended":
        if attached.over:
            ssh_config.drop(session["id"])
        output.note(f"{name}: {attached.why}")
    elif chosen == "shutdown":
        return shutdown.end(host, session["id"], as_json=False)
    elif chosen == "detach":
        ways = f"back: mlbox session attach {name}; end them: mlbox tunnels stop {name}"
        output.note(f"detached; {name} goes on, its tunnels in the background ({ways})")
    else:
        output.note(f"detached; {name} goes on (mlbox session attach {name})")
    return 0
