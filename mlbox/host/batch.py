"""The keeper of a job: from its claim to the end of one attempt.

    claim     by the tick (host/tick.py), which holds the GPU leases and keeper.lock, and forks this
    prepare   image and layer as for a session; the code unpacked; output.log opened on the share
    start     the runner (host/runner.py) gets the leases; event `started`
    end       the runner's record, or its lock free without one: one event, by core/verdict.py

Told to stop by SIGTERM, it looks into the log for the word that explains it (cancel_requested, preempt_requested).
A killed keeper is replaced by the next tick or call on this host (`rescue`): the runner goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, TypeVar

from mlbox import errors
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.core.verdict import Outcome
from mlbox.host import attempts, code, engines, here, keeping, lab, lease, processes, runner, slots, store
from mlbox.host.attempts import Attempt
from mlbox.host.job import Job
from mlbox.host.prepare import Ready, prepare, write_accounts
from mlbox.host.run import Cancel, Cancelled, Signals

Json = dict[str, Any]
T = TypeVar("T")
_PATIENCE = 600.0  # s that an end waits for an engine that does not answer; then it is a later tick's (`rescue`)
_PAUSE = 2.0
_ORPHAN = 20.0  # s; the engine may be busy with others


class Batch:
    def __init__(self, attempt: Attempt, leases: dict[str, int]) -> None:
        self.attempt, self.job, self.spec, self._leases = attempt, attempt.job, attempt.spec, leases
        self.engine = engines.by_name(self.spec.work.runtime, attempt.found)
        self.signals = Signals()
        keeping.sign(self.job.keeper_pid)
        keeping.stay_young(self.job, lambda: attempt.leases)
        if lab.rules(attempt.found).lab.host(attempt.found.host).reverse:
            keeping.listen(self.job)

    # ---- from the claim ----------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._start()
        except Cancelled:
            self._end(Outcome(stopped=True))
            return
        except errors.HostUnready as error:
            self._end(attempts.not_started(self.attempt, error))
            return
        except Exception as error:  # a bug, too: without an end the job would be tried for ever
            import traceback

            traceback.print_exc()
            self._end(Outcome(error=error.message if isinstance(error, errors.MlboxError) else str(error)))
            return
        self._watch(time.monotonic())

    def _start(self) -> None:
        work = replace(self.spec.work, jupyter="no", vscode="no")
        note = self.attempt.folder / "progress"
        cancel = Cancel((self.signals.stop_r,))
        made = prepare(self.engine, self.job, work, self.attempt.identity, self._say(note), cancel, guest=False)
        folder = self._folder()
        argv, environment = self._command(made, folder)
        output, limit = self.attempt.folder / "output.log", self.spec.output_limit << 20
        place, grace = self.job.boot_folder, self.spec.grace
        self._launch(runner.Command(self.job.id, argv, environment, folder, place, output, limit, grace))
        with contextlib.suppress(OSError):
            note.unlink()
        self._say_started()

    def _launch(self, command: runner.Command) -> None:
        """The runner is born with its lock: there is no moment in which a sweep could take it for dead."""
        lock = os.open(self.attempt.runner_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            keeping.detach(lambda: runner.run(command), None, (lock, *self._leases.values()))
        finally:
            os.close(lock)

    def _say_started(self) -> None:
        """The share may be away or slow: that does not end what runs already."""
        with contextlib.suppress(OSError, slots.Unsettled):
            facts = {"at": time.time(), "uptime": processes.uptime()}
            self.job.append("started", facts, self.attempt.number, patience=1)

    def _say(self, note: Path) -> engines.Say:
        said = [""]

        def say(text: str, detail: str = "") -> None:
            if text != said[0]:  # for `mlbox show`: what a job that has not started yet is doing
                said[0] = text
                with contextlib.suppress(OSError):
                    note.write_text(text)

        return say

    def _folder(self) -> Path:
        """Where the command runs: the host's folder that was named, or the attempt's own with the code in it."""
        if self.spec.folder:
            folder = Path(os.path.expanduser(self.spec.folder))
            if not folder.is_dir():
                raise errors.Refused(f"there is no folder {folder} on {here.host_name()}")
            return folder
        folder = self.attempt.folder / "work"
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.spec.code:
            code.unpack(self.attempt.found, self.spec.code, folder)
        return folder

    def _command(self, made: Ready, folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
        spec, work = self.spec, self.spec.work
        home = self.attempt.found.home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = {
            "MLBOX_SESSION": self.job.id, "MLBOX_JOB": self.job.id, "MLBOX_ATTEMPT": str(self.attempt.number),
            "MLBOX_ARRAY_INDEX": str(spec.array_index), **self.engine.visible(self.attempt.gpus),
        }  # fmt: skip
        at_home = self.engine.paths(self.job.boot_folder, folder, home, work).home
        write_accounts(self.job, made.facts, at_home)
        path = {"PATH": made.facts.path} if made.facts.path else {}
        inside = {"PYTHONUNBUFFERED": "1", "HOME": at_home, **path, **work.env, **own}
        run = engines.Run(
            self.job.id, work.name, made.image, work.user, self.attempt.gpus, spec.command, self.job.boot_folder,
            folder, home, work.mounts, work.engine_args, inside,
        )  # fmt: skip
        argv, added = self.engine.batch(run)
        environment = {name: value for name, value in os.environ.items() if name != processes.APART}
        return argv, {**environment, **added}

    # ---- to the end --------------------------------------------------------------------------------------

    def _watch(self, since: float) -> None:
        """Until the runner has ended, which is when its lock is free; `since`: monotonic time at which the time limit
        began."""
        done_r, done_w = os.pipe()

        def awaited() -> None:
            try:
                with open(self.attempt.runner_lock, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH)
            finally:  # whatever became of it: its end is the end of the pipe
                os.close(done_w)

        threading.Thread(target=awaited, daemon=True).start()
        limit = self.attempt.time_limit
        cancel = Cancel((done_r, self.signals.stop_r))
        cancel.wait(max(0.0, since + limit - time.monotonic()) if limit else None)
        timeout = False
        if not Cancel((done_r,)).wait(0):
            timeout = not Cancel((self.signals.stop_r,)).wait(0)
            keeping.tell_process(self.attempt.runner_lock, self.attempt.runner_pid, "runner")
            Cancel((done_r,)).wait(None)
        outcome = self._patiently(lambda: attempts.outcome(self.attempt, self.engine))
        self._end(replace(outcome, timeout=timeout))

    def adopt(self, state: State, elapsed: float) -> None:
        """Take over from a killed keeper."""
        if state.name == "claimed":
            self._say_started()
        if state.requested:  # the word came when nobody was there to hear it
            os.kill(os.getpid(), signal.SIGTERM)
        self._watch(time.monotonic() - elapsed)

    def _end(self, outcome: Outcome) -> None:
        """The leases are held until nothing is left that could use the GPUs, and not while a hung share is awaited."""
        self._patiently(lambda: self.engine.remove(self.job.id, 0))
        lease.drop(self._leases)
        attempts.finish(self.attempt, outcome)
        self.attempt.after()

    def _patiently(self, ask: Callable[[], T]) -> T:
        """The engine may be away for a while (restarted, switched off), and what it ran may run on."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return ask()
            except errors.HostUnready as error:
                if time.monotonic() > deadline:
                    raise
                print(f"the engine is asked again in a moment: {error}", file=sys.stderr)
                time.sleep(_PAUSE)


