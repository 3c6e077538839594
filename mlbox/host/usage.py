"""GPU time that a user's jobs and sessions have used on this host: what fair share is computed from.

    users/<user>/on/<host>/usage.json    {"seconds": GPU-seconds, decayed to "at", "at": this host's clock}

One number per user and host, so that a tick reads no history. A crash in between forgets one job's use, which
shifts a fraction of fairness and nothing else.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from contextlib import suppress
from typing import Any

from mlbox.core.log import State
from mlbox.host import files, lab, store
from mlbox.host.job import Job

Json = dict[str, Any]
_MOST = 1e12  # s


def add(found: store.Store, job: Job, state: State) -> None:
    """Count the attempt that the caller has just ended: whoever wrote its end counts it, and so it is counted once. As
    what runs is (core/schedule/order.py): shares of one GPU once, and no time beyond the half-life, which also bounds
    what a clock that was set on the way makes of it."""
    gpus, claimed = state.facts.get("gpus", ()), state.facts.get("claimed_at")
    if not gpus or state.facts.get("host") != found.host or not isinstance(claimed, (int, float)):
        return
    now, half_life = time.time(), lab.rules(found).lab.half_life
    with suppress(OSError):  # a fraction of fairness
        since = _also_held(found, job, gpus[0]) if state.facts.get("share") else now
        _add(found, len(gpus) * min(max(0.0, min(now, since) - claimed), half_life), now, half_life)


def _also_held(found: store.Store, job: Job, uuid: str) -> float:
    """Since when another share of this GPU has been this user's; from then on it is counted at that one's end."""
    records = [found.live_record(other) or {} for other in found.live_jobs() if other != job]
    starts = [record.get("started") for record in records if uuid in record.get("gpus", ())]
    return min((float(start) for start in starts if isinstance(start, (int, float))), default=math.inf)


def _add(found: store.Store, seconds: float, now: float, half_life: int) -> None:
    with (found.boot_folder() / "usage.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = found.on() / "usage.json"
        used = decayed(files.read_json(path), now, half_life) + seconds
        files.write_whole(path, json.dumps({"seconds": used, "at": now}).encode(), 0o644)


def decayed(document: Any, now: float, half_life: int) -> float:
    """What a usage.json amounts to now. Hosts' clocks may differ: age is never negative."""
    if not isinstance(document, dict):
        return 0.0
    seconds, at = document.get("seconds"), document.get("at")
    # Anybody's file: a number beyond all bounds, or none at all (NaN), would stop everybody's ticks.
    if not isinstance(seconds, (int, float)) or not isinstance(at, (int, float)):
        return 0.0
    if not (0 <= seconds < _MOST and 0 <= at < _MOST):
        return 0.0
    return float(seconds * 0.5 ** (max(0.0, now - at) / half_life))
