"""The keeper: the process on a host that stays with one session from its claim to its end.

    fork   by the handler of `session` (host/handlers/session.py), detached, holding the GPU leases
    start  prepare the image, write the guest's files, start it, hand it the leases, wait until all answer
    ready  event `started`; from here on the caller may go
    end    SIGTERM (shutdown), or the guest is gone: remove the container, event `finished`, free the leases

keeper.lock is a kernel lock that a living keeper holds: whether a keeper lives is asked of the kernel, never of
a pid file, and its end can be awaited. Until `started`, the end of the caller's pipe means: undo everything.
A keeper that was killed is replaced (`adopt`) by the next call that comes to this host; the guest, which
holds the leases too, hands them back.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import services, text, wire
from mlbox.core.reverse import Meeting
from mlbox.core.session import Spec
from mlbox.host import code, engines, failure, files, here, keeping, lease, os_error, processes, reverse, sharing, store
from mlbox.host.behind import Here
from mlbox.host.caller import Caller
from mlbox.host.job import Job
from mlbox.host.link import GuestLink
from mlbox.host.prepare import Ready, prepare, write_accounts
from mlbox.host.run import Cancel, Signals
from mlbox.host.usage import add as add_usage

Json = dict[str, Any]
_STOP_GRACE = 10.0  # s a guest gets to end its services
_RETURN = 15.0  # s an adopted guest gets to come back


@dataclass(frozen=True)
class Claim:
    """What the handler hands to the keeper."""

    found: store.Store
    job: Job
    spec: Spec
    identity: str  # of the image; empty: to be fetched
    gpus: tuple[str, ...]
    number: int = 1  # of the attempt
    code: str = ""  # where the content of its .vsix files is, if it waited in a queue (host/code.py)
    time_limit: int = 0  # s from `started`; 0: none


class Keeper:
    def __init__(self, claim: Claim, leases: dict[str, int], out: int = -1, caller: int = -1) -> None:
        self.claim, self.job, self.spec = claim, claim.job, claim.spec
        self.leases = leases
        self.engine = engines.by_name(self.spec.runtime, claim.found)
        self.signals = Signals()
        self.caller = Caller(out, caller, self.signals.stop_r)
        self.guest = GuestLink(leases, self.job.id)
        keeping.sign(self.job.keeper_pid)
        keeping.stay_young(self.job, lambda: list(leases))
        self._trouble: Json = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._tunnel: reverse.Tunnel | None = None
        self._sharing: sharing.Sharing | None = None

    # ---- the life of a session -------------------------------------------------------------------

    def run(self) -> None:
        """From the claim to the end."""
        try:
            info = self._start()
            limit = {"uptime": processes.uptime(), "ends": info["ends"]} if self.claim.time_limit else {}
            files.write_whole(self.job.conf / "session.json", json.dumps(info).encode())  # who reads "started" may come
            self._sharing = sharing.begin(self.job, Here(self.job, info))  # and share it
            self._append("started", {"services": sorted(self.guest.services), **limit})
            self.caller.send({"ready": info})
            self.caller.let_go()
        except errors.MlboxError as error:
            self._undo(error)
            return
        except OSError as error:
            self._undo(errors.StartFailed(f"{here.host_name()}: {error}", os_error.hint(error)))
            return
        self._end("finished", self._watch())

    def _undo(self, error: errors.MlboxError) -> None:
        try:
            self._end("failed", {"why": error.message}, grace=0)  # nobody has worked in it
        except (errors.MlboxError, OSError) as left:  # the caller hears the first reason, and that more is to be done
            print(f"not all could be removed: {left}", file=sys.stderr)
            error = type(error)(f"{error.message}\n  and not all could be removed: {left}", error.hint)
        self.caller.send(wire.encode_error(error))
        self.caller.let_go()

    def _start(self) -> Json:
        place = reverse.meeting(self.claim.found, self.spec.tunnel)
        wanted = self._with_extensions()
        ready = prepare(self.engine, self.job, wanted, self.claim.identity, self.caller.say, self.caller.cancel)
        folder = _user_folder(self.spec)
        home = self.claim.found.home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = self.engine.paths(self.job.boot_folder, folder, home, self.spec)
        plan = self._plan(ready, paths)
        self._write_conf(plan, ready, paths)
        self.guest.listen(self.job.sockets / "keeper.sock")
        reachable = services.reachable(plan, str(self.job.dialled), place.to_wire() if place else None)
        if place is not None:
            self._open_tunnel(place, reachable)
        argv = (ready.facts.python, "-I", "-S", f"{paths.run}/mlbox-host.pyz", "guest", f"{paths.run}/conf/guest.json")
        run = engines.Run(
            self.job.id, self.spec.name, ready.image, self.spec.user, self.claim.gpus, argv,
            self.job.boot_folder, folder, home, self.spec.mounts, self.spec.engine_args, {"MLBOX_SESSION": self.job.id},
            self.job.inside,
        )  # fmt: skip
        self.caller.send({"progress": {"text": "starting", "starting": reachable}})
        log = files.open_itself(self.job.logs / "guest.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._child = self.engine.start(run, log)
        os.close(log)
        self._await_services(set(plan.services))
        return self._info(ready, reachable)

    def _with_extensions(self) -> Spec:
        if not self.claim.code:
            return self.spec
        folder = self.job.boot_folder / "extensions"
        folder.mkdir(mode=0o700)
        try:
            code.unpack(self.claim.found, self.claim.code, folder)
            names = self.spec.extension_files
            found = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in names}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return replace(self.spec, extension_files=found)

    def _open_tunnel(self, place: Meeting, reach: Json) -> None:
        """From here on laptops come by the rendezvous, and words to this keeper by the log."""
        sockets = {name: facts["socket"] for name, facts in reach["services"].items()}
        tunnel = reverse.Tunnel(self.job, place, {**sockets, "guest": reach["guest_socket"]})
        tunnel.open()
        self._tunnel = tunnel
        keeping.listen(self.job)

    def _plan(self, ready: Ready, paths: engines.Paths) -> services.Plan:
        tokens = {name: secrets.token_urlsafe(24) for name in ("jupyter", "vscode", "guest")}
        login = "root" if self.spec.user == "root" else here.user_name()
        return services.plan(
            self.spec, ready.facts, session=self.job.id, login=login, run=paths.run, folder=paths.folder,
            home=paths.home, prefix=ready.prefix, tokens=tokens, env=self.engine.visible(self.claim.gpus),
        )  # fmt: skip

    def _write_conf(self, plan: services.Plan, ready: Ready, paths: engines.Paths) -> None:
        for folder in (self.job.kernels, self.job.guest, self.job.dialled):
            files.own_folder(folder)  # not made by a container's root, whose folders only root empties
        for name, content in {"guest.json": json.dumps(plan.guest), **plan.files}.items():
            files.write_whole(self.job.conf / name, content.encode())
        write_accounts(self.job, ready.facts, paths.home)
        shutil.copyfile(sys.argv[0], self.job.boot_folder / "mlbox-host.pyz")

    def _info(self, ready: Ready, reachable: Json) -> Json:
        """It holds tokens, so it lives in the per-boot folder only."""
        host_key = str(self.guest.services.get("ssh", {}).get("host_key", ""))
        found = services.described(
            reachable, self.spec, absent=ready.absent, gpus=self.claim.gpus, host_key=host_key, now=time.time(),
            limit=self.claim.time_limit,
        )  # fmt: skip
        return {"id": self.job.id, **found}

    def _await_services(self, wanted: set[str]) -> None:
        """Raises StartFailed or HostUnready with the first reason why they won't all be there, Cancelled."""
        deadline = time.monotonic() + self.spec.start_timeout + 30
        while not self.guest.all_ready(wanted):
            self._turn(deadline - time.monotonic())
            self.guest.let_dial(self.job, wanted)
            self.caller.cancel.check()
            for name, state in self.guest.failed().items():
                raise failure.of_service(name, state["why"], state.get("log", ""))
            if self._child is not None and self._child.poll() is not None:
                log = files.end(self.job.logs / "guest.log").decode(errors="replace")
                raise failure.ended_at_once(self.spec.runtime, self._child.returncode, log)
            if time.monotonic() > deadline:
                raise errors.StartFailed(
                    "the session's guest did not report in time", f"see {self.job.attempt(self.claim.number)}/log"
                )
            waiting = sorted(wanted - set(self.guest.services))
            if waiting:
                self.caller.say("waiting for " + ", ".join(services.TITLES[name] for name in waiting))

    def _turn(self, timeout: float | None) -> None:
        """Wait for anything to happen, and take it in."""
        self.guest.turn((self.signals.wake_r, *self.caller.cancel.descriptors), timeout)
        self.signals.drain()

    # ---- while it runs ---------------------------------------------------------------------------

    def _watch(self, elapsed: float = 0.0) -> Json:
        """Until the guest is gone, the owner says stop, or its time is over, of which `elapsed` seconds are; the log's
        facts of how it ended."""
        limit = self.claim.time_limit
        end = time.monotonic() + limit - elapsed if limit else math.inf
        while True:
            self._note_trouble()
            self._turn(end - time.monotonic() if limit else None)
            if Cancel((self.signals.stop_r,)).wait(0):
                return {"why": "shut down"}
            if not self.guest.connected:
                code = self._exit_code()
                return {"why": "its container or process ended" + (f" (exit {code})" if code is not None else "")}
            if time.monotonic() >= end:
                return {"reason": "timeout", "why": f"its time limit of {text.duration(limit)} was reached"}

    def _note_trouble(self) -> None:
        """Services that ended while the session goes on: `session info` says so."""
        trouble = {name: state["why"] for name, state in self.guest.failed().items()}
        if trouble != self._trouble:
            self._trouble = trouble
            with contextlib.suppress(OSError):  # a full disk costs the note, not the session
                files.write_whole(self.job.conf / "trouble.json", json.dumps(trouble).encode())

    def _exit_code(self, patience: float = 5) -> int | None:
        if self._child is None:
            return None
        try:
            return self._child.wait(patience)
        except subprocess.TimeoutExpired:
            return None

    # ---- the end ---------------------------------------------------------------------------------

    def _end(self, event: str, facts: Json, grace: float = _STOP_GRACE) -> None:
        """Everything of the session goes, then its end is on record, then its GPUs are free.

        What the engine can't remove, or a full disk can't record, is left for the next call to this host (sweep)."""
        if self._sharing is not None:
            self._sharing.close()
        if self._tunnel is not None:
            self._tunnel.close()
        self._remove(grace)
        over = self.claim.found.end
        try:
            if self._append(event, facts):
                add_usage(self.claim.found, self.job, self.job.state())
        except OSError as error:
            print(f"{event} is not on record: {error}", file=sys.stderr)
            over = self.claim.found.clear
        lease.drop(self.leases)
        over(self.job)

    def _append(self, event: str, facts: Json) -> bool:
        """False where this attempt has ended for the log: its host was declared gone."""
        return self.job.append(event, {"at": time.time(), **facts}, self.claim.number)

    def _remove(self, grace: float) -> None:
        """Again while the engine's command runs: one that has just begun makes its container only now."""
        self.engine.remove(self.job.id, grace)
        while self._child is not None and self._exit_code(0.2) is None:
            self.engine.remove(self.job.id, grace)

    # ---- a successor -----------------------------------------------------------------------------

    def adopt(self, elapsed: float) -> None:
        """Take over from a killed keeper: the guest comes to the new socket by itself, with the leases."""
        try:
            self.guest.listen(self.job.sockets / "keeper.sock")
            known = files.read_json(self.job.conf / "session.json")
            if isinstance(known, dict) and "via" in known:
                self._open_tunnel(Meeting.from_wire(known["via"]), known)
            if isinstance(known, dict):
                self._sharing = sharing.begin(self.job, Here(self.job, known))
            deadline = time.monotonic() + _RETURN
            while not self.guest.connected and time.monotonic() < deadline:
                self._turn(deadline - time.monotonic())
                if Cancel((self.signals.stop_r,)).wait(0):
                    break
            outcome = (
                self._watch(elapsed)
                if self.guest.connected
                else {"why": "its container or process ended without a keeper"}
            )
        except OSError as error:
            outcome = {"why": str(error)}
        self._end("finished", outcome)


def _user_folder(spec: Spec) -> Path:
    folder = Path(os.path.expanduser(spec.user_folder or "~/mlbox"))
    if not spec.user_folder:
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder
