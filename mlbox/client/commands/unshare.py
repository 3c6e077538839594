"""mlbox session unshare: take back what `share` gave. What is open by it ends at once."""

from __future__ import annotations

import argparse
from typing import Any

from mlbox.client.commands import share
from mlbox.core import text


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        description="Let a colleague join no longer: what is open ends at once, and so do the keys. What was started "
        "or written inside stays."
    )
    share.person(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    reply = share.tell(arguments, lets=False)
    if arguments.json:
        return 0
    name, user = reply["session"]["name"], text.safe(reply["user"])
    if reply["changed"]:
        ended = f"; {text.count(reply['ended'], 'connection')} ended" if reply["ended"] else ""
        print(f"{name} {'would no longer be' if arguments.dry_run else 'is no longer'} shared with {user}{ended}")
    else:
        print(f"{name} was not shared with {user}")
    return 0
