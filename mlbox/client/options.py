"""Options that several commands share, and the settings as they are by them.

Imported for --help too: what only a command that runs needs is imported inside functions.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlbox.client import state
    from mlbox.core.resources import Resources


ROOT = "the lab's folder on the hosts (default: root of config.toml, else ~/.local/share/mlbox there)"


def common(parser: argparse.ArgumentParser) -> None:
    """What every command about sessions and hosts takes."""
    group = parser.add_argument_group("shared options")
    group.add_argument("--json", action="store_true", help="print facts as JSON")
    group.add_argument("--ssh-config", metavar="F", help="ssh's configuration file (ssh -F)")
    group.add_argument("--root", metavar="DIR", help=ROOT)


def hosts(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Which are asked; `more`: whom else, where none is named."""
    parser.add_argument(
        "hosts",
        nargs="*",
        metavar="HOST",
        help=f"hosts to ask (default: those configured or seen before{more}, else this machine)",
    )
    common(parser)


# --host, by whom it is that a command asks without it.
ANY = "the host to ask (default: the first configured or known one that is there, else this machine)"
ALL = "the only host to ask (default: those configured or seen before, else this machine)"
WHERE = "where it runs (default: remembered, or all known hosts are asked)"


def queue(parser: argparse.ArgumentParser, host: str = ANY) -> None:
    """What every command of the queue takes."""
    place(parser, host).add_argument("--json", action="store_true", help="print facts as JSON")


def place(parser: argparse.ArgumentParser, host: str) -> Any:
    """`host`: the words for --host; empty where there is no such option."""
    group = parser.add_argument_group("shared options")
    if host:
        group.add_argument("--host", default="", help=host)
    group.add_argument("--root", metavar="DIR", help=ROOT)
    group.add_argument("--ssh-config", metavar="F", help="ssh's configuration file (ssh -F)")
    return group


def dry_run(parser: Any) -> None:
    """What every command takes that changes something. `parser`: or a group of one."""
    parser.add_argument("--dry-run", action="store_true", help="say what it would do, and change nothing")


def yes(parser: Any, words: str = "ask nothing") -> None:
    parser.add_argument("-y", "--yes", action="store_true", help=words)


def job(parser: argparse.ArgumentParser, name: str = "job", **given: Any) -> None:
    """One that there is; `given`: more for argparse."""
    what = "as mlbox jobs shows it: NAME[2] of an array; of an id, its end will do"
    parser.add_argument(name, metavar="ID|NAME", help=what, **given)


def session(parser: argparse.ArgumentParser) -> None:
    """One running session, and where it is."""
    parser.add_argument("session", nargs="?", default="", metavar="NAME|ID", help="needed where you have more than one")
    parser.add_argument("--host", default="", help=WHERE)
    common(parser)


def work(group: Any, what: str) -> None:
    """What a session and a job (`what`) are made of alike. `group`: of a parser."""
    group.add_argument("--name", help="its name (default: one is made up)")
    group.add_argument("--image", metavar="I", help=f"container image; without one the {what} runs in no container")
    group.add_argument("--packages", action="append", metavar="P", help="pip packages to add; comma or repeat")
    group.add_argument("--requirements", metavar="F", help="a pip requirements file to add")
    group.add_argument("--init-script", metavar="F", help="a script to run once, when the image's layer is built")
    group.add_argument(
        "--env",
        action="append",
        type=_variable,
        metavar="K=V",
        help="a variable inside; repeat (K alone: its value here)",
    )
    group.add_argument(
        "--mount", action="append", metavar="H:C[:ro]", help="a host folder inside the container; repeat"
    )
    group.add_argument("--engine-args", metavar="'…'", help="more arguments for the container engine (safe ones)")
    group.add_argument(
        "--runtime",
        choices=("auto", "docker", "podman", "process"),
        help="container engine (default: what the host has), or process (no container)",
    )
    group.add_argument(
        "--user", choices=("uid", "root"), help="the user inside: yours (default), or the container's root"
    )


def _variable(item: str) -> str:
    from mlbox.client import argv  # most commands are given none

    argv.conceal(item)
    return item


def needs(group: Any) -> None:
    """What whoever waits in line asks of a host, beside GPUs; `resources` reads it."""
    group.add_argument("--gpu-memory", metavar="24G", help="memory that each GPU has at least")
    group.add_argument("--gpu-share", metavar="8G", help="memory of one GPU, shared with others that ask for a share")
    group.add_argument("--cpus", type=int, metavar="N", help="CPUs (default: 1)")
    group.add_argument("--memory", metavar="16G", help="memory of the host's")
    group.add_argument("--on", action="append", metavar="HOST", help="only on this host; repeat for any of several")
    group.add_argument("--label", action="append", metavar="L", help="only on hosts with this label; repeat")
    ends = "after which it is ended: 90m, 4h, 1-12:00:00, or seconds (default: the queue's)"
    group.add_argument("--time-limit", metavar="4h", help=ends)


def priority(group: Any) -> None:
    group.add_argument(
        "--priority", type=int, metavar="N", help="of your own, higher goes first; below 0, others pass (default: 0)"
    )


def resources(said: Any) -> Resources:
    """What arguments, or a session's answers, ask of a host. Raises Usage."""
    from mlbox.core.resources import Resources, parse_duration, parse_memory

    found = {
        "gpus": said.gpus, "cpus": said.cpus,
        "hosts": tuple(said.on) if said.on else None,
        "labels": tuple(said.label) if said.label else None,
        "gpu_memory": parse_memory(said.gpu_memory) if said.gpu_memory else None,
        "gpu_share": parse_memory(said.gpu_share) if said.gpu_share else None,
        "memory": parse_memory(said.memory) if said.memory else None,
        "time_limit": parse_duration(said.time_limit) if said.time_limit else None,
    }  # fmt: skip
    return Resources(**{name: value for name, value in found.items() if value is not None})


def config(arguments: argparse.Namespace) -> state.Config:
    """config.toml, and what these arguments say otherwise."""
    from mlbox.client import state

    found = replace(state.config(), dry_run=getattr(arguments, "dry_run", False))
    if arguments.ssh_config:
        found = replace(found, ssh_config=os.path.expanduser(arguments.ssh_config))
    return replace(found, root=arguments.root) if arguments.root else found
