"""mlbox session HOST where one runs there already."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlbox.client import state
from mlbox.client.answers import Answers
from mlbox.client.commands import attach, session_start
from mlbox.core.session import Spec

RUNNING = {"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": "kind-otter"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (Answers(host="gpu1", port=("6006",)), ""),
        (
            Answers(host="gpu1", gpus="2", vscode=False, env=("TOKEN=s3cret",)),
            "  it stays as it is: only a new one takes --gpus, --no-vscode, --env\n",
        ),
    ],
)
def test_what_was_asked_of_a_session_that_is_only_joined_is_said(
    said: Answers, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    joined: list[Any] = []

    def join(host: object, session: str, *rest: object) -> int:
        joined.append(session)
        return 0

    monkeypatch.setattr(attach, "join", join)
    host: Any = SimpleNamespace(name="gpu1")
    start: Any = None
    assert session_start._offer(host, [RUNNING], said, state.Config(), session_start.Options(yes=True), start) == 0
    assert joined == [RUNNING["id"]]
    first = "  joining kind-otter, which is running already (--new starts another)\n"
    assert capsys.readouterr().err == first + told


@pytest.mark.parametrize("remember", [True, False])
def test_answers_that_are_not_to_be_remembered(remember: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(attach, "work", lambda *_: 0)
    host: Any = SimpleNamespace(name="gpu1")
    options = session_start.Options(remember=remember)
    start = session_start._Start(host, Spec(), (), state.Config(), options)
    attached: Any = object()
    start._attached = attached
    assert start.finish({"session": RUNNING}, Answers(host="gpu1", gpus="2")) == 0
    assert state.load("last.json").get("gpu1", {}).get("gpus") == ("2" if remember else None)
