"""The lab's limits when several hosts start jobs at once: counted once more, between the live hint and the claim.

    asking    the hint says that this host means to start the job, and is still looking
    look      all live hints anew. Who asks and has a smaller id counts; who asks and has a larger one is waited for,
              until it has gone on or withdrawn; what stays silent counts
    then      over a limit: the hint goes, and the job stays in line. Else it asks no longer, and is claimed

Of those that went on, the last to ask has seen all the others, so they are never too many. That is as good as the
filesystem shows a name that another host has just made: a limit is a policy, and no job is lost or doubled by it.
"""

from __future__ import annotations

import time

from mlbox.core.lab import Lab
from mlbox.core.schedule import Running, Waiting, exceeded
from mlbox.host import store, view

_PATIENCE, _PAUSE = 3.0, 0.05  # s


def over(found: store.Store, rules: Lab, job: Waiting, gpus: tuple[str, ...]) -> str:
    """Why the job, which asks, may not start after all; or nothing."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        others = [run for run in _all(found) if run.id != job.id]
        undecided = [run for run in others if run.asking and run.id > job.id]
        why = exceeded(rules, others, job, gpus)
        if not why or not undecided or time.monotonic() > deadline:
            return why
        if exceeded(rules, [run for run in others if run not in undecided], job, gpus):
            return why
        time.sleep(_PAUSE)


def _all(found: store.Store) -> list[Running]:
    return [run for user in view.known_users(found) for run in view.running_of(found, user)]
