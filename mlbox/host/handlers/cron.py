"""One line in the user's own crontab: the tick of every minute that catches what was missed.

    * * * * * sleep N; PATH=… exec python3 -I -S …/mlbox-<sha>.pyz tick --root ROOT >>…/tick.HOST.log 2>&1 # mlbox ID

PATH is that of the call that installs it: cron's own has little in it, and a job without a container, or the engine of
one with, is found by the same PATH whichever tick starts it.

Idempotent (the mark at its end names the ROOT), jittered by host and user, quiet (a tick prints only what is
wrong), overlap leaves at once, and the log is cut when it is long.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.host import cron, here, lab, store
from mlbox.host.serve import Call

Json = dict[str, Any]
_JITTER = 20  # s over which hosts and users spread
_LONGEST = 990  # letters of a command; Debian's cron refuses more


def run(call: Call) -> Json:
    found = store.Store(call.root, call.dry)
    what = str(call.args.get("do", "show"))
    old = _crontab()
    if what == "show":
        return {"host": found.host, "lines": [line for line in old if "# mlbox " in line]}
    mark = f"# mlbox {_root_id(found, named=call.root is not None)}"
    kept = [line for line in old if not line.endswith(mark)]
    new = [*kept, _line(found, mark)] if what == "install" else kept
    if new != old and not found.dry:
        _write(new)
        if what == "install":
            cron.heard(found)
    return {"host": found.host, "lines": [line for line in new if line.endswith(mark)], "changed": new != old}


def _root_id(found: store.Store, named: bool) -> str:
    """The user's own data home needs no ceremony; a dry run does not make it, so its id is not known yet."""
    if named or (found.dry and (found.root / "mlbox.json").exists()):
        return lab.identify(found.root)
    return "…" if found.dry else lab.make_root(found.root)


def _line(found: store.Store, mark: str) -> str:
    """The program is the one that answers this call: planted by content, so it stays what it is."""
    spread = int(hashlib.sha256(f"{found.host}{found.user}".encode()).hexdigest(), 16) % _JITTER
    command = " ".join(map(shlex.quote, (sys.executable, "-I", "-S", str(Path(sys.argv[0]).resolve()), "tick",
                                         "--root", str(found.root))))  # fmt: skip
    said = f"exec {command} >>{shlex.quote(str(cron.log()))} 2>&1 {mark}"
    if "%" in said or "\n" in said:
        raise errors.Refused("cron can't call a path with % in it", "choose another ROOT")
    path = f"PATH={shlex.quote(os.environ.get('PATH', os.defpath))} "
    fits = len(path) + len(said) < _LONGEST and "%" not in path and "\n" not in path
    return f"* * * * * sleep {spread}; {path if fits else ''}{said}"


def _crontab() -> list[str]:
    try:
        done = subprocess.run(("crontab", "-l"), stdin=subprocess.DEVNULL, capture_output=True)
    except FileNotFoundError:
        raise errors.HostUnready(
            f"there is no cron on {here.host_name()}", "`mlbox queue process --watch` in a tmux does the same"
        ) from None
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode != 0 and not re.search("no crontab|can't open.*no such file", said, re.I):  # busybox's words
        raise errors.HostUnready(f"crontab -l failed: {said}", "may you use cron there?")
    # Others' lines are kept as they are: a form feed ends none, and a comment may be in any encoding.
    lines = os.fsdecode(done.stdout).split("\n") if done.returncode == 0 else [""]
    return lines if lines[-1] else lines[:-1]


def _write(lines: list[str]) -> None:
    content = os.fsencode("".join(f"{line}\n" for line in lines))
    done = subprocess.run(("crontab", "-"), input=content, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise errors.HostUnready(f"the crontab could not be written: {said}", "may you use cron there?")