def rescue(found: store.Store, job: Job, state: State, spec: JobSpec, keeper_lock: int) -> bool:
    """Adopt a running job without a keeper, or record its end; True when it lives on, and its new keeper has the
    lock. -1: the folder of this boot is gone, and the lock with it."""
    facts = state.facts
    attempt = Attempt(
        found, job, spec, state.attempt, tuple(facts.get("gpus", ())), int(facts.get("share", 0)),
        int(facts.get("time_limit", 0)), lambda: _tick(found),
    )  # fmt: skip
    same_boot = facts.get("boot") == processes.boot_id() and facts.get("host") == found.host
    if same_boot and keeper_lock >= 0 and attempt.runs():
        elapsed = processes.since(facts.get("uptime"))
        log = attempt.folder / "keeper.log"
        keeping.detach(lambda: Batch(attempt, {}).adopt(state, elapsed), log, (keeper_lock,))
        return True
    engine = engines.by_name(spec.work.runtime, found)
    if same_boot and (job.boot_folder / "exit.json").exists():
        outcome = attempts.outcome(attempt, engine)
    else:
        outcome = Outcome(lost="its keeper and its runner were killed" if same_boot else "the host was restarted")
    _remove(engine, job)
    attempts.record(attempt, outcome)
    return False


def superseded(found: store.Store, job: Job, spec: JobSpec) -> bool:
    """It is another host's since, or in line again: what is left of it here ends, and counts for nothing."""
    _remove(engines.by_name(spec.work.runtime, found), job)
    found.end(job)
    return False


def _remove(engine: engines.Engine, job: Job) -> None:
    """What nobody keeps any more. The engine's own command may have outlived its runner, and be about to start a
    container that nobody would ever see again: until it has ended, it is looked again."""
    deadline = time.monotonic() + _ORPHAN
    engine.remove(job.id, 0)
    while processes.marked(job.id) and time.monotonic() < deadline:
        time.sleep(0.1)  # it is nobody's child here: there is no event to await
        engine.remove(job.id, 0)


def _tick(found: store.Store) -> None:
    from mlbox.host import tick  # which sweeps, and so imports this

    tick.again(found)
