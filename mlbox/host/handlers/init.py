"""Make a folder the lab's ROOT: its mark, its places, an example of lab.yaml; and try what the protocol needs.

Several hosts first agree that it is one folder (`mark`; where it is not, `unmark`), before anything else is changed.
The trial is of this host's own mount. Of `several` hosts, all are asked at once (`race`) when each has been made ready,
which tries the filesystem between them too.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.host import files, lab, race, store, tick
from mlbox.host.serve import Call
from mlbox.host.sweep import alone

Json = dict[str, Any]
_TRIAL = re.compile(r"\.trial-[0-9a-f]{8}")


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    trial = str(call.args.get("race", ""))
    if trial:
        if not _TRIAL.fullmatch(trial):
            raise errors.Usage("a trial's folder is called otherwise")
        if call.args.get("over"):
            return {"host": found.host, "left": _remove(found.root / trial)}
        hosts = call.args.get("hosts", 1)
        if type(hosts) is not int or hosts < 1:
            raise errors.Usage("so many hosts don't race")
        return {"host": found.host, **race.run(found.root / trial, found.host, hosts)}
    if call.args.get("unmark"):
        return {
            "host": found.host,
            "left": _unmark(found.root, str(call.args["unmark"]), bool(call.args.get("folder"))),
        }
    made, folder = not (found.root / "mlbox.json").exists(), not found.root.exists()
    if made and ":" in str(found.root):
        raise errors.Refused(f"{found.root} can't be mounted into containers: it has a : in it", "choose another ROOT")
    if made and found.root.exists() and any(p for p in found.root.iterdir() if p.name != "lab.yaml"):
        _only_ours(found.root)
    root_id = _root_id(found, made)
    if call.args.get("mark"):
        return {"host": found.host, "id": root_id, "made": made, "folder": folder}
    if not found.dry:
        alone(found)
    openness = stat.S_IMODE(found.root.stat().st_mode) if found.root.exists() else 0o700
    for name in () if found.dry else ("users", "drained", "paused"):
        _open(found.root / name, openness)
    rules = lab.rules(found)
    known, line, ssh = rules.lab, "", str(call.args.get("ssh", ""))
    if not rules.trouble and found.host not in known.hosts and ssh:
        edit = lab.adding(found.root, "hosts", found.host, json.dumps({"ssh": ssh}))
        known, line = edit.lab, edit.line
        if not found.dry:
            edit.write()
    if not found.dry:
        tick.run(found)  # makes the host known to the others
    return {
        "host": found.host, "root": str(found.root), "id": root_id, "made": made, "shared": bool(openness & 0o022),
        "trouble": rules.trouble, "hosts": sorted(known.hosts), "line": line, "queues": list(known.queues),
        "filesystem": filesystem(found.root),
        "problems": [] if found.dry else _try(found, bool(call.args.get("several"))),
    }  # fmt: skip


def _root_id(found: store.Store, made: bool) -> str:
    """Of one that a dry run does not make it is not known yet. Raises what making it would."""
    if not found.dry:
        return lab.make_root(found.root)
    if not made:
        return lab.identify(found.root)
    there = next(folder for folder in (found.root, *found.root.parents) if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(found.root))
    return ""


def _unmark(root: Path, root_id: str, folder: bool) -> bool:
    """Take back what a call to `mark` it made: it is to be one lab with other hosts', and they see another folder.
    Whether it is a ROOT still."""
    mark = root / "mlbox.json"
    if mark.exists() and lab.identify(root) == root_id:
        mark.unlink(missing_ok=True)  # by another host, whose view of the share was old
        with suppress(OSError):  # somebody put something there
            if folder:
                root.rmdir()
    return mark.exists()


def _open(folder: Path, openness: int) -> None:
    """As open as ROOT, which its owner may have opened to others since it was made; sticky, like /tmp."""
    folder.mkdir(exist_ok=True)
    if openness & 0o022 and folder.stat().st_uid == os.getuid():
        folder.chmod(openness | stat.S_ISVTX)


def _only_ours(root: Path) -> None:
    ours = ("users", "lab.yaml", "drained", "paused", "mlbox.json")  # the last: another host made it just now
    strange = sorted(p.name for p in root.iterdir() if p.name not in ours)
    if strange:
        raise errors.Refused(
            f"{root} is in use: it holds {', '.join(strange[:5])}", "name a folder of its own, such as …/mlbox"
        )


def filesystem(root: Path) -> str:
    """Its type, by the longest mount point that leads to it."""
    best = ("", "")
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind = line.split()[:3]
            point = point.replace("\\040", " ")
            if (str(root.resolve()) + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def _try(found: store.Store, several: bool) -> list[str]:
    """What the protocol needs, by doing it: whole files, exclusive creation, names that others see."""
    folder = found.root / f".trial-{secrets.token_hex(4)}"
    problems = []
    try:
        folder.mkdir(mode=0o700)
        files.write_whole(folder / "whole", b"content")
        if (folder / "whole").read_bytes() != b"content":
            problems.append("a file that was renamed into place reads differently")
        if not several:
            trial = race.run(folder / "race", found.host)
            won = trial["won"]
            if len(won) != len(set(won)) or len(won) != race.SLOTS:
                said = f"exclusive creation has not exactly one winner: {len(won)} of {race.SLOTS}"
                problems.append(f"{said}; {trial['broken']}" if trial["broken"] else said)
    except OSError as error:
        problems.append(f"{error.strerror}: {error.filename}")
    finally:
        _remove(folder)
    return problems


def _remove(folder: Path) -> bool:
    """Whether something of it is left: this host may not see at once what another made in it."""
    for pause in (0.0, 0.2, 1.0):
        time.sleep(pause)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return False
    return True
