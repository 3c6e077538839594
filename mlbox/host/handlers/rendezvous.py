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
from mlbox.host import files, here, store
from mlbox.host.serve import Call

Json = dict[str, Any]


def run(call: Call) -> Json:
    name, do = str(call.args.get("name", "")), str(call.args.get("do", "show"))
    if not resources.is_label(name):
        raise errors.Usage(f"{text.safe(name)!r} can't be a host's name")
    path = Path.home() / ".ssh/authorized_keys"
    if do == "remove":
        removed, tunnels = _put(path, name, "", call.dry), _tunnels(name)
        for process in () if call.dry else tunnels:
            with suppress(OSError):
                os.kill(process, signal.SIGTERM)
        return {"removed": removed, "ended": len(tunnels), "file": str(path)}
    # The program is the one that answers this call: planted by content, so it stays what it is.
    root = str(store.Store(call.root).root)
    program = (sys.executable, "-I", "-S", str(Path(sys.argv[0]).resolve()), "rendezvous", name, root)
    key = str(call.args.get("key", ""))
    line = "" if call.dry and not key else reverse.authorized(name, key, program)  # it may not have shown one yet
    changed = do == "add" and _put(path, name, line, call.dry)
    folder, known = here.boot_folder(), bool(line) and line in _lines(path)
    if not call.dry:
        files.private_folder(folder)
    return {"line": line, "file": str(path), "changed": changed, "folder": str(folder), "known": known}


def _lines(path: Path) -> list[str]:
    """As sshd sees them; a person's comment may hold whatever else some take for a line's end."""
    try:
        *lines, last = path.read_bytes().decode(errors="surrogateescape").split("\n")
    except FileNotFoundError:
        return []
    return [*lines, last] if last else lines


def _put(path: Path, name: str, line: str, dry: bool) -> bool:
    """The file with this host's line, or without any; all the rest stays as it was. A link to it stays one. Whether
    that is (`dry`: would be) a change."""
    path = Path(os.path.realpath(path))
    old = _lines(path)
    new = [*reverse.without(old, name), *([line] if line else [])]
    if dry or sorted(new) == sorted(old):
        return sorted(new) != sorted(old)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    content = "".join(f"{one}\n" for one in new).encode(errors="surrogateescape")
    files.write_whole(path, content, mode)
    return True


def _tunnels(name: str) -> list[int]:
    """What the line's key has running, to be ended with it: without the line its sockets have no names any more."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            called = [b"rendezvous", name.encode()]  # an earlier version's without ROOT
            if called in (words[-4:-2], words[-3:-1]) and folder.stat().st_uid == os.getuid():
                found.append(int(folder.name))
    return found
