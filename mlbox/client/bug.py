"""A bug of mlbox's own: nobody is shown a traceback, it is kept in a file that is named."""

from __future__ import annotations

import platform
import sys

from mlbox import __version__
from mlbox.client import state
from mlbox.core import text

_TRACE = "Traceback"


def keep(trace: str, verb: str) -> str:
    """What to try: to report it. `verb`: not the rest of the command line, where --env's values are secrets. What is no
    trace says that already."""
    if not trace.startswith(_TRACE):
        return trace
    where = f"Python {platform.python_version()}, {platform.platform()}"
    report = f"mlbox {__version__}, {where}, verb: {verb}\n{trace}"
    path = state.home() / "bug.txt"
    try:
        state.write(path, report)
    except OSError:
        print("\n".join(map(text.safe, report.splitlines())), file=sys.stderr)
        return "report it with what is above"
    return f"report it with {path}"
