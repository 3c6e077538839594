"""A tick as cron calls it, and its log: cron appends to that what the tick prints.

~/.cache/mlbox/tick.<host>.log    one per host, for several may have one home
~/.cache/mlbox/tick.log           what a line in the crontab names that an older version put there
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from mlbox import errors
from mlbox.host import files, here, slots, store, tick
from mlbox.host.idle import HEARD

_LONG = 1 << 20  # bytes of the log
_MISSED = 180.0  # s without a tick of cron's, which comes each minute


def log() -> Path:
    return here.cache_home() / f"tick.{here.host_name()}.log"


def main(arguments: list[str]) -> int:
    """What cron runs: quiet when all is well; what is wrong goes to stderr, once per tick, and once in all what
    stays wrong until somebody mends lab.yaml."""
    root = Path(arguments[1]) if arguments[:1] == ["--root"] and len(arguments) == 2 else None
    for path in (log(), here.cache_home() / "tick.log"):
        _cut(path)
    found = store.Store(root)
    try:
        heard(found)
        report = tick.run(found)
        new = report.waits is not None and _is_news(found, report.trouble)
    except (errors.MlboxError, OSError, slots.Unsettled) as error:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} mlbox: {error}", file=sys.stderr)
        return 1
    if new:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} mlbox: {report.trouble}", file=sys.stderr)
    return 0


def heard(found: store.Store) -> None:
    """Cron has called, or will within a minute."""
    with suppress(OSError):  # a full /tmp costs a word to whoever submits
        (found.boot_folder() / HEARD).touch(mode=0o600)


def missing(found: store.Store) -> str:
    """What to say to whoever puts in line what does not start: nobody looks again by the clock, or nothing."""
    with suppress(OSError):
        if abs(time.time() - (found.boot_folder() / HEARD).stat().st_mtime) < _MISSED:
            return ""
    return (
        f"no cron line of yours works a queue off on {found.host} (mlbox cron install): what waits is looked at "
        "only when you submit, or when a job of yours ends"
    )


def _is_news(found: store.Store, trouble: str) -> bool:
    """Whether cron's log does not end with it already."""
    said = found.of_ticks("said")
    if not trouble:
        said.unlink(missing_ok=True)
        return False
    if said.exists() and said.read_text(errors="replace") == trouble:
        return False
    files.write_whole(said, trouble.encode(errors="replace"))
    return True


def _cut(path: Path) -> None:
    """cron appends what ticks print; a log that has grown long starts anew, its last part kept."""
    with suppress(OSError):
        if path.stat().st_size > _LONG:
            with path.open("rb") as file:
                file.seek(-_LONG // 4, os.SEEK_END)
                kept = file.read()
            files.write_whole(path, kept.partition(b"\n")[2])
