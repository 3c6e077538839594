"""The table of jobs: of a long line the first, and how many more there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlbox import cli
from mlbox.client import lab, state

JOB = {
    "id": "01K", "owner": "ada", "name": "sweep", "array": "01J", "array_index": 19, "state": "submitted", "host": "",
    "queue": "night", "gpus": [], "why": "", "waits": "queue night is paused", "at": 0, "submitted": 0, "silent": 0.0,
    "more": 290,
}  # fmt: skip


def test_what_is_not_shown_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*jobs: dict[str, Any]) -> list[list[str]]:
        reply = {"jobs": list(jobs), "trouble": ""}
        monkeypatch.setattr(lab, "entry", lambda *_: SimpleNamespace(call=lambda verb, args: reply))
        monkeypatch.setattr(state, "remember_seen", lambda *_: None)
        assert cli.main(["jobs"]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]

    report = {**JOB, "name": "report", "array": "", "more": 0}
    told = said(JOB, report)
    assert [line[:2] for line in told] == [["01K", "sweep[19]"], ["…", "and"], ["01K", "report"]]
    assert told[1][1:6] == ["and", "290", "more", "waiting", "(night)"]
