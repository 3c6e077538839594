"""Several hosts become one lab, or none of them is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from mlbox import cli, errors
from mlbox.client import state
from mlbox.client.commands import init

Json = dict[str, Any]
DOWN = errors.NotConnected("no route", "is it on?")


class Hosts:
    """What each replies to a question, by what it is for; what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, Json, bool]] = []
        self.ids: dict[str, Any] = {}
        monkeypatch.setattr(init, "ask_all", self.ask_all)
        monkeypatch.setattr(init, "connect", lambda name, config: Host(self, name, config.dry_run))

    def ask_all(self, hosts: list[str], verb: str, args: Json, config: state.Config) -> Json:
        return {name: self.reply(name, args, config.dry_run) for name in hosts}

    def reply(self, name: str, args: Json, dry: bool) -> Any:
        self.asked.append((name, args, dry))
        known = self.ids[name]
        if isinstance(known, errors.MlboxError):
            return known
        return {"host": name, "id": "" if dry else known, "made": True, "folder": True, "left": False}

    def changes(self) -> list[tuple[str, Json]]:
        return [(name, args) for name, args, dry in self.asked if not dry]


class Host:
    def __init__(self, hosts: Hosts, name: str, dry: bool) -> None:
        self.hosts, self.name, self.dry = hosts, name, dry

    def call(self, verb: str, args: Json) -> Json:
        reply = self.hosts.reply(self.name, args, self.dry)
        if isinstance(reply, errors.MlboxError):
            raise reply
        return cast(Json, reply)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(monkeypatch)


def test_one_folder(hosts: Hosts) -> None:
    hosts.ids = {"gpu1": "a", "gpu2": "a"}
    replies = init._made(["gpu1", "gpu2", "gpu1"], state.Config())
    assert {host: reply["made"] for host, reply in replies.items()} == {"gpu1": True, "gpu2": True}
    assert hosts.changes()[2:] == [(name, {"ssh": name, "several": True}) for name in ("gpu1", "gpu2")]


def test_of_two_folders_no_mark_stays(hosts: Hosts) -> None:
    hosts.ids = {"gpu1": "a", "gpu2": "b"}
    with pytest.raises(errors.Refused, match="not the same folder"):
        init._made(["gpu1", "gpu2"], state.Config())
    assert hosts.changes()[2:] == [(name, {"unmark": id_, "folder": True}) for name, id_ in hosts.ids.items()]


def test_where_one_is_away_none_is_changed(hosts: Hosts) -> None:
    hosts.ids = {"gpu1": "a", "gpu2": DOWN}
    with pytest.raises(errors.NotConnected, match="gpu2: no route"):
        init._made(["gpu1", "gpu2"], state.Config())
    assert hosts.changes() == []


def test_one_that_goes_away_meanwhile(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.ids = {"gpu1": "a", "gpu2": "a"}
    whole = hosts.ask_all

    def ask_all(names: list[str], verb: str, args: Json, config: state.Config) -> Json:
        replies = whole(names, verb, args, config)
        return replies if config.dry_run else {**replies, "gpu2": DOWN}

    monkeypatch.setattr(init, "ask_all", ask_all)
    with pytest.raises(errors.NotConnected):
        init._made(["gpu1", "gpu2"], state.Config())
    assert hosts.changes()[-1:] == [("gpu1", {"unmark": "a", "folder": True})]


@pytest.mark.parametrize("error", [KeyboardInterrupt, errors.NotConnected("gone")], ids=["^C", "gone"])
def test_what_is_interrupted_is_taken_back_and_what_stays_is_said(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any
) -> None:
    """One that can't take its own back keeps no other from it."""
    hosts.ids = {"gpu1": "a", "gpu2": "b", "gpu3": "c"}
    whole = hosts.ask_all

    def ask_all(names: list[str], verb: str, args: Json, config: state.Config) -> Json:
        replies = whole(names, verb, args, config)
        if error is KeyboardInterrupt and names == ["gpu2", "gpu3"]:
            raise KeyboardInterrupt
        return replies

    monkeypatch.setattr(init, "ask_all", ask_all)
    real, failing = Host.call, error if isinstance(error, errors.MlboxError) else None

    def call(host: Host, verb: str, args: Json) -> Json:
        if failing and host.name == "gpu1" and "unmark" in args:
            raise failing
        return real(host, verb, args)

    monkeypatch.setattr(Host, "call", call)
    with pytest.raises(errors.Refused if failing else KeyboardInterrupt):
        init._made(list(hosts.ids), state.Config())
    undone = [name for name, args in hosts.changes() if "unmark" in args]
    assert undone == (["gpu2", "gpu3"] if failing else ["gpu1"])
    assert ("gpu1: gone: mlbox.json stays in the default ROOT there" in capsys.readouterr().err) == bool(failing)


@pytest.mark.parametrize("words", [("-y",), ("-y", "--json"), ("-y", "--dry-run"), ("--json",), ()])
def test_the_settings_are_written_by_a_person_s_word(
    hosts: Hosts, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    more = {"root": "/lab", "problems": [], "filesystem": "nfs", "queues": ["default"], "shared": True, "line": ""}
    real = hosts.reply
    monkeypatch.setattr(hosts, "reply", lambda *given: {**more, **real(*given)})
    hosts.ids = {"gpu1": "a"}
    for _ in range(2):  # what is there is the person's
        assert cli.main(["init", "gpu1", "--root", "/lab", *words]) == 0
    written = "-y" in words and "--dry-run" not in words
    assert state.config_file().exists() == written
    if written:
        assert state.config() == state.Config(hosts=("gpu1",), root="/lab", ssh_config=state.config().ssh_config)
