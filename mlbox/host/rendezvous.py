"""Where reverse tunnels end: the forced command of the key that a workstation dials in with (core/reverse.py).

    sshd has bound the fresh sockets before it runs this    rename each onto its lasting name, say `up`
    every few seconds                                       `up` again, by which the keeper knows that this lives
    stdin ends (the tunnel, or its keeper, is gone)         remove the names that are still this tunnel's
    a name is another's (a later tunnel of the session)     the same, and end sshd's process for this connection
    the folder was missing (a reboot empties /tmp)          make it; the next dial finds it

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
from contextlib import suppress
from pathlib import Path

from mlbox import errors
from mlbox.core import ids, reverse
from mlbox.host import files, here, lab, serve, store

_BEAT = 5.0  # s
_PATIENCE = 5.0  # s for ROOT
_UNSEEN = (0.1, 0.3, 0.6, 1.0)  # s until a session that was just made is looked for again


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
    replaced = False
    try:
        if not all(_is_socket(path) for path in names):
            why = "its SSH server lets no socket be forwarded" if existed else f"{folder} was missing, and is there now"
            print(f"{here.host_name()}: {why}", flush=True)
            return 1
        refusal = _refusal(session, host, root)
        if refusal:
            print(f"{here.host_name()}: {refusal}", flush=True)
            return 1
        for path, name in names.items():
            held[name] = os.lstat(path).st_ino
            os.replace(path, name)
        print("up", flush=True)
        _sweep(folder, reverse.lasting(session, ""))
        replaced = _stay(held)
    finally:
        _remove(held, names)
    if replaced:
        _hang_up()
    return 0


def _refusal(session: str, host: str, root: str) -> str:
    """Why it gets no names, or nothing: who has a key takes over no other host's sessions. A ROOT that is not there, or
    hangs, keeps no tunnel down."""
    said: list[str] = []

    def look() -> None:
        with suppress(OSError, errors.MlboxError):
            said.append(_by_logs(store.Store(Path(root)), session, host))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return said[0] if said else ""


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


def _stay(held: dict[Path, int]) -> bool:
    """Until the other end has gone, or another tunnel has come for this one's names: whether one has."""
    with suppress(
        OSError
    ):  # nobody listens any more; or somebody's cleaning took a name away, and the next dial mends it
        while all(os.lstat(path).st_ino == inode for path, inode in held.items()):
            print("up", flush=True)
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
