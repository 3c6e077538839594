"""Every path on a host, and what stands there of a job.

    ROOT/                                  the user's data home, or the folder that a lab shares
      mlbox.json, lab.yaml                 which ROOT this is; what people decide (host/lab.py)
      drained/<host>, paused/<queue>       a person's word: nothing starts there (whose, when, why)
      users/                               as open as ROOT itself, and sticky
      users/<user>/jobs/<aa>/<ulid>/       a job or a session
          spec.json                        write-once: what was asked for (no secret in it)
          secret.json                      0600: the values of its environment
          ev/000001 …                      write-once slots, exclusively created: the truth (host/slots.py)
          attempts/<n>/                    0700: output.log or log/, keeper.log, work/ (the code, and what it made)
      users/<user>/ready/<queue>/…         hints: waiting jobs in their order (host/ready.py)
      users/<user>/on/<host>/              one writer: this user's ticks on that host
          live/<ulid>                      hint: a job or session that the host runs, as others need to know it
          live/<ulid>.ending               beside it, by any host: it was told to end
          making/<ulid>                    what is being made or moved, and by which process
          parts/                           files on their way into folders that vanish when they are empty
          host.json                        inventory, the beat, and what it passes over (host/unable.py)
          reverse.json                     the key it dials out with, where nobody dials it (host/reverse.py)
          usage.json, waits.json           GPU time used; why jobs wait
          lab.json                         the last good lab.yaml (host/lab.py)
          look.json                        how far a long line was looked through (host/look.py)
          awaited.json                     which jobs of awaited arrays have ended (host/awaited.py)
      users/<user>/via/<host>.json         where that host's reverse tunnels end
      users/<user>/pruning/<ulid>          this ended job is being removed (host/pruning.py)
      users/<user>/code/<sha256>.tgz       code as it was submitted
      users/<user>/archive/<day>.<host>.jsonl    ended jobs, one line each
      users/<user>/home/, environments/    $HOME inside containers; layers of the process runtime
    /tmp/mlbox-<uid>/<id>/                 this boot's: sockets, tokens, keys, keeper.lock; gone with the job
    /tmp/mlbox-<uid>/tick-<root>.*, *.lock  ticks' words to each other; what is done by one process at a time
    /tmp/mlbox-<uid>/tick-<root>.*.aside   engines that are left alone for a while (host/engines/aside.py)
    /tmp/mlbox-<uid>/cron.heard            when cron called last (host/cron.py)
    /tmp/mlbox-<uid>/<id>.share, .control  who may join a session; its owner's word to its keeper (host/sharing.py),
                                           or to its tunnel's end where that is, which holds <id>.door
    /tmp/mlbox-<uid>/<id>.s/               what laptops dial: its sockets by names that no container can take
    /tmp/mlbox-<uid>/<id>.calls            where a keeper with a reverse tunnel answers for its host (host/reverse.py)
    /tmp/mlbox-<uid>.shared/<ulid>/        a session's door, and its colleagues' sockets; gone with the last of them
    /tmp/mlbox-leases/<uuid>               one kernel lock per GPU, all users' (host/lease.py)

The per-boot folder is local because sockets and locks are this kernel's, and in /tmp because a socket's
path must stay under 108 bytes. It is ours alone: 0700, owner checked, no link followed.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import ids
from mlbox.core.job import JobSpec
from mlbox.core.slots import Writer
from mlbox.host import files, here, processes
from mlbox.host.idle import name_of_ticks
from mlbox.host.job import Job

Json = dict[str, Any]
ENDING = ".ending"


class Store:
    """One ROOT as one user sees it from one host. `dry`: for a call that changes nothing, nor what other calls mend or
    note on their way (a sweep, lab.yaml as it was read)."""

    def __init__(self, root: Path | None = None, dry: bool = False) -> None:
        self.root, self.dry = root or here.data_home(), dry
        self.user, self.host = here.user_name(), here.host_name()
        self._is_ours = False

    def own(self, user: str = "") -> Path:
        """A user's place. Raises HostUnready where this user's is another's: what stands there would be run as us."""
        place = self.root / "users" / (user or self.user)
        if place.name == self.user and not self._is_ours:
            self._is_ours = _is_ours(place)
        return place

    def on(self, host: str = "", user: str = "") -> Path:
        """What a user's ticks on a host write."""
        return self.own(user) / "on" / (host or self.host)

    @property
    def live(self) -> Path:
        return self.on() / "live"

    @property
    def home(self) -> Path:
        return self.own() / "home"

    @property
    def environments(self) -> Path:
        return self.own() / "environments"

    def boot_folder(self) -> Path:
        return files.private_folder(here.boot_folder())

    def of_ticks(self, kind: str) -> Path:
        """What this user's ticks in this ROOT have in the per-boot folder."""
        return self.boot_folder() / f"{name_of_ticks(str(self.root))}.{kind}"

    def job(self, job: str, owner: str = "") -> Job:
        if not ids.is_ulid(job):
            raise errors.NotFound(f"{job!r} is not a job's id")
        folder = self.own(owner) / "jobs" / ids.shard(job) / job
        return Job(job, owner or self.user, folder, here.boot_folder() / job[-8:].lower())

    def reserve(self, job: Job) -> None:
        """The folder of this boot for a job to be: a keeper's lock can be taken in it before anybody finds the job."""
        self.boot_folder()
        for folder in (job.boot_folder, job.sockets, job.conf, job.logs):
            files.own_folder(folder)

    def create(self, job: Job, spec: JobSpec, queued: bool) -> None:
        """On return its spec is on disk, flushed; nothing finds it yet. Not `queued`: it starts here and now. Raises
        Refused for more than is read back."""
        public = spec.without_secrets().to_wire()
        # Not the content of .vsix files: they are large.
        public["work"]["extension_files"] = dict.fromkeys(spec.work.extension_files, "")
        told = json.dumps(public).encode()
        secret = json.dumps(spec.secrets()).encode() if queued and any(spec.secrets().values()) else b""
        if max(len(told), len(secret)) > files.MAX_FILE:
            hint = "put long values, scripts and lists into files of the code"
            raise errors.Refused(f"its variables, packages and scripts are more than {files.MAX_FILE >> 10} KiB", hint)
        mode = 0o755 if queued else 0o700  # a colleague may look at what waits; its secrets and output are 0600, 0700
        for folder in (job.folder / "ev", job.folder / "attempts"):
            files.make_folder(folder, 0o700)
        (job.folder / "ev").chmod(mode)
        job.folder.chmod(mode)
        if secret:
            files.write_whole(job.folder / "secret.json", secret)
        files.write_whole(job.folder / "spec.json", told, 0o644 if queued else 0o600)
        for folder in (job.folder, job.folder.parent, job.folder.parent.parent):
            files.sync_folder(folder)

    def own_place(self) -> None:
        """This user's folder in ROOT is there, and this user's. Raises HostUnready where somebody else was first."""
        self.open_users()
        own = self.own()
        with suppress(FileExistsError):
            own.mkdir(mode=0o755)
            files.sync_folder(own.parent)
        self.own()

    # ---- hints, all of this user's on this host: found again by the next sweep of it after a crash

    @property
    def making(self) -> Path:
        return self.on() / "making"

    def mark_making(self, job: Job, moved: bool = False) -> None:
        """It is about to be made, or moved; should this process die on the way, the next sweep does the rest."""
        self.own_place()
        files.make_folder(self.making)
        writer = here.this_writer()
        said = [writer.host, writer.boot, writer.pid, writer.started, *(["moved"] if moved else [])]
        files.write_whole(self.making / job.id, json.dumps(said).encode())

    def is_moved(self, job: Job) -> bool:
        """It was there before whoever is at it began: where no log of it is to be seen, it is not seen just now."""
        document = files.read_json(self.making / job.id)
        return isinstance(document, list) and document[4:] == ["moved"]

    def unmark_making(self, job: Job) -> None:
        (self.making / job.id).unlink(missing_ok=True)

    def left_in_making(self) -> list[Job]:
        """Jobs whose maker has died."""
        left = []
        for name in _names(self.making):
            if ids.is_ulid(name):
                document = files.read_json(self.making / name)
                if not isinstance(document, list) or len(document) < 4 or here.is_dead(Writer(*document[:4])):
                    left.append(self.job(name))
        return left

    def sweep_torn(self) -> None:
        """Halves of files that a process of this host's was writing when it was killed; words to what has ended."""
        for folder in (self.on(), self.live, self.making, self.parts):
            for name in _names(folder):
                pid = name.rpartition(".")[2]
                if name[0] == "." and pid.isdigit() and not processes.started(int(pid)):
                    (folder / name).unlink(missing_ok=True)
        live = _names(self.live)
        for name in live:
            if name.endswith(ENDING) and name[: -len(ENDING)] not in live:
                (self.live / name).unlink(missing_ok=True)

    @property
    def parts(self) -> Path:
        """Where files are written that are then moved into folders which are to vanish when empty."""
        return self.on() / "parts"

    def mark_live(self, job: Job, record: Json) -> None:
        """The hint that this host runs it: what a sweep, a status and other users' schedulers look for."""
        files.make_folder(self.live)
        files.write_whole(self.live / job.id, json.dumps(record).encode(), 0o644)

    def is_live(self, job: Job) -> bool:
        return (self.live / job.id).exists()

    def mark_ending(self, job: Job, host: str) -> None:
        """It was told to end, as is on record: schedulers reckon with its room.

        A file of its own, for the hint is its host's to write and to remove."""
        hint = self.on(host) / "live" / job.id
        with suppress(OSError):
            if hint.exists():
                hint.with_name(job.id + ENDING).touch(mode=0o644)

    def mark_fenced(self, job: Job, host: str) -> None:
        """A person said that the host is gone: nobody reckons with this any more, and should the host come back, its
        next sweep ends what is left of it."""
        record = {**(self.live_record(job, host) or {}), "fenced": True}
        files.make_folder(self.parts)  # in the other's folder its sweep would take the half of a file for a dead one's
        files.write_whole(self.on(host) / "live" / job.id, json.dumps(record).encode(), 0o644, self.parts)

    def is_fenced(self, job: Job, host: str = "") -> bool:
        return bool((self.live_record(job, host) or {}).get("fenced"))

    def live_record(self, job: Job, host: str = "") -> Json | None:
        record = files.read_json(self.on(host) / "live" / job.id)
        return record if isinstance(record, dict) else None

    def open_users(self) -> None:
        """Whoever may write to a lab's ROOT finds a place in it, and can't take another's (sticky, like /tmp)."""
        users = self.root / "users"
        with suppress(FileExistsError):
            users.mkdir(parents=True)
            openness = stat.S_IMODE(self.root.stat().st_mode)
            if openness & 0o022:
                users.chmod(openness | stat.S_ISVTX)

    def forget(self, job: Job) -> None:
        """Undo `create` for a job that never came to be claimed."""
        import shutil  # with all the ways to compress that it knows; nobody's start waits for them

        self.end(job)
        shutil.rmtree(job.folder, ignore_errors=True)

    def end(self, job: Job) -> None:
        """It is over here, and on record as such: nothing needs to find it among the live ones any more."""
        self.clear(job)
        for name in (job.id + ENDING, job.id):  # the one that all is found by goes last
            (self.live / name).unlink(missing_ok=True)

    def clear(self, job: Job) -> None:
        """Nothing runs for it any more: its logs are kept, its tokens and sockets are not."""
        import shutil

        logs = files.logs(job.logs)
        if logs:
            with suppress(OSError):  # a log that can't be kept (a full disk) doesn't keep it from ending
                kept = job.attempt(max(1, job.state().attempt)) / "log"
                kept.mkdir(parents=True, exist_ok=True)
                for path in logs:
                    (kept / path.name).write_bytes(files.end(path))
        job.clear_shares()
        job.calls.unlink(missing_ok=True)
        shutil.rmtree(job.dialled, ignore_errors=True)
        for folder in (job.conf, job.boot_folder, job.boot_folder):  # after an error it goes on with what is left
            with suppress(RecursionError):  # folders in folders, and what a container's root owns, stay
                shutil.rmtree(folder, ignore_errors=True)

    def shared_jobs(self) -> list[Job]:
        """Sessions of this user's that have a door on this host, wherever they run."""
        folder = here.boot_folder().with_suffix(".shared")
        return [self.job(name) for name in _names(folder) if ids.is_ulid(name)] if files.is_own(folder) else []

    def live_jobs(self) -> list[Job]:
        """This user's jobs and sessions on this host that have not ended, oldest first."""
        return [self.job(n) for n in _names(self.live) if ids.is_ulid(n)]


def _is_ours(place: Path) -> bool:
    """Whether this user's place is there. Raises HostUnready where it is another's."""
    try:
        found = place.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # of the last, nothing in it can be read either
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        hint = "somebody else made it: ask its owner, or an administrator, to remove it"
        raise errors.HostUnready(f"{place} is not a folder of yours, so nothing in it is believed", hint)
    return True


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
