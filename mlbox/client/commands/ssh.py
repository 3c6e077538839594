"""mlbox ssh: `ssh NAME`, also without a line in the user's SSH configuration, and to a session not seen here yet."""

from __future__ import annotations

import argparse
import os
from typing import Any

from mlbox import errors
from mlbox.client import options

_EPILOG = """\
What follows NAME is for ssh: its options, and a command. The exit code is ssh's.

examples:
  mlbox ssh kind-otter
  mlbox ssh kind-otter nvidia-smi
  mlbox ssh kind-otter -N -L 6006:localhost:6006"""


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        usage="mlbox ssh [--host HOST] [NAME|ID [ssh's options] [COMMAND …]]", epilog=_EPILOG,
        description="A shell in a session, or one command, wherever the session runs.",
    )  # fmt: skip
    made.add_argument("session", nargs="?", default="", metavar="NAME|ID", help="needed where you have more than one")
    made.add_argument("words", nargs=argparse.REMAINDER, metavar="…", help="for ssh")
    options.place(made, options.WHERE)
    return made


def main(arguments: argparse.Namespace) -> int:
    from mlbox.client import ssh_config

    wanted, host = arguments.session, arguments.host
    name = ("" if host else ssh_config.named(wanted)) or _found(wanted, host, options.config(arguments))
    configuration = () if ssh_config.known_to_ssh() else ("-F", str(ssh_config.top()))
    try:
        os.execvp("ssh", ("ssh", *configuration, name, *arguments.words))
    except FileNotFoundError:
        raise errors.MlboxError("there is no `ssh` on this machine", "install OpenSSH's client") from None


def _found(wanted: str, host: str, config: Any) -> str:
    """By asking the hosts; ssh knows it from then on. Raises NotFound, and Refused without an SSH server."""
    from mlbox.client import output, sessions, ssh_config
    from mlbox.client.remote import Host

    def enter(there: Host) -> str:
        session = sessions.reveal(there, wanted)
        sessions.enter(there, session)
        if not (name := ssh_config.shortened(session["id"])):
            hint = f"mlbox open {session['name']} --in jupyter"
            raise errors.Refused(f"{session['name']} has no SSH server that ssh here could reach", hint)
        return name

    with output.Progress() as progress:
        progress.say(f"looking for {wanted}" if wanted else "looking for your session")
        return sessions.at_session(wanted, host, config, enter)
