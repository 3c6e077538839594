"""`mlbox session share`: what it prints for both of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlbox import cli
from mlbox.client import sessions


@pytest.mark.parametrize("user", ["bob", "bo", "annabelle.lee"])
def test_the_two_commands_are_in_one_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], user: str
) -> None:
    session = {"id": "01K", "name": "otter", "host": "gpu1", "runtime": "docker", "shared": [user]}
    reply = {"session": session, "user": user, "host": "gpu1", "changed": True, "ended": 0, "trouble": ""}

    def at_session(name: str, host: str, config: object, act: Any) -> Any:
        return act(SimpleNamespace(call=lambda *_: reply))

    monkeypatch.setattr(sessions, "at_session", at_session)
    assert cli.main(["session", "share", "otter", user]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[line.index("mlbox ") :] for line in lines] == [
        "mlbox attach 01K", f"mlbox session unshare otter {user}",
    ]  # fmt: skip
    assert len({line.index("mlbox ") for line in lines}) == 1
