"""Which hosts of the lab could ever run a job: what none could is refused, in words that say what would fit; and which
others are to be told of one that this host does not start."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from mlbox import errors
from mlbox.core import text
from mlbox.core.lab import Lab
from mlbox.core.resources import HostFacts, Resources, fits, would_fit
from mlbox.core.schedule import unserved
from mlbox.host import inventory, lab, store, view


def check(found: store.Store, rules: lab.Rules, queue: str, asked: Resources, output_limit: int = 0) -> list[HostFacts]:
    """The hosts of the lab as they are known, this one first. Raises Refused, NotFound; HostUnready without rules."""
    if not rules.usable:
        raise errors.HostUnready(rules.trouble, "mend lab.yaml first")
    refusal = rules.lab.refusal(found.user, queue, asked, output_limit)
    if refusal:
        kind = errors.Refused if queue in rules.lab.queues else errors.NotFound
        raise kind(refusal, "queues: " + ", ".join(rules.lab.queues))
    hosts = _hosts(found, rules.lab)
    names = {*rules.lab.hosts, *(host.name for host in hosts)}
    for name in asked.hosts:
        if name not in names:
            raise errors.NotFound(
                f"there is no host {text.safe(name)} in the lab", "hosts: " + ", ".join(sorted(names))
            )
    why = unserved(queue, rules.lab, hosts)
    if why:
        raise errors.Refused(why, "lab.yaml says who serves what")
    serving = [host for host in hosts if queue in host.queues]
    hint = would_fit(asked, serving)
    unknown = set(rules.lab.hosts) - {host.name for host in hosts}  # no tick there yet: one of them may fit
    if hint and not unknown:
        reasons = list(dict.fromkeys(fits(asked, host) for host in serving))
        why = reasons[0] if len(serving) == 1 else "no host of the lab could ever run this: " + _together(reasons)
        raise errors.Refused(why, hint)
    return hosts


def elsewhere(
    found: store.Store, rules: Lab, queue: str, asked: Resources, hosts: Iterable[HostFacts] | None = None
) -> list[str]:
    """What laptops call the other hosts that could start it; not those that can't be dialled, and no silent ones, of
    which each would cost ssh's whole time-out. `hosts`: as they are known, where that was read."""
    known = view.published(found, rules, view.known_users(found)) if hosts is None else hosts
    open_ = [host for host in known if host.name != found.host and not host.away and queue in host.queues]
    others = [host.name for host in open_ if not fits(asked, host)]
    return [ssh for name in others if (ssh := rules.ssh_name(name))]


def others(found: store.Store, rules: Lab) -> list[str]:
    """What laptops call the other hosts that start anything now, whatever it is: told when what left the line may have
    held up jobs of any queue."""
    known = view.published(found, rules, view.known_users(found))
    return lab.others(found, [host.name for host in known if not host.away])


def _together(reasons: list[str]) -> str:
    """`it asks for 3 GPUs, and a has 1, b has no GPU`: what is asked for once, and of the first few that lack it."""
    lacking: dict[str, list[str]] = {}
    for reason in reasons:
        asked, _, lack = reason.partition(", and ")
        lacking.setdefault(asked, []).append(lack)
    said = (f"{asked}, and " + ", ".join(lacks[:3]) if lacks[0] else asked for asked, lacks in lacking.items())
    return "; ".join(islice(said, 3))


def _hosts(found: store.Store, rules: Lab) -> list[HostFacts]:
    gpus, _ = inventory.gpus(found)
    others = view.published(found, rules, view.known_users(found))
    return [view.facts(found, rules, tuple(gpus)), *(host for host in others if host.name != found.host)]
