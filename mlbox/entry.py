"""What the small file on a host runs: `host` answers one request of a laptop (`host relayed`: one that another file
passed on), `guest` is a session's first process, `tick` is one pass over the queue (what cron calls), `again` that of a
keeper that ends, and at `rendezvous` the tunnels of a host end that can't be dialled."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if argv is None and arguments[:1] in (["host"], ["tick"]) and "MLBOX_SESSION" in os.environ:
        _step_apart()
    if arguments[:1] == ["host"]:
        from mlbox.host import here, serve

        here.be_readable()
        if arguments[1:] == ["relayed"]:  # by a reverse tunnel, not by a login
            from mlbox.core.reverse import RELAYED

            return serve.main(RELAYED)
        return serve.main()
    if arguments[:1] == ["tick"]:
        from mlbox.host import idle

        if idle.may_pass(arguments[1:]):
            return 0
        from mlbox.host import cron, here

        here.be_readable()
        return cron.main(arguments[1:])
    if arguments[:1] == ["again"] and len(arguments) == 2:  # a keeper's last act (tick.again)
        from pathlib import Path

        from mlbox.host import here, store, tick

        here.be_readable()
        tick.again(store.Store(Path(arguments[1])))
        return 0
    if arguments[:1] == ["rendezvous"] and len(arguments) == 3:
        from mlbox.host import rendezvous

        return rendezvous.main(*arguments[1:])
    if arguments[:1] == ["guest"] and len(arguments) == 2:
        from mlbox.guest import main as guest

        return guest.main(arguments[1])
    print("This is mlbox's part for hosts. It is put here and called by mlbox on a laptop.", file=sys.stderr)
    return 2


def _step_apart() -> None:
    """Called from inside a job or a session, whose processes are found and ended by their environment: what is started
    from here is not that one's, nor is its keeper, and a process has the environment that it was executed with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLBOX_")}
    os.execve(sys.executable, (sys.executable, "-I", "-S", *sys.argv), {**kept, "MLBOX_APART": "1"})
