"""What several hosts replied, as --json has it, and the exit code that they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import homes
import pytest

from mlbox import cli, errors
from mlbox.client import remote
from mlbox.client.commands import cron, queue
from mlbox.client.commands import list as listing
from mlbox.client.hosts import exit_code, facts, told, why

AWAY, UNREADY = errors.Unreachable("gpu1: no route"), errors.HostUnready("no engine")


def test_who_did_not_reply_is_told_too() -> None:
    assert facts("gpu1", {"host": "its-own-name", "gpus": []}) == {"host": "gpu1", "gpus": []}
    assert facts("gpu1", AWAY) == {"host": "gpu1", "error": {"kind": "unreachable", "message": "gpu1: no route"}}


@pytest.mark.parametrize("words", [["status"], ["jobs"], ["session", "local"]], ids=" ".join)
def test_a_mac_is_no_host(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any host the commands ask this machine; doctor looks at the laptop alone."""
    homes.fresh(tmp_path / "home", monkeypatch)
    monkeypatch.setattr(remote, "host_part", lambda: b"")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cli.main(words) == errors.HostUnready.exit_code
    said = "".join(capsys.readouterr())
    assert "a Mac can be the laptop, but not a host" in said
    assert "hosts = [...] in config.toml" in said or words == ["status"]  # a line for each host there
    assert cli.main(["doctor"]) == 0


def test_a_line_names_its_host_once() -> None:
    assert [told("gpu1", error) for error in (AWAY, UNREADY)] == ["gpu1: no route", "gpu1: no engine"]
    assert [why("gpu1", error) for error in (AWAY, UNREADY)] == ["no route", "no engine"]


@pytest.mark.parametrize(
    ("replies", "code"), [([], 0), ([{}], 0), ([AWAY], 4), ([AWAY, {}], 0), ([UNREADY, AWAY], 5)], ids=str
)
def test_one_reply_is_enough(replies: list[Any], code: int) -> None:
    assert exit_code({str(number): reply for number, reply in enumerate(replies)}) == code


@pytest.mark.parametrize(
    ("module", "words", "reply"),
    [
        (listing, ["session", "list"], {"sessions": [{"id": "01K"}], "met_at": {}}),
        (cron, ["cron", "show"], {"lines": []}),
        (queue, ["queue", "process"], {"started": []}),
    ],
    ids=["session list", "cron", "queue process"],
)
def test_who_did_not_reply_is_told_by_every_command(
    module: Any, words: list[str], reply: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = homes.fresh(tmp_path / "home", monkeypatch) / "config/mlbox/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('hosts = ["gpu1", "gpu2"]\n')
    failed = {"host": "gpu2", "error": {"kind": "unreachable", "message": "gpu2: no route"}}
    for one, code in ((reply, 0), (AWAY, 4)):
        answers = {"gpu1": one, "gpu2": errors.Unreachable("gpu2: no route")}
        monkeypatch.setattr(module, "ask_all", lambda *_, answers=answers: dict(answers))
        assert cli.main([*words, "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert failed in (told if isinstance(told, list) else told.values()) and len(told) == 2
