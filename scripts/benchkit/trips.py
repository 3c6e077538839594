"""Part c: what a command costs over a connection that is up, and how often each command uses the network.

Counted by an `ssh` first on PATH that notes its arguments and becomes the real one. Over the shared
connection a command is one request and its answer: that is what is called a round trip here.
`ssh -G` and `-V` ask nobody, and `ssh -O` only talks to the shared connection's own process.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import partial
from typing import Callable

from benchkit import sessions
from benchkit.laptop import Laptop
from benchkit.measure import Row, at_most, in_turn, seconds, tell

RUNS = 15


@dataclass(frozen=True)
class Trips:
    """How many times ssh was run: over the shared connection, with one of its own, and without any network."""

    shared: int
    own: int
    local: int


def run(host: str, runs: int | None) -> tuple[list[Row], list[str]]:
    with contextlib.closing(Laptop(host)) as laptop:
        rows = _times(laptop, runs or RUNS) + _by_name(laptop, runs or RUNS)
        counted = count(laptop)
    for name, trips in counted.items():
        aim, met = ("= 1", trips.shared + trips.own == 1) if name == "status" else ("", None)
        rows.append(Row("c", f"ssh runs of {name}", "count", [trips.shared + trips.own], aim=aim, met=met))
    notes = [
        f"c: {name}: {t.shared} over the shared connection, {t.own} with a connection of its own, {t.local} local"
        for name, t in counted.items()
    ]
    return rows, notes


def _times(laptop: Laptop, runs: int) -> list[Row]:
    laptop.share()
    laptop.mlbox("status", laptop.host)
    true, python = "ssh HOST true", "ssh HOST python3"
    subjects = {
        "status": partial(seconds, laptop.argv("status", laptop.host), laptop.env),
        true: partial(seconds, laptop.ssh("true", shared=True), laptop.env),
        python: partial(seconds, laptop.ssh("exec python3 -I -S -c pass", shared=True), laptop.env),
    }
    found = in_turn(runs, subjects, "warm")
    return [Row("c", "status, warm", "s", found["status"], found[name], name) for name in (true, python)]


def _by_name(laptop: Laptop, runs: int) -> list[Row]:
    """`ssh NAME` without a client, beside the same by hand: with a connection of its own as plain ssh makes one, and
    over a shared one, which only who has set that up has. The first `ssh NAME` of all dials for those that follow."""
    tell("starting a session")
    name = f"{laptop.tag}-s"
    session = json.loads(laptop.mlbox(*sessions.words(laptop, vscode=False), "--detach", "--json"))["id"]
    container = laptop.on_host(f"docker ps -q --filter label=mlbox.session={session}").strip()
    known = f"{laptop.env['HOME']}/.local/state/mlbox/ssh_config"
    plain, shared, warm, cold = "ssh HOST docker exec", "the same, shared", "ssh NAME true", "ssh NAME true, the first"
    laptop.mlbox("tunnels", "stop", name)
    named = partial(seconds, ("ssh", "-F", known, "-o", "BatchMode=yes", name, "true"), laptop.env)

    def first() -> float:
        laptop.hang_up()
        return named()

    subjects: dict[str, Callable[[], float]] = {
        cold: first,
        warm: named,
        plain: partial(seconds, laptop.ssh(f"docker exec {container} true"), laptop.env),
        shared: partial(seconds, laptop.ssh(f"docker exec {container} true", shared=True), laptop.env),
    }
    try:
        found = in_turn(runs, subjects, "ssh NAME true")
    finally:
        laptop.mlbox("session", "shutdown", name, "--host", laptop.host)
    rows = [
        Row("c", what, "s", found[what], found[base], base)
        for what, base in ((warm, plain), (warm, shared), (cold, plain))
    ]
    return [at_most(rows[0], 1.3), *rows[1:]]


def count(laptop: Laptop) -> dict[str, Trips]:
    """A session's life, every command counted. The first comes without any connection, and must plant nothing."""
    tell("counting")
    name, env = f"{laptop.tag}-s", laptop.counting_env
    laptop.hang_up()
    found = {"status, cold": _counted(laptop, partial(laptop.mlbox, "status", laptop.host, env=env))}
    found["status"] = _counted(laptop, partial(laptop.mlbox, "status", laptop.host, env=env))
    start = (*sessions.words(laptop), "--detach")
    found["session start, detached"] = _counted(laptop, partial(laptop.mlbox, *start, env=env))
    laptop.mlbox("tunnels", "stop", name)
    found["session list"] = _counted(laptop, partial(laptop.mlbox, "session", "list", laptop.host, env=env))
    found["session info"] = _counted(laptop, partial(laptop.mlbox, "session", "info", name, env=env))
    found["session attach"] = _counted(laptop, partial(_stay, laptop, laptop.argv("session", "attach", name)))
    found["session shutdown"] = _counted(laptop, partial(laptop.mlbox, "session", "shutdown", name, env=env))
    found["session start, attached"] = _counted(laptop, partial(_stay, laptop, laptop.argv(*sessions.words(laptop))))
    laptop.mlbox("session", "shutdown", name)
    return found


def _stay(laptop: Laptop, argv: tuple[str, ...]) -> None:
    laptop.end(sessions.until_running(laptop, argv, laptop.counting_env))


def _counted(laptop: Laptop, command: Callable[[], object]) -> Trips:
    log = laptop.folder / "log"
    for path in log.iterdir():
        path.unlink()
    command()
    runs = [path.read_text().split("\x1f") for path in log.iterdir()]
    local = [words for words in runs if {"-G", "-O", "-V"} & {*words}]
    dials = {"ControlPath=none", "ControlMaster=yes"}
    own = [words for words in runs if dials & {*words} and words not in local]
    return Trips(len(runs) - len(local) - len(own), len(own), len(local))
