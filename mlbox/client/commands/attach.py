"""mlbox session attach: join a session, and serve the person until they leave or it ends."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from mlbox.client import options, output, sessions, ssh_config, ssh_include, state
from mlbox.client.attached import Attached, block
from mlbox.client.commands import shutdown
from mlbox.client.console import Console
from mlbox.client.remote import Host
from mlbox.core import port, text
from mlbox.core.port import Port

Json = dict[str, Any]
LAST_WORD = 600.0  # s before a time limit


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox attach kind-otter\n  mlbox attach kind-otter --port 6006 --detach",
        description="Join a session: yours, or a colleague's who shares it.",
    )
    options.session(made)
    made.add_argument("--port", action="append", metavar="P|LOCAL:P", help="bring port P inside here too; repeat")
    made.add_argument("--detach", action="store_true", help="leave again; the tunnels stay in the background")
    return made


@dataclass(frozen=True)
class Manner:
    """How a command that attaches behaves towards the person."""

    detach: bool = False  # leave at once
    json: bool = False
    yes: bool = False  # ask nothing


def main(arguments: argparse.Namespace) -> int:
    wanted, config = arguments.session, options.config(arguments)
    ports = [port.parse(word) for word in arguments.port or ()]
    manner = Manner(arguments.detach, arguments.json)
    return sessions.at_session(wanted, arguments.host, config, lambda there: join(there, wanted, config, ports, manner))


Then = Callable[[Mapping[str, str]], None]
"""Hears where each service is on this machine, once all is told."""


def join(
    host: Host, wanted: str, config: state.Config, ports: Sequence[Port], manner: Manner, then: Then | None = None
) -> int:
    found = sessions.reveal(host, wanted)
    with output.Progress() as progress:
        progress.say("connecting the tunnels")
        attached = Attached(sessions.reach(host, found), config, ports, progress.keep)
        try:
            attached.dial()
            attached.wait_up(attached.reach)
        except BaseException:  # ^C too: nobody is attached yet, and the tunnels end
            attached.close()
            raise
    return work(host, attached, found, manner, then)


def work(host: Host, attached: Attached, session: Json, manner: Manner, then: Then | None = None) -> int:
    """Print the block, then serve the person until they leave or the session ends."""
    chosen, remains = "detach", False
    # Before the block is there to be read: whoever has read it may end us by a signal.
    owner = text.safe(session.get("owner", ""))  # a colleague; ours has none
    console = None if manner.detach else Console(attached, lambda: sessions.logs(host, session["id"]), not owner)
    try:
        sessions.enter(host, session)
        if manner.json:
            facts = {**sessions.public(session), "host": host.name, "urls": attached.urls(), "ports": attached.extra}
            output.facts(facts)
        else:
            ssh_include.offer(manner.yes)
            print(block(attached, session.get("absent", {})), flush=True)
            if owner:
                output.note(f"  it is {owner}'s: what you do in it is done as {owner}")
        if then is not None:
            then(attached.urls())
        if console is not None:
            if session.get("ends"):
                _say_its_end(attached, session["ends"] - time.time())
            chosen = console.run()
        if chosen == "detach":
            attached.stay()
    except KeyboardInterrupt:
        chosen = "leave"
    finally:
        remains = attached.close()
    if chosen == "shutdown":
        return shutdown.end(host, session["id"], as_json=False)
    if chosen == "ended" and attached.over:
        ssh_config.drop(session["id"])
    word = sessions.word_for(session["id"], session["name"])
    output.note(_parting(chosen, session["name"], word, attached.why, remains))
    return 0


def _say_its_end(attached: Attached, left: float) -> None:
    """It has a time limit, by which it ends in `left` seconds: said now, and once more shortly before."""
    attached.say(f"its time limit ends it in {text.duration(left)}")
    if left > LAST_WORD:
        words = f"the time limit ends it in {text.duration(LAST_WORD)}: save what is to stay"
        timer = threading.Timer(left - LAST_WORD, attached.say, (words,))
        timer.daemon = True
        timer.start()


def _parting(chosen: str, name: str, word: str, why: str, remains: bool) -> str:
    """`word`: what it is called in a command."""
    if chosen == "ended":
        return f"{name}: {why}"
    if chosen == "detach":
        ways = f"back: mlbox session attach {word}; end them: mlbox tunnels stop {word}"
        return f"detached; {name} goes on, its tunnels in the background\n  ({ways})"
    if remains:  # from before, or another client's
        return f"detached; {name} goes on, and its tunnels stay up (end them: mlbox tunnels stop {word})"
    return f"detached; {name} goes on, its tunnels have ended (mlbox session attach {word})"
