"""What `mlbox show` tells of a job."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from mlbox.client import lab, state
from mlbox.client.commands import cancel, show
from mlbox.core.job import JobSpec

Json = dict[str, Any]
JOB: Json = {"id": "01K", "name": "sweep", "array": "01J", "array_index": 3, "state": "failed", "attempt": 2,
             "queue": "default", "host": "gpu1", "gpus": []}  # fmt: skip


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints where the host has that reply."""
    monkeypatch.setattr("mlbox.client.options.config", lambda arguments: state.Config())

    def say(command: Any, reply: Json) -> list[str]:
        monkeypatch.setattr(lab, "entry", lambda *_: SimpleNamespace(call=lambda verb, args: reply))
        arguments = argparse.Namespace(job="x", jobs=["x"], json=False, dry_run=False)
        assert command.main(arguments) == 0
        return capsys.readouterr().out.splitlines()

    return say


def log(*events: tuple[str, float]) -> Json:
    return {
        "job": JOB, "spec": JobSpec(command=("true",)).to_wire(), "folder": "/lab/x", "waits": {}, "progress": "",
        "silent": 0.0, "events": [{"event": event, "at": at} for event, at in events],
    }  # fmt: skip


def test_one_of_an_array_has_its_index(said: Any) -> None:
    assert said(show, log())[0] == "sweep[3]  01K  failed (attempt 2)"
    reply = {**JOB, "already": True, "requested": "", "nudge": "", "silent": 0.0, "more": [], "elsewhere": [],
             "trouble": ""}  # fmt: skip
    assert said(cancel, reply) == ["sweep[3]  01K  had ended already: failed"]


def test_why_it_waits_is_said_as_submit_says_it(said: Any) -> None:
    lines = said(show, {**log(), "waits": {"gpu1": "waits for job 01M…SF2Z (running)", "gpu2": ""}})
    assert [line for line in lines if "wait" in line] == ["  in line:   waits for job 01M…SF2Z (running)  [gpu1]"]


def test_each_attempt_s_end_says_how_long_it_ran(said: Any) -> None:
    events = (("submitted", 0.0), ("claimed", 1.0), ("started", 10.0), ("cancel_requested", 20.0), ("lost", 70.0),
              ("claimed", 80.0), ("failed", 99.0), ("started", 100.0), ("failed", 90.0))  # fmt: skip
    lines = said(show, log(*events))[-len(events) :]
    assert [line.split("  ", 2)[2] for line in lines] == [
        "submitted", "claimed", "started", "cancel_requested", "lost (ran 1m)", "claimed", "failed", "started",
        "failed",  # by a clock that was set back
    ]  # fmt: skip
