"""Peers that are Debian packages: installed where they are missing, by root on Debian only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from benchkit.laptop import environment
from benchkit.measure import tell


def install(packages: Mapping[str, str]) -> str:
    """{program: the package that brings it}. Why those that are still missing are, else nothing."""
    missing = [package for program, package in packages.items() if not shutil.which(program)]
    if not missing:
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "not installed, and only root on Debian can do that here"
    env = environment(DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")  # their daemons don't start
    for argv in (("update",), ("-y", "install", "--no-install-recommends", *missing)):
        tell(f"apt-get {' '.join(argv)}")
        done = subprocess.run(
            ("apt-get", "-q", *argv), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
        )
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["apt-get failed"])[-1][:200]
    absent = [program for program in packages if not shutil.which(program)]
    return f"its package brought no program {absent[0]}" if absent else ""
