"""Every path on a host, and how its files are written.

    ROOT/                                 shared perhaps (an NFS home); $XDG_DATA_HOME/mlbox by default
      users/                              as open as ROOT itself, and sticky
      users/<user>/live/<host>/<ulid>     hint: a session of this user's that the host runs
      users/<user>/jobs/<aa>/<ulid>/      0700, the owner's
          spec.json                       write-once: what was asked for (no secret in it)
          ev/000001 …                     write-once slots, exclusively created: the truth
          attempts/1/                     keeper.log, log/ (the services' logs after the end)
      users/<user>/home/                  $HOME inside this user's containers
    /tmp/mlbox-<uid>/<id>/                this boot's: sockets, tokens, keys, keeper.lock; gone with the session
    /tmp/mlbox-leases/<uuid>              one kernel lock per GPU, all users' (host/lease.py)

The per-boot folder is local because sockets and locks are this kernel's, and in /tmp because a socket's
path must stay under 108 bytes. It is ours alone: 0700, owner checked, no link followed.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import ids, session

Json = dict[str, Any]
MAX_FILE = 1024 * 1024  # bytes read of any one small file on the share


def user_name() -> str:
    return getpass.getuser()


def host_name() -> str:
    return socket.gethostname().split(".")[0] or "localhost"


def data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mlbox"


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlbox"


def private_folder(path: Path) -> Path:
    """Make `path` 0700 and ours, or raise: a folder somebody else prepared in /tmp is not used."""
    with suppress(FileExistsError):  # something else of that name: told below
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise errors.HostUnready(f"{path} is not a folder of yours", "ask its owner, or an administrator, to remove it")
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def keep_young(folder: Path) -> None:
    """Systems that remove old files from /tmp leave these alone."""
    for top, _, names in os.walk(folder):  # unlike rglob, passes over what vanishes meanwhile
        for path in (top, *(os.path.join(top, name) for name in names)):
            with suppress(OSError):  # a container's root owns some; a socket in use is nowhere removed
                os.utime(path, follow_symlinks=False)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """The file appears whole or not at all (temporary name, fsync, rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _write_once(path: Path, content: bytes) -> None:
    """The file appears whole; FileExistsError where it is there already, whoever was faster."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_whole(temporary, content)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """A small regular file of JSON; None where it is absent, torn, too large or something else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EACCES):
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # before fdopen, which raises on a folder
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Job:
    """One session's folders."""

    id: str
    folder: Path
    boot_folder: Path

    @property
    def attempt(self) -> Path:
        return self.folder / "attempts/1"

    @property
    def sockets(self) -> Path:
        return self.boot_folder / "s"

    @property
    def conf(self) -> Path:
        return self.boot_folder / "conf"

    @property
    def logs(self) -> Path:
        return self.boot_folder / "log"

    @property
    def keeper_lock(self) -> Path:
        return self.boot_folder / "keeper.lock"

    @property
    def keeper_pid(self) -> Path:
        return self.boot_folder / "keeper.pid"

    def spec(self) -> session.Spec:
        document = read_json(self.folder / "spec.json")
        if not isinstance(document, dict):
            raise errors.NotFound(f"session {self.id} has no readable spec.json")
        return session.Spec.from_stored(document)

    def events(self) -> Iterator[Json]:
        """Complete slots in their order; a torn one (its writer died before its end mark) ends the log."""
        number = 1
        while True:
            event = read_json(self.folder / f"ev/{number:06}")
            if not isinstance(event, dict):
                return
            yield event
            number += 1

    def state(self) -> session.State:
        return session.fold(self.events())

    def append(self, event: str, facts: Mapping[str, Any]) -> bool:
        """Create the next slot; False where the event is not legal (any more) after what is there."""
        while True:
            state = self.state()
            if not session.may_follow(state.name, event):
                return False
            path = self.folder / f"ev/{state.slots + 1:06}"
            try:
                _write_once(path, json.dumps({"event": event, **facts}).encode() + b"\n")
                return True
            except FileExistsError:
                if not isinstance(read_json(path), dict):  # torn: slots appear whole, so nobody is writing it
                    path.unlink(missing_ok=True)


class Store:
    """One ROOT as one user sees it from one host."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or data_home()
        self.user, self.host = user_name(), host_name()

    @property
    def _own(self) -> Path:
        return self.root / "users" / self.user

    @property
    def live(self) -> Path:
        return self._own / "live" / self.host

    @property
    def home(self) -> Path:
        return self._own / "home"

    @property
    def environments(self) -> Path:
        return self._own / "environments"

    def boot_folder(self) -> Path:
        return private_folder(Path(f"/tmp/mlbox-{os.getuid()}"))

    def job(self, job: str) -> Job:
        if not ids.is_ulid(job):
            raise errors.NotFound(f"{job!r} is not a session's id")
        folder = self._own / "jobs" / ids.shard(job) / job
        return Job(job, folder, Path(f"/tmp/mlbox-{os.getuid()}") / job[-8:].lower())

    def reserve(self, job: Job) -> None:
        """The folder of this boot for a job to be: a keeper's lock can be taken in it before anybody finds the job."""
        self.boot_folder()
        for folder in (job.boot_folder, job.sockets, job.conf, job.logs):
            folder.mkdir(mode=0o700)

    def create(self, job: Job, spec: session.Spec) -> None:
        """On return its spec is on disk, and the hint that finds it."""
        self._open_users()
        for folder in (job.folder / "ev", job.attempt):
            folder.mkdir(mode=0o700, parents=True)
        job.folder.chmod(0o700)
        # Not the content of .vsix files: they are large, and a file above MAX_FILE is not read back.
        hidden = {"extension_files": dict.fromkeys(spec.extension_files, "")}
        public = {**spec.without_secrets().to_wire(), **hidden}
        write_whole(job.folder / "spec.json", json.dumps(public).encode())
        self.live.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self.live / job.id, b"")

    def _open_users(self) -> None:
        """Whoever may write to a lab's ROOT finds a place in it, and can't take another's (sticky, like /tmp)."""
        users = self.root / "users"
        with suppress(FileExistsError):
            users.mkdir(parents=True)
            openness = stat.S_IMODE(self.root.stat().st_mode)
            if openness & 0o022:
                users.chmod(openness | stat.S_ISVTX)

    def forget(self, job: Job) -> None:
        """Undo `create` for a session that never came to be claimed."""
        self.end(job)
        shutil.rmtree(job.folder, ignore_errors=True)

    def end(self, job: Job) -> None:
        """A session is over, and on record as such: nothing needs to find it among the live ones any more."""
        self.clear(job)
        (self.live / job.id).unlink(missing_ok=True)

    def clear(self, job: Job) -> None:
        """Nothing runs for a session any more: its logs are kept, its tokens and sockets are not."""
        if job.logs.is_dir() and job.attempt.is_dir():
            with suppress(OSError):  # a log that can't be read or kept (a full disk) doesn't keep it from ending
                shutil.copytree(job.logs, job.attempt / "log", dirs_exist_ok=True)
        shutil.rmtree(job.boot_folder, ignore_errors=True)

    def live_jobs(self) -> list[Job]:
        """This user's sessions on this host that have not ended, oldest first."""
        try:
            names = sorted(os.listdir(self.live))
        except OSError:
            return []
        return [self.job(n) for n in names if ids.is_ulid(n) and self.job(n).folder.is_dir()]
