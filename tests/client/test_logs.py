"""`mlbox logs -f` of a job that prints nothing: an empty screen says why it is empty."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mlbox import cli
from mlbox.client import lab


class Entry:
    name = "gpu1"

    def call(self, verb: str, args: Any, on_progress: Any) -> dict[str, Any]:
        on_progress({"silent": "started"})
        return {"state": "finished", "exit": 0, "signal": None, "why": "", "attempt": 1}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_is_told_that_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(lab, "entry", lambda *_: Entry())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert cli.main(["logs", "-f", "train"]) == 0
    told = capsys.readouterr()
    assert told.out == "" and ("  it has printed nothing yet; it is running\n" in told.err) is terminal
