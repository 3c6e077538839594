"""Where reverse tunnels end: the forced command of the key that a workstation dials in with (core/reverse.py).

    sshd has bound the fresh sockets before it runs this    rename each onto its lasting name, say `up`
    every few seconds                                       `up` again, by which the keeper knows that this lives
    stdin ends (the tunnel, or its keeper, is gone)         remove the names that are still this tunnel's
    a name is another's (a later tunnel of the session)     the same, and end sshd's process for this connection
    the folder was missing (a reboot empties /tmp)          make it; the next dial finds it

Colleagues come to a shared session here, by the word of the owner's own laptop (host/sharing.py). The key's holder can
let nobody in: neither record nor control is in its reach.

The words of the request are checked, and no other word of the key's holder is ever run.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlbox import errors
from mlbox.core import ids, reverse
from mlbox.host import files, here, keeping, lab, serve, store
from mlbox.host.job import Job

if TYPE_CHECKING:
    from mlbox.host.sharing import Sharing

_BEAT = 5.0  # s
_PATIENCE = 5.0  # s for ROOT
_UNSEEN = (0.1, 0.3, 0.6, 1.0)  # s until a session that was just made is looked for again
_ENDING = 60.0  # s from its tunnel's end until the log says that a session has ended


def main(host: str, root: str) -> int:
    """`host`: whose key it is; `root`: where its sessions are."""
    try:
        session, token, services = reverse.parse(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
        folder = here.boot_folder()
        existed = folder.is_dir()
        files.private_folder(folder)
    except errors.MlboxError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    names = {folder / reverse.fresh(session, token, s): folder / reverse.lasting(session, s) for s in services}
    serve.touch(sys.argv[0])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    held: dict[Path, int] = {}
    replaced, look = False, Look(session, host, root)
    doors = Doors(look, services)
    try:
        if not all(_is_socket(path) for path in names):
            why = "its SSH server lets no socket be forwarded" if existed else f"{folder} was missing, and is there now"
            print(f"{here.host_name()}: {why}", flush=True)
            return 1
        look.thread.join(_PATIENCE)
        if look.refusal:
            print(f"{here.host_name()}: {look.refusal}", flush=True)
            return 1
        for path, name in names.items():
            held[name] = os.lstat(path).st_ino
            os.replace(path, name)
        print("up", flush=True)
        _sweep(folder, reverse.lasting(session, ""))
        replaced = _stay(held, doors)
    finally:
        _remove(held, names)
        doors.leave()
    if replaced:
        _hang_up()
    else:
        doors.forget()
    return 0


class Look:
    """At whose the session is, in a thread: a ROOT that is not there, or hangs, keeps no tunnel down."""

    def __init__(self, session: str, host: str, root: str) -> None:
        self.session, self._host, self._root = session, host, root
        self.store: store.Store | None = None  # once it is known to be this host's
        self.refusal = ""  # why it gets no names: who has a key takes over no other host's sessions
        self.again()

    def again(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with suppress(OSError, errors.MlboxError):
            found = store.Store(Path(self._root))
            self.refusal = _by_logs(found, self.session, self._host)
            self.store = None if self.refusal else found


class Doors:
    """The session's door for colleagues, as long as its tunnel ends here; only of a session that is this host's.

    One end is at it, by a lock: one that was replaced may be left for some seconds."""

    def __init__(self, look: Look, services: Iterable[str]) -> None:
        self._look, self._services = look, services
        self._job: Job | None = None
        self._lock = -1
        self._kept: Sharing | None = None

    def open(self) -> None:
        """If it can be now; called again and again."""
        if self._kept is not None:
            return
        if self._look.store is None:
            if not self._look.thread.is_alive():
                self._look.again()
            return
        from mlbox.host import behind, sharing  # the tunnel is up by now

        self._job = self._look.store.job(self._look.session)
        if self._lock < 0:
            self._lock = keeping.taken(self._job.door_lock)
        if self._lock >= 0:
            self._kept = sharing.begin(self._job, behind.Far(self._look.store, self._job, self._services))

    def leave(self) -> None:
        if self._kept is not None:
            self._kept.leave()
        if self._lock >= 0 and self._job is not None:
            from mlbox.host import colleague

            if not colleague.recorded(self._job):
                self._job.clear_shares()
            os.close(self._lock)

    def forget(self) -> None:
        """Who might come, if it was the session that has ended: its tunnel ends first."""
        deadline = time.monotonic() + _ENDING
        while self._job is not None and self._job.share.exists() and time.monotonic() < deadline:
            with suppress(OSError, errors.MlboxError):
                if not self._job.state().live:
                    if keeping.taken(self._job.door_lock) >= 0:
                        self._job.clear_shares()
                    return
            time.sleep(_BEAT / 10)


def _by_logs(found: store.Store, session: str, host: str) -> str:
    """The same, by the logs of all whose sockets would have these names: they are of an id's end only, and whoever
    makes an id up can give it any."""
    job, name = found.job(session), reverse.lasting(session, "")
    pauses = iter(_UNSEEN)
    while not job.state().name:
        lab.identify(found.root)
        pause = next(pauses, None)
        if pause is None:
            return f"there is no session {session} in {found.root}, or it is not seen yet"
        time.sleep(pause)
    for one in sorted(filter(ids.is_ulid, os.listdir(job.folder.parent))):
        on = str(found.job(one).state().facts.get("host", "")) if reverse.lasting(one, "") == name else ""
        if on not in ("", host):
            return f"session {one} is on {on}, and this key is {host}'s"
    return ""


def _is_socket(path: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False


def _sweep(folder: Path, prefix: str) -> None:
    """Sockets of this session's that were bound for a tunnel which never came up: sshd leaves them."""
    for path in folder.glob(f"{prefix}*.*"):
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def _stay(held: dict[Path, int], doors: Doors) -> bool:
    """Until the other end has gone, or another tunnel has come for this one's names: whether one has."""
    with suppress(
        OSError
    ):  # nobody listens any more; or somebody's cleaning took a name away, and the next dial mends it
        while all(os.lstat(path).st_ino == inode for path, inode in held.items()):
            print("up", flush=True)
            with suppress(OSError, errors.MlboxError):  # of the door, not of the tunnel
                doors.open()
            for path in held:
                os.utime(path, follow_symlinks=False)  # systems that clean /tmp by age leave it alone
            ready, _, _ = select.select([0], [], [], _BEAT)
            if ready and not os.read(0, 4096):
                return False
        return True
    return False


def _hang_up() -> None:
    """The keeper dials again only when its ssh has ended, and this end was not told. Who is connected by it would wait
    for as long as TCP repeats itself: a quarter of an hour."""
    parent = os.getppid()
    with suppress(OSError):
        if Path(f"/proc/{parent}/comm").read_text().startswith("sshd"):
            os.kill(parent, signal.SIGTERM)


def _remove(held: dict[Path, int], fresh: dict[Path, Path]) -> None:
    """A later tunnel of the same session may have taken the names over."""
    for name, inode in held.items():
        with suppress(OSError):
            if os.lstat(name).st_ino == inode:
                name.unlink()
    for path in fresh:
        path.unlink(missing_ok=True)
