"""What is wrong with lab.yaml is said by whatever a person asks the queue, once per command."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from mlbox.client import lab, state
from mlbox.client.commands import cancel, jobs, move, status

Json = dict[str, Any]
TROUBLE = {"trouble": "lab.yaml: line 2: \x1b[2J is wrong"}
ARGUMENTS = {"host": "", "hosts": ["gpu1", "gpu2"], "jobs": ["a", "b"], "job": "a", "queue": "", "ended": 1}
ENDED = {
    "id": "A",
    "name": "a",
    "state": "cancelled",
    "nudge": "",
    "already": False,
    "requested": "",
    "more": [],
    "elsewhere": [],
    "silent": 0.0,
}


class Entry:
    def call(self, verb: str, args: Json) -> Json:
        return dict(REPLIES[verb])


REPLIES: dict[str, Json] = {
    "jobs": {"jobs": [], **TROUBLE},
    "move": {"id": "A", "name": "a", "queue": "default", "priority": 0, "started": False, "elsewhere": [], **TROUBLE},
    "cancel": {**ENDED, **TROUBLE},
    "tick": {},
    "status": {
        "host": "gpu1",
        "gpus": [],
        "driver": "",
        "load": [0.0],
        "cpus": 1,
        "sessions": [],
        "jobs": [],
        "queues": [],
        **TROUBLE,
    },
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", [jobs, move, cancel, status])
def test_it_is_said_once(
    command: Any, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab, "entry", lambda arguments, settings: Entry())
    monkeypatch.setattr(status, "ask_all", lambda names, *_: dict.fromkeys(names, REPLIES["status"]))
    monkeypatch.setattr(state, "remember_seen", lambda *_: None)
    flags = {"all": False, "json": as_json, "dry_run": False}
    arguments = argparse.Namespace(**ARGUMENTS, **flags, priority=None, where="top", root="", config="")
    monkeypatch.setattr("mlbox.client.options.config", lambda arguments: state.Config())
    assert command.main(arguments) == 0
    said = capsys.readouterr().err
    assert said.count("lab.yaml: line 2") == (not as_json) and "\x1b[2J" not in said
