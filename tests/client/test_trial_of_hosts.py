"""What the trial between hosts amounts to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlbox import cli
from mlbox.client.commands import init
from mlbox.client.state import Config


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"won": [1, 3, 4], "met": True}, {"won": [2, 5], "met": True}], ""),
        (
            [{"won": [1, 3, 4], "met": True}, {"won": [2, 3], "met": True}],
            "exclusive creation has not exactly one winner: 1 of 5 won twice",
        ),
        ([{"won": [1, 2], "met": True}, {"won": [3], "met": True, "broken": "a disk"}], "gpu2: a disk"),
        ([{"won": [1, 2], "met": False}, {"won": [], "met": False}], "gpu1 and gpu2 did not meet in time"),
        ([{"won": [1, 2], "met": True}, {"won": [], "met": False}], "was not tried between them"),
    ],
)
def test_what_a_trial_between_hosts_says(
    answers: list[dict[str, Any]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = ["gpu1", "gpu2"]
    monkeypatch.setattr(init, "ask_all", lambda *_: {h: {"broken": "", **a} for h, a in zip(hosts, answers)})
    monkeypatch.setattr(init, "connect", lambda *_: SimpleNamespace(call=lambda *_: {"left": False}))
    problems = init._race(hosts, Config())
    assert (said in problems[0] and len(problems) == 1) if said else problems == []


def test_two_names_of_one_host_try_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for several, a host leaves the trial of exclusive creation to all of them."""
    raced: list[list[str]] = []

    def race(hosts: list[str], settings: Config) -> list[str]:
        raced.append(hosts)
        return ["it failed"]

    monkeypatch.setattr(init, "_race", race)
    reply = {"host": "gpu1", "problems": []}
    assert init._tried({"gpu1": reply, "gpu1-ada": reply}, Config()) == ["it failed"]
    assert init._tried({"gpu1": reply}, Config()) == [] and len(raced) == 1


def test_a_folder_in_the_hosts_place_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "gpu1", "/share/mlbox"]) == 2
    assert "mlbox init HOST… --root /share/mlbox" in capsys.readouterr().err
