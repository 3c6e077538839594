"""Where a session is looked for: where it was, then on all hosts; and what is told when it is nowhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlbox import errors
from mlbox.client import sessions, state

CONFIG = state.Config(hosts=("gpu1", "gpu2"))
DOWN = errors.Unreachable("gpu1: no answer")


@pytest.fixture(autouse=True)
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each replies to the question for its sessions."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state.remember_session("01ARYZ6S41TSV4RRFFQ69G5FAV", "kind-otter", "gpu1", "")
    replies: dict[str, Any] = {"gpu1": DOWN, "gpu2": {"sessions": []}}
    monkeypatch.setattr(sessions, "connect", lambda name, *_: SimpleNamespace(name=name))
    monkeypatch.setattr(sessions, "ask_all", lambda names, *_: {name: replies[name] for name in names})
    return replies


def there(name: str = "kind-otter") -> dict[str, Any]:
    return {"sessions": [{"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": name}]}


class Act:
    def __init__(self, raises: dict[str, errors.MlboxError]) -> None:
        self.raises = raises
        self.tried: list[str] = []

    def __call__(self, host: Any) -> str:
        self.tried.append(host.name)
        if host.name in self.raises:
            raise self.raises[host.name]
        return f"done on {host.name}"


@pytest.mark.parametrize("error", [DOWN, errors.NotFound("not here")], ids=["down", "gone"])
def test_it_is_found_on_another_host(hosts: dict[str, Any], error: errors.MlboxError) -> None:
    hosts["gpu2"] = there()
    assert sessions.at_session("kind-otter", "", CONFIG, Act({"gpu1": error})) == "done on gpu2"


def test_nowhere_else_and_its_host_is_down() -> None:
    with pytest.raises(errors.Unreachable, match="gpu1: no answer"):
        sessions.at_session("kind-otter", "", CONFIG, Act({"gpu1": DOWN}))


def test_what_failed_where_it_runs_is_not_done_twice(hosts: dict[str, Any]) -> None:
    hosts["gpu1"] = there()
    act = Act({"gpu1": errors.Unreachable("no tunnel comes up")})
    with pytest.raises(errors.Unreachable, match="no tunnel comes up"):
        sessions.at_session("kind-otter", "", CONFIG, act)
    assert act.tried == ["gpu1"]
