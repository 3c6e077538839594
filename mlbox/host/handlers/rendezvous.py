"""This host as a rendezvous: the line of the user's authorized_keys that lets a workstation's tunnels end here.

show     the line as it would be, and the file; nothing is changed
add      the line is there, once, and says what it should
remove   it is not, and tunnels that came by it are ended
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import resources, reverse, text
from mlbox.host import files, store
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    name, do = str(call.args.get("name", "")), str(call.args.get("do", "show"))
    if not resources.is_label(name):
        raise errors.Usage(f"{text.safe(name)!r} can't be a host's name")
    path = Path.home() / ".ssh/authorized_keys"
    if do == "remove":
        removed = _write(path, name, "")
        return {"removed": removed, "ended": _end(name), "file": str(path)}
    # The program is the one that answers this call: planted by content, so it stays what it is.
    root = str(store.Store(call.root).root)
    program = (sys.executable, "-I", "-S", str(Path(sys.argv[0]).resolve()), "rendezvous", name, root)
    line = reverse.authorized(name, str(call.args.get("key", "")), program)
    changed = do == "add" and _write(path, name, line)
    folder = files.private_folder(Path(f"/tmp/mlbox-{os.getuid()}"))
    return {"line": line, "file": str(path), "changed": changed, "folder": str(folder), "known": line in _lines(path)}


def _lines(path: Path) -> list[str]:
    """As sshd sees them; a person's comment may hold whatever else some take for a line's end."""
    try:
        *lines, last = path.read_bytes().decode(errors="surrogateescape").split("\n")
    except FileNotFoundError:
        return []
    return [*lines, last] if last else lines


def _write(path: Path, name: str, line: str) -> bool:
    """The file with this host's line, or without any; all the rest stays as it was. A link to it stays one."""
    path = Path(os.path.realpath(path))
    old = _lines(path)
    new = [*reverse.without(old, name), *([line] if line else [])]
    if sorted(new) == sorted(old):
        return False
    path.parent.mkdir(mode=0o700, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    content = "".join(f"{one}\n" for one in new).encode(errors="surrogateescape")
    files.write_whole(path, content, mode)
    return True


def _end(name: str) -> int:
    """SIGTERM to what the line's key has running: without it, its sockets have no names any more."""
    ended = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            called = [b"rendezvous", name.encode()]  # an earlier version's without ROOT
            if called in (words[-4:-2], words[-3:-1]) and folder.stat().st_uid == os.getuid():
                os.kill(int(folder.name), signal.SIGTERM)
                ended += 1
    return ended
