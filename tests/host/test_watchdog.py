"""A ROOT that hangs ends the process that waits for it, with a sentence. The hung mount itself: tests/lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, sys, time
from mlbox.host import watchdog
watchdog.EVERY, watchdog.PATIENCE = 0.01, 20
answers, ask = watchdog._answers, os.statvfs
def answers_in_time(folder):  # little is given to what hangs; to all else enough, however busy this machine is
    watchdog.PATIENCE = 0.1 if folder == {hangs!r} else 20
    answered = answers(folder)
    watchdog.PATIENCE = {words}
    return answered
watchdog._answers = answers_in_time
os.statvfs = lambda root: time.sleep(60) if root == {hangs!r} else ask(root)
watchdog.watch(({root!r}, "/"), lambda said: {told})
{wait}
"""


def _run(root: Path, hangs: str, told: str, wait: str, words: float = 20) -> subprocess.CompletedProcess[str]:
    """`words`: s that what is told may take."""
    program = _PROGRAM.format(root=str(root), hangs=hangs, told=told, wait=wait, words=words)
    return subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("there", [True, False], ids=["there", "absent"])
def test_a_root_that_answers_is_no_reason(tmp_path: Path, there: bool) -> None:
    root = tmp_path if there else tmp_path / "unmounted"
    done = _run(root, "", "os.write(1, b'hung')", "time.sleep(0.5); print('done')")
    assert done.stdout == "done\n"


def test_a_root_that_hangs_is_said_and_the_process_ends(tmp_path: Path) -> None:
    done = _run(tmp_path, str(tmp_path), "os.write(1, said.encode())", "time.sleep(60)")
    assert done.returncode == 1
    assert done.stdout == f"{tmp_path} has not answered for 20 s: its filesystem hangs"


def test_so_is_the_folder_that_it_runs_from(tmp_path: Path) -> None:
    done = _run(tmp_path, "/", "os.write(1, said.encode())", "time.sleep(60)")
    assert (done.returncode, done.stdout) == (1, "/ has not answered for 20 s: its filesystem hangs")


def test_it_ends_where_even_the_words_hang(tmp_path: Path) -> None:
    """A keeper's log is in ROOT."""
    assert _run(tmp_path, str(tmp_path), "time.sleep(60)", "time.sleep(60)", words=0.1).returncode == 1
