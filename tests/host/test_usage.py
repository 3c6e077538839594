"""GPU time that has been used: as it is counted when a job ends, and while it runs, it is the same."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from mlbox.core import ids
from mlbox.core.gpu import Gpu
from mlbox.core.lab import Lab
from mlbox.core.log import State
from mlbox.core.resources import HostFacts
from mlbox.core.schedule import Running, View
from mlbox.core.schedule.order import used
from mlbox.host import files, store, usage, view
from mlbox.host.job import Job

HOUR = 3600.0


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def found(tmp_path: Path) -> store.Store:
    made = store.Store(tmp_path / "root")
    made.own_place()
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def begin(found: store.Store, clock: Clock, share: int = 0) -> tuple[Job, State]:
    job = found.job(ids.ulid(int(clock.now * 1000), os.urandom(10)))
    facts: dict[str, Any] = {"gpus": ["GPU-0"], "share": share}
    found.mark_live(job, {**facts, "started": clock.now})
    return job, State("started", {**facts, "host": found.host, "claimed_at": clock.now})


def end(found: store.Store, started: tuple[Job, State]) -> None:
    usage.add(found, *started)
    found.end(started[0])


def seconds(found: store.Store, clock: Clock) -> float:
    """As a tick reckons, without the decay (in which the order of ends would show)."""
    ended = files.read_json(found.on() / "usage.json") or {}
    host = HostFacts(found.host, (Gpu(0, "GPU-0", "A100", 81920),))
    running: list[Running] = list(view.running_of(found, found.user))
    usage_ = {found.user: float(ended.get("seconds", 0.0))}
    return used(View(host, Lab(), (), running, usage=usage_), clock.now)[found.user]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_shares_of_one_gpu_are_that_gpu_once_also_when_they_end(
    found: store.Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(usage, "decayed", lambda document, now, half_life: (document or {}).get("seconds", 0.0))
    begun, jobs = clock.now, []
    for _ in order:
        jobs.append(begin(found, clock, share=1024))
        clock.now += HOUR
    for number in order:
        assert seconds(found, clock) == pytest.approx(clock.now - begun)
        end(found, jobs[number])
        assert seconds(found, clock) == pytest.approx(clock.now - begun)
        clock.now += HOUR if number != order[-1] else 0
    assert seconds(found, clock) == pytest.approx(clock.now - begun)


def test_a_clock_that_was_set_on_the_way_counts_for_no_more_than_the_half_life(
    found: store.Store, clock: Clock
) -> None:
    """A host that booted in 1970, before it was told the time, would have kept its user last for months."""
    clock.now = 100.0
    begun = begin(found, clock)
    clock.now = 1e9
    before = seconds(found, clock)
    end(found, begun)
    assert seconds(found, clock) == before == Lab().half_life
