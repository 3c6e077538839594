"""What the small file on a host runs: `host` answers one request of a laptop, `guest` is a session's first process,
`attempt` stays with a job's command, and `tick` is one pass over the queue (what cron calls)."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["host"]:
        from mlbox.host import serve

        return serve.main()
    if arguments[:1] == ["attempt"] and len(arguments) == 2:
        from mlbox.host import attempt

        return attempt.main(arguments[1])
    if arguments[:1] == ["tick"]:
        from mlbox.host import idle

        return idle.main(arguments[1:])
    if arguments[:1] == ["guest"] and len(arguments) == 2:
        from mlbox.guest import main as guest

        return guest.main(arguments[1])
    print("This is mlbox's part for hosts. It is put here and called by mlbox on a laptop.", file=sys.stderr)
    return 2
