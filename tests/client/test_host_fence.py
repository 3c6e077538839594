"""`mlbox host fence`: a person is asked only about a host that can be fenced."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from mlbox import cli, errors
from mlbox.client import lab, output, state

Json = dict[str, Any]


class Entry:
    """A host of a lab that has a gpu2; `done`: whom it has fenced."""

    name = "gpu1"

    def __init__(self, dry: bool, done: list[str]) -> None:
        self._dry, self._done = dry, done

    def call(self, verb: str, args: Json) -> Json:
        if args["name"] != "gpu2":
            raise errors.NotFound(f"there is no host {args['name']} in the lab", "hosts: gpu1, gpu2")
        self._done += [] if self._dry else [args["name"]]
        return {"host": args["name"], "drained": True, "running": [], "requeued": [], "nudge": []}


@pytest.fixture
def fenced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    def entry(arguments: argparse.Namespace, settings: state.Config) -> Entry:
        return Entry(settings.dry_run, done)

    monkeypatch.setattr(lab, "entry", entry)
    monkeypatch.setattr(lab, "look_again", lambda *_: {})
    return done


@pytest.mark.parametrize("there", [True, False], ids=["terminal", "none"])
@pytest.mark.parametrize("more", [[], ["-y"], ["--dry-run"]], ids=" ".join)
def test_one_that_is_not_there_is_told_before_anybody_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fenced: list[str], more: list[str], there: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(output, "may_ask", lambda: there)
    monkeypatch.setattr(output, "ask", lambda question, *_: asked.append(question))
    assert cli.main(["host", "fence", "nosuch", *more]) == 6
    told = capsys.readouterr().err
    assert "there is no host nosuch in the lab" in told and "switched off" not in told and not asked + fenced


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 130)])
def test_one_that_is_there_is_asked_about(
    monkeypatch: pytest.MonkeyPatch, fenced: list[str], answer: str, code: int
) -> None:
    monkeypatch.setattr(output, "may_ask", lambda: True)
    monkeypatch.setattr(output, "ask", lambda *_: answer)
    assert cli.main(["host", "fence", "gpu2"]) == code
    assert fenced == ["gpu2"] * (answer == "yes")


def test_where_nobody_can_be_asked_it_takes_y(monkeypatch: pytest.MonkeyPatch, fenced: list[str]) -> None:
    monkeypatch.setattr(output, "may_ask", lambda: False)
    assert cli.main(["host", "fence", "gpu2"]) == 2 and not fenced
    assert cli.main(["host", "fence", "gpu2", "-y"]) == 0 and fenced == ["gpu2"]
