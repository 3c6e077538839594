"""Part a: how long the program takes to say its version and its help, beside Python itself and others' tools."""

from __future__ import annotations

import subprocess
import venv
from functools import partial
from pathlib import Path

from benchkit.laptop import PYTHON, PYZ, ROOT, environment
from benchkit.measure import Row, at_most, in_turn, note, seconds, tell

RUNS = 21
VENV = ROOT / "build/bench-venv"
OTHERS = ("clearml-session", "dstack")  # the packages' names, and their programs'
_PASS = "python3 -c pass"
_VERSION = (PYTHON, str(PYZ), "--version")
_HELP = (PYTHON, str(PYZ), "--help")


def run(runs: int | None) -> tuple[list[Row], list[str]]:
    env, notes = environment(), []
    subjects = {_PASS: (PYTHON, "-c", "pass"), "--version": _VERSION, "--help": _HELP}
    found = in_turn(runs or RUNS, {name: partial(seconds, argv, env) for name, argv in subjects.items()}, "start")
    rows = [
        at_most(Row("a", "--version", "s", found["--version"], found[_PASS], _PASS), 2.0),
        Row("a", "--help", "s", found["--help"], found[_PASS], _PASS),
    ]
    for name in OTHERS:
        path, why = _install(name)
        if path is None:
            notes.append(f"a: {name} can't be had from the package index: {why}")
            note(notes[-1])
            continue
        for flag, ours in (("--version", _VERSION), ("--help", _HELP)):
            theirs = partial(seconds, (str(path), flag), env)
            theirs()  # the first start compiles
            found = in_turn(max(3, (runs or RUNS) // 4), {"mlbox": partial(seconds, ours, env), name: theirs}, "start")
            rows.append(Row("a", flag, "s", found["mlbox"], found[name], f"{name} {flag}"))
    return rows, notes


def _install(name: str) -> tuple[Path | None, str]:
    """Once; `make clean` forgets it. The program, or why there is none."""
    path = VENV / name / "bin" / name
    if path.exists():
        return path, ""
    tell(f"installing {name} into {VENV.relative_to(ROOT)}")
    venv.create(VENV / name, with_pip=True, clear=True)
    pip = (str(VENV / name / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    done = subprocess.run((*pip, name), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0 or not path.exists():
        return None, (done.stderr.strip().splitlines() or ["it holds no such program"])[-1][:200]
    return path, ""
