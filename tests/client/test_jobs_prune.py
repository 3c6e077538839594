"""`mlbox jobs prune`: which job is meant by each row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlbox import cli
from mlbox.client import lab


def test_jobs_of_an_array_are_listed_as_they_are_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"id": "01K", "name": "sweep", "array": "01J", "kind": "job", "state": "finished", "at": 0.0, "size": 1}
    rows = [{**gone, "array_index": n, "stays": ""} for n in range(2)]
    stay = [{**gone, "array_index": 7, "stays": "a job waits for it"}]
    alone = {**gone, "array": "", "array_index": 0, "name": "train", "stays": ""}
    reply = {"removed": [*rows, alone], "stay": stay}
    monkeypatch.setattr(lab, "entry", lambda *_: SimpleNamespace(call=lambda *_: reply))
    assert cli.main(["jobs", "prune", "--dry-run"]) == 0
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("01K")]
    assert told == ["sweep[0]", "sweep[1]", "train", "sweep[7]"]
