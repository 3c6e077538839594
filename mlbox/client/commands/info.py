"""mlbox session info: one session's facts."""

from __future__ import annotations

import argparse
import time
from typing import Any

from mlbox.client import options, output, sessions, state
from mlbox.client.remote import Host
from mlbox.core import text
from mlbox.core.log import said

Json = dict[str, Any]


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(description="One session's facts.")
    options.session(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    return run(arguments.session, arguments.host, options.config(arguments), arguments.json)


def run(wanted: str, host: str, config: state.Config, as_json: bool) -> int:
    where, found = sessions.at_session(wanted, host, config, lambda there: (there, _facts(there, wanted)))
    if as_json:
        output.facts({**found, "host": where.name})
        return 0
    print(f"{output.bold(found['name'])}  {found['id']}  on {where.name}")
    for key, value in ("state", said(found["state"])), *((key, found[key]) for key in ("runtime", "image", "user")):
        if value:
            print(f"  {key + ':':<9}{text.safe(str(value))}")
    if found.get("shared") or "owner" in found:
        others = ", ".join(map(text.safe, found["shared"]))
        print(f"  shared:  with {'you' if 'owner' in found else others}")
    print(f"  gpus:    {', '.join(found['gpus']) or 'none'}")
    print(f"  since:   {text.duration(time.time() - found['since'])} ago")
    if found.get("ends"):
        print(f"  ends:    in {text.duration(found['ends'] - time.time())} (its time limit)")
    for name, why in found.get("trouble", {}).items():
        output.warn(f"{name}: {why}")
    print(f"Attach:  mlbox session attach {found['name']}")
    return 0


def _facts(host: Host, wanted: str) -> Json:
    return dict(host.call("sessions", {"session": wanted})["session"])
