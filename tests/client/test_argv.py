"""What `ps` shows of a command of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from mlbox import cli
parsed = cli.parser_of(["session"]).parse_args(sys.argv[2:-1])
assert parsed.env == ["TOKEN=s3cret", "TOKEN=s3cret", sys.argv[6], "EMPTY="], parsed.env
sys.stdout.buffer.write(Path("/proc/self/cmdline").read_bytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process change what ps shows")
def test_a_typed_value_is_not_shown() -> None:
    typed = "--env TOKEN=s3cret --env=TOKEN=s3cret --env UMLAUT=grün --env EMPTY= --name s3cret MYTOKEN=s3cret".split()
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(ROOT), *typed], capture_output=True, check=True)
    shown = done.stdout.decode().split("\0")[-len(typed) - 1 : -1]
    hidden = "--env TOKEN=****** --env=TOKEN=****** --env UMLAUT=***** --env EMPTY= --name s3cret MYTOKEN=s3cret"
    assert shown == hidden.split()
