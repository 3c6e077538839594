#!/usr/bin/env python3
"""What mlbox costs, beside what one would otherwise run: `make bench`. Prints ratios.

    a  the start of the program          beside Python's own, clearml-session's and dstack's
    b  a session's start, image cached   beside docker run by hand, and asking Jupyter until it answers
    c  a warm status; `ssh NAME true`    beside `ssh HOST true`, and docker exec; how often each uses the network
    d  the tunnel                        beside `ssh -L`
    e  the queue, on this machine        beside nq, task-spooler and Slurm; and how its cost grows
    f  the tunnel's return after a cut   beside autossh

b, c, d and f need the lab (scripts/lab up), or any host with --host, MLBOX_SSH_CONFIG and the lab's session image.
e and f install their peers' Debian packages where they are missing and it is root. All samples:
build/reports/bench.json.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

try:
    from benchkit import outages, queue, sessions, starts, trips, tunnels
    from benchkit.laptop import PYZ, ROOT, NoLab
    from benchkit.measure import Row, keep, note, table
except ModuleNotFoundError as error:
    sys.exit(f"there is no {error.name} for {sys.executable}: make bench has an environment with all that this needs")

KEPT = ROOT / "build/reports/bench.json"
ON_HOST = {"b": sessions.run, "c": trips.run, "d": tunnels.run, "f": outages.run}
HERE = {"a": starts.run, "e": queue.run}
PARTS = sorted((*HERE, *ON_HOST))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    if not PYZ.exists():
        print("dist/mlbox.pyz is missing: make pyz", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _stop)
    rows: list[Row] = []
    notes: list[str] = []
    code = 0
    try:
        for part in arguments.only:
            before = time.monotonic()
            found, said = _run(part, arguments.host, arguments.runs)
            rows += found
            said = [*said, f"{part}: took {time.monotonic() - before:.0f} s"]
            notes += said
            note(f"{table(found)}\n" + "".join(f"  {line}\n" for line in said))
    except NoLab as error:
        print(f"{error}: scripts/lab up", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\nstopped; everything that was started has been ended", file=sys.stderr)
        code = 130
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"\n{error}", file=sys.stderr)
        code = 1
    if rows:
        keep(KEPT, rows, notes)
        note(f"all samples: {KEPT.relative_to(ROOT)}")
    return code


def _run(part: str, host: str, runs: int | None) -> tuple[list[Row], list[str]]:
    return HERE[part](runs) if part in HERE else ON_HOST[part](host, runs)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="a,b,c,d,e,f", help="these parts (default: all)")
    parser.add_argument("--runs", type=int, metavar="N", help="turns a comparison (default: the part's own)")
    parser.add_argument("--host", default="gpu2", help="a host with GPUs, Docker and the image (default: gpu2)")
    arguments = parser.parse_args(argv)
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("--runs must be 1 or more")
    return arguments


def _parts(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if not set(chosen) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"choose among {','.join(PARTS)}")
    return chosen


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
