"""A job that the host that was asked does not start: the others that could are told at once, not by their cron."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from mlbox import errors
from mlbox.client import hosts, lab, state
from mlbox.client.commands import move, retry

Json = dict[str, Any]
NOT_NOW = {"started": False, "trouble": "", "elsewhere": ["gpu8", "gpu9"]}
REPLIES: dict[str, Json] = {
    "retry": {"id": "J", "name": "otter", "of": "I", "host": "gpu1", "waits": "3 GPUs are lacking", **NOT_NOW},
    "move": {"id": "J", "name": "otter", "queue": "night", "priority": 0, **NOT_NOW},
}
COMMANDS = {"retry": retry, "move": move}


class Lab:
    """Who was told, and what they answer: what they have started, and why J waits there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.started: dict[str, list[str]] = {"gpu8": [], "gpu9": []}
        self.changes: Json = {}
        self.blind = {"gpu8": 0, "gpu9": 0}  # so often they know nothing of J
        self.whole, self.away = True, ""
        monkeypatch.setattr(lab, "entry", lambda arguments, settings: self)
        monkeypatch.setattr(lab, "ask_all", self.ask_all)
        monkeypatch.setattr("mlbox.client.options.config", lambda arguments: state.Config())

    def call(self, verb: str, args: Json) -> Json:
        return {**REPLIES[verb], **self.changes}

    def ask_all(self, names: list[str], verb: str, args: Json, settings: state.Config) -> Json:
        assert (verb, args) == ("tick", {})
        self.told += names
        return {name: self.tick(name) if name != self.away else errors.NotConnected("no route") for name in names}

    def tick(self, name: str) -> Json:
        self.blind[name] -= 1
        waits = {"J": f"full on {name}"} if self.blind[name] < 0 and "J" not in self.started[name] else {}
        return {"started": self.started[name], "failed": [], "waits": waits, "whole": self.whole}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return Lab(monkeypatch)


def run(verb: str, as_json: bool = False) -> int:
    flags = {"json": as_json, "dry_run": False, "priority": None, "where": "", "queue": "night", "job": "otter"}
    code: int = COMMANDS[verb].main(argparse.Namespace(**flags))
    return code


@pytest.mark.parametrize(
    ("verb", "said"),
    [("retry", "otter  J  started on gpu9\n"), ("move", "otter  J  in queue night, priority 0; it has started\n")],
)
def test_one_of_them_starts_it(verb: str, said: str, there: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    there.started["gpu9"] = ["another", "J"]
    assert run(verb) == 0 and there.told == ["gpu8", "gpu9"]
    assert capsys.readouterr().out == said
    assert run(verb, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["started"] is True and "elsewhere" not in told and not told.get("waits")


@pytest.mark.parametrize(
    ("verb", "said"),
    [("retry", "otter  J  in line: full on gpu9\n"), ("move", "otter  J  in queue night, priority 0\n")],
)
def test_none_has_room(verb: str, said: str, there: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    there.started["gpu9"] = ["another"]
    assert run(verb) == 0 and there.told == ["gpu8", "gpu9"]
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("whole", "told"), [(True, ["gpu8", "gpu9", "gpu9", "gpu9"]), (False, ["gpu8", "gpu9"])], ids=["all", "a part"]
)
@pytest.mark.parametrize("verb", COMMANDS)
def test_who_looked_at_all_that_waits_and_saw_no_such_job_is_asked_again(
    verb: str, whole: bool, told: list[str], there: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "_AGAIN", (0.0, 0.0, 0.0))
    there.blind["gpu9"], there.whole = 2, whole
    assert run(verb) == 0 and there.told == told


def test_one_that_no_connection_came_about_to_is_not_told_again(there: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost each command ssh's whole time-out."""
    there.away = "gpu8"
    for told in (["gpu8", "gpu9"], ["gpu8", "gpu9", "gpu9"]):
        assert run("retry") == 0 and there.told == told
    monkeypatch.setattr(hosts, "_AWAY", 0.0)
    assert run("retry") == 0 and there.told[3:] == ["gpu8", "gpu9"]


@pytest.mark.parametrize("verb", COMMANDS)
def test_nobody_is_told_where_it_has_started(verb: str, there: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    there.changes = {"started": True, "waits": "", "elsewhere": []}
    assert run(verb) == 0 and there.told == []
    assert "started" in capsys.readouterr().out
