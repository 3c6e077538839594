"""The lab as a laptop sees it: whom to ask, and whom to tell that something changed.

Any host of a lab can answer for all of it, since the state is in ROOT; the first that is configured is asked, and where
it is away the next.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlbox import errors
from mlbox.client import hosts, output, state
from mlbox.client.hosts import ask_all, known_hosts
from mlbox.client.remote import Host, Interrupted, connect
from mlbox.core import text

Json = dict[str, Any]
_AGAIN = (0.3, 0.7, 1.5)  # s


def entry(arguments: argparse.Namespace, settings: state.Config) -> Host:
    """Raises Usage where it is not clear which host is meant."""
    if arguments.host:
        return connect(arguments.host, settings)
    known = each(arguments, settings)
    if len(known) > 1 and not settings.hosts:
        raise errors.Usage("which host?", f"--host HOST (known: {', '.join(known)}), or hosts = […] in config.toml")
    return hosts.AnyHost(known, settings)


def each(arguments: argparse.Namespace, settings: state.Config) -> list[str]:
    """The host that is named, or all that are known; it is said where that is this machine for want of any."""
    if arguments.host:
        return [arguments.host]
    if hosts.none_known(settings) and not arguments.json:
        output.note("no host is known yet, so this machine is asked; --host HOST, or hosts = […] in config.toml")
    return known_hosts(settings)


def nudge(names: Iterable[str], settings: state.Config, job: str = "") -> dict[str, Json]:
    """Have these hosts look at the queue now, all at once. One that can't be reached catches up by its cron.

    One that knows nothing of a `job` that was just submitted is asked again: on some shared filesystems a host sees
    another's new files only a second later. Not one that did not look so far down the line."""
    replies: dict[str, Json] = {}
    left = list(dict.fromkeys(names))
    for pause in (*_AGAIN, 0.0):
        found = ask_all(left, "tick", {}, settings) if left else {}
        for name in (name for name, reply in found.items() if isinstance(reply, errors.NotConnected)):
            hosts.note(name, True)
        replies.update({name: reply for name, reply in found.items() if not isinstance(reply, errors.MlboxError)})
        left = [name for name in left if name in replies and job and not _knows(replies[name], job)]
        if not left or any(job in reply["started"] for reply in replies.values()):
            break
        time.sleep(pause)
    return replies


def start_elsewhere(waits: dict[str, str], names: Sequence[str], settings: state.Config) -> dict[str, str]:
    """Have these hosts, but none that was away a moment ago, look at jobs that were just put in line, and wait: job ->
    the host that has started it. Why the others wait, a host that could run them knows better than the one that was
    asked first."""
    started: dict[str, str] = {}
    there = near(names)
    told = nudge(there, settings, next(iter(waits), "")) if there else {}
    for name, ticked in told.items():
        started.update((job, name) for job in ticked["started"] if job in waits)
        waits.update((job, why) for job, why in ticked["waits"].items() if job in waits)
    for job in started:
        del waits[job]
    return started


def near(names: Sequence[str]) -> list[str]:
    """Without those that were away a moment ago, of which each would cost ssh's whole time-out."""
    away = hosts.away() if names else ()
    return [name for name in names if name not in away]


def look_again(asked: Host, others: Iterable[str], settings: state.Config, job: str = "") -> dict[str, Json]:
    """After a word by which a host, or several, may start something: what waited for it (such as `job`) is not left to
    their cron. The word is on record, whatever becomes of that. What the others answer."""
    if settings.dry_run:
        return {}
    try:
        asked.call("tick", {})
    except errors.MlboxError as error:
        output.warn(hosts.told(asked.name, error))
    return nudge(others, settings, job)


def _knows(reply: Json, job: str) -> bool:
    return not reply["whole"] or job in reply["waits"] or job in reply["started"] or job in reply["failed"]


def title(job: Json) -> str:
    """A job's name, of an array with its index: as it can be called, too."""
    return text.safe(job["name"]) + (f"[{job['array_index']}]" if job.get("array") else "")


def trouble(*replies: Json) -> None:
    """lab.yaml's, which concerns everybody; what several hosts say of it, once."""
    for said in dict.fromkeys(str(reply.get("trouble", "")) for reply in replies):
        if said:
            output.warn(text.safe(said))


def unattended(reply: Json) -> None:
    """Of what is in line: on the host that was asked, cron does not look at it."""
    if said := reply.get("unattended"):
        output.warn(text.safe(str(said)))


@contextmanager
def submitting() -> Iterator[None]:
    """^C takes nothing back, nor does a connection that is lost: a host that has the request goes through with it.
    What is, or may be, in line is said."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        reply = interrupt.reply if isinstance(interrupt, Interrupted) else None
        jobs = (reply or {}).get("jobs", [])
        if jobs:
            which = jobs[0]["name"] + (f", {len(jobs)} jobs," if len(jobs) > 1 else "")
            output.note(f"\n  {which} is in line all the same: mlbox cancel {jobs[0]['name']}")
        else:
            output.note("\n  it may be in line: mlbox jobs")
        raise
    except (errors.NotConnected, errors.NotLetIn):
        raise
    except errors.Unreachable as error:
        lost = "if the connection was lost on the way, it may be in line: mlbox jobs, before you submit it again"
        raise errors.Unreachable(error.message, f"{error.hint}\n{lost}".lstrip("\n")) from None
