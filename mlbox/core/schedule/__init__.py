"""What one host starts now, and why the rest waits: `plan(view, now)`, a pure function.

    order     the host's queues in their order; priority (among users, as far as lab.yaml lets them raise it); then
              users in turn, job by job, those who used less first, each user's by priority, rank and id. Another
              user's job that comes first keeps what it needs free for that user's own tick, and is never started by us
    back-fill EASY: the first job that has to wait for room (and is to wait here: reservation.py) gets the
              earliest time when time limits let it start, and GPUs; a job behind it starts only if it
              ends by then or stays off those. A job without time limit is endless. Where no end is known,
              the free GPUs among those that the first one needs are left free: it cannot starve, and a
              queue with a default time limit wastes less
    shares    several jobs on one GPU, by memory asked for; a GPU has shares or one job, never both
    preempt   the fewest running jobs, the youngest, of preemptible queues with less priority, and only
              when the room they leave is enough; each user's tick preempts that user's own jobs

Times are seconds on this host's clock. `not_before` and `started` may be another host's, and that clock any: a
back-off beyond the longest there is holds nobody up.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlbox.core.schedule.after import After, Ends
    from mlbox.core.schedule.hindrance import stuck, unserved
    from mlbox.core.schedule.limits import exceeded, limited
    from mlbox.core.schedule.line import plan
    from mlbox.core.schedule.order import in_order
    from mlbox.core.schedule.reservation import reserved_on
    from mlbox.core.schedule.startable import Startable
    from mlbox.core.schedule.view import Plan, Running, Start, View, Waiting, running
    from mlbox.core.schedule.words import short

__all__ = [
    "After",
    "Ends",
    "Plan",
    "Running",
    "Start",
    "Startable",
    "View",
    "Waiting",
    "exceeded",
    "in_order",
    "limited",
    "plan",
    "reserved_on",
    "running",
    "short",
    "stuck",
    "unserved",
]
# Each is imported when it is asked for: whoever only names a job's place in line plans nothing.
_HOME = {
    "After": "after", "Ends": "after", "exceeded": "limits", "limited": "limits", "plan": "line", "in_order": "order",
    "reserved_on": "reservation", "Startable": "startable", "short": "words",
    "stuck": "hindrance", "unserved": "hindrance",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"{__name__} has no {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'view')}"), name)
