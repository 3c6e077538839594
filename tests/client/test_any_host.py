"""Whom a laptop asks: the first host of the lab that it gets a connection to."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import homes
import pytest

from mlbox import cli, errors
from mlbox.client import lab, remote, state, transports
from mlbox.client.transports.openssh import explain

CONFIG = state.Config(hosts=("gpu1", "gpu2", "gpu3"), root="/lab")
DOWN = errors.NotConnected("gpu1: no answer (timed out)", "is it switched on?")


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each host answers; `asked` collects who was asked for what."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    answers: dict[str, Any] = {"gpu1": {}, "gpu2": {}, "gpu3": {}, "asked": []}

    def call(self: remote.Host, verb: str, args: dict[str, Any], on_progress: object) -> Any:
        answers["asked"].append((self.name, verb, args["root"]))
        if isinstance(answers[self.name], errors.MlboxError):
            raise answers[self.name]
        return answers[self.name]

    monkeypatch.setattr(remote.Host, "_call", call)
    monkeypatch.setattr(transports, "make", lambda name, _: SimpleNamespace(host=name))
    return answers


def entry(host: str = "") -> remote.Host:
    return lab.entry(argparse.Namespace(host=host), CONFIG)


def test_the_first_that_is_configured(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    entry().call("jobs", {})
    assert asked["asked"] == [("gpu1", "jobs", "/lab")]
    assert capsys.readouterr().err == ""


def test_the_next_where_it_is_away_and_from_then_on_that_one(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked.update(gpu1=DOWN, gpu2=errors.NotConnected("no route"))
    host = entry()
    host.call("submit", {})
    host.call("logs", {})
    assert host.name == "gpu3"
    assert asked["asked"] == [(name, "submit", "/lab") for name in CONFIG.hosts] + [("gpu3", "logs", "/lab")]
    assert capsys.readouterr().err.splitlines() == [
        "! gpu1: no answer (timed out); gpu2 is asked instead", "! gpu2: no route; gpu3 is asked instead",
    ]  # fmt: skip
    asked["gpu3"] = DOWN
    with pytest.raises(errors.NotConnected):  # it knows this job as the host that took it
        host.call("logs", {})


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Docker does not answer", "gpu1: Docker does not answer"),
        ("there is no python3 on gpu1", "there is no python3 on gpu1"),
    ],
)
def test_one_that_is_not_ready_is_named(asked: dict[str, Any], said: str, shown: str) -> None:
    asked["gpu1"] = errors.HostUnready(said, "mend it")
    with pytest.raises(errors.HostUnready) as failed:
        entry().call("submit", {})
    assert (failed.value.message, failed.value.hint) == (shown, "mend it")


@pytest.mark.parametrize(
    ("words", "verb"), [("jobs", "jobs"), ("show a", "show"), ("cron show", "cron"), ("queue process", "tick")]
)
def test_this_machine_is_not_asked_silently_for_want_of_a_host(
    words: str, verb: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    homes.fresh(tmp_path / "home", monkeypatch)
    unready = errors.HostUnready("/home/ada/.local/share/mlbox is not a folder of mlbox's")
    asked.update(local=unready, gpu1=unready)

    def said(*more: str) -> tuple[bool, bool]:
        assert cli.main([*words.split(), *more]) == 5
        told = capsys.readouterr().err
        return "so this machine is asked" in told, "local: /home/ada" in told

    assert said() == (True, True)
    assert said("--host", "local")[0] is False
    assert said("--json")[0] is False
    assert [(name, what) for name, what, _ in asked["asked"]] == [("local", verb)] * 3
    state.update("hosts.json", "local", {"planted": "x"})
    assert said() == (False, True)
    state.update("hosts.json", "local", None)
    state.update("hosts.json", "gpu1", {"planted": "x"})
    assert said()[0] is False


def test_one_that_was_away_a_moment_ago_is_asked_last(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would cost each command ssh's time-out. After a while it is tried again, and by its name it always is."""
    asked["gpu1"] = DOWN
    entry().call("jobs", {})
    capsys.readouterr()
    asked["asked"].clear()
    entry().call("jobs", {})
    assert ([name for name, *_ in asked["asked"]], capsys.readouterr().err) == (["gpu2"], "")
    asked.update(gpu1={}, gpu2=DOWN, gpu3=DOWN)
    entry().call("jobs", {})  # the last resort, and it is back
    asked.update(gpu2={}, gpu3={}, asked=[])
    entry().call("jobs", {})
    assert asked["asked"] == [("gpu1", "jobs", "/lab")]
    asked["gpu1"] = DOWN
    entry().call("jobs", {})
    asked["asked"].clear()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 301)
    entry().call("jobs", {})
    assert [name for name, *_ in asked["asked"]] == ["gpu1", "gpu2"]


@pytest.mark.parametrize("error", [errors.Unreachable("the connection ended"), errors.Refused("no"), DOWN])
def test_what_may_have_been_done_is_not_asked_of_another(asked: dict[str, Any], error: errors.MlboxError) -> None:
    """And one that is named is meant."""
    asked["gpu1"] = error
    with pytest.raises(type(error)):
        entry("gpu1" if error is DOWN else "").call("submit", {})
    assert asked["asked"] == [("gpu1", "submit", "/lab")]


@pytest.mark.parametrize("error", [errors.Unreachable("the connection ended", "look"), errors.Unreachable("it ended")])
def test_a_submission_whose_reply_was_lost_may_be_in_line(asked: dict[str, Any], error: errors.MlboxError) -> None:
    asked["gpu1"] = error
    with pytest.raises(errors.Unreachable) as caught, lab.submitting():
        entry().call("submit", {})
    assert (caught.value.message, caught.value.exit_code) == (error.message, 4)
    *before, last = caught.value.hint.split("\n")
    assert (before, "mlbox jobs" in last) == ([error.hint] if error.hint else [], True)
    asked.update(dict.fromkeys(CONFIG.hosts, DOWN))
    with pytest.raises(errors.NotConnected) as never, lab.submitting():
        entry().call("submit", {})
    assert never.value.hint == DOWN.hint


def test_all_are_away(asked: dict[str, Any]) -> None:
    asked.update(dict.fromkeys(CONFIG.hosts, DOWN))
    with pytest.raises(errors.Unreachable) as caught:
        entry().call("jobs", {})
    assert (caught.value.exit_code, len(asked["asked"])) == (4, 3)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ssh: connect to host 10.0.0.1 port 22: Connection timed out", errors.NotConnected),
        ("ssh: connect to host 10.0.0.1 port 22: No route to host", errors.NotConnected),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", errors.NotConnected),
        ("Connection timed out during banner exchange", errors.NotConnected),
        ("kex_exchange_identification: Connection closed by remote host", errors.NotConnected),
        ("Read from remote host gpu1: Connection timed out", errors.Unreachable),
        ("Read from remote host gpu1: No route to host\nclient_loop: send disconnect: Broken pipe", errors.Unreachable),
        ("Timeout, server gpu1 not responding.", errors.Unreachable),
        ("me@gpu1: Permission denied (publickey).", errors.NotLetIn),
        ("No ED25519 host key is known for gpu1\nHost key verification failed.", errors.NotLetIn),
    ],
)
def test_what_ssh_said_of_a_connection_that_never_was(said: str, kind: type[errors.MlboxError]) -> None:
    assert type(explain("gpu1", said)) is kind
