"""Which jobs a tick has to read on behind: those that wait for something other than room."""

from __future__ import annotations

from mlbox.core.schedule.hindrance import dead, hindrance
from mlbox.core.schedule.limits import Tally
from mlbox.core.schedule.view import View, Waiting


class Startable:
    """Told the jobs of a line one by one, it says of each whether it could start if there were room, and then counts
    it as started: an array's limit is not reached twice. It only says how far to read; the plan decides."""

    def __init__(self, view: View, now: float) -> None:
        self._view, self._now, self._tally = view, now, Tally(view.lab, view.running)

    def could(self, job: Waiting) -> bool:
        view = self._view
        # Where nobody can start there is nothing to look for; what can never run is to be ended now.
        if job.queue in view.paused or view.host.drained or dead(job, view):
            return True
        wanted = job.resources.gpus_on(view.host)
        greedy = self._tally.greedy(job, wanted)[0] and not job.resources.gpu_share
        if hindrance(job, view, self._now) or self._tally.array_full(job) or greedy:
            return False
        self._tally.add(job, (f"{job.id}.{number}" for number in range(wanted)))
        return True
