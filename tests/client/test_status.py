"""Which hosts `mlbox status` asks, and how often."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlbox import errors
from mlbox.client import state
from mlbox.client.commands import status

CONFIG = state.Config(hosts=("one", "gpu2"), root="/lab")
DOWN = errors.Unreachable("no answer")
LAB = {"gpu1": "gpu1.lab", "gpu2": "gpu2.lab", "gpu3": "gpu3.lab", "gpu4": "gpu4"}


def reply(host: str, lab: dict[str, str] | None = None) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "gpus": [],
        "driver": "none",
        "load": [0.0],
        "cpus": 1,
        "sessions": [],
        "jobs": [],
        "queues": [],
    }
    return {**empty, "host": host, **({} if lab is None else {"lab": lab})}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each replies; `rounds`: who was asked together."""
    replies: dict[str, Any] = {"rounds": [], "gpu3.lab": reply("gpu3", LAB), "gpu4": DOWN}

    def ask_all(names: list[str], *_: object) -> dict[str, Any]:
        replies["rounds"].append(list(names))
        return {name: replies[name] for name in names}

    monkeypatch.setattr(status, "ask_all", ask_all)
    return replies


def told(capsys: pytest.CaptureFixture[str], *hosts: str) -> list[str]:
    assert status.run(hosts, CONFIG, as_json=True) == 0
    return [one["host"] for one in json.loads(capsys.readouterr().out)]


def test_the_lab_s_own_list_is_asked_too(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    asked.update(one=reply("gpu1", LAB), gpu2=DOWN)
    assert told(capsys) == ["one", "gpu2", "gpu3.lab", "gpu4"]
    assert asked["rounds"] == [["one", "gpu2"], ["gpu3.lab", "gpu4"]]


@pytest.mark.parametrize("lab", [None, {}, {"gpu1": "gpu1.lab", "gpu2": "gpu2.lab"}])
def test_once_where_all_are_known(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], lab: dict[str, str] | None
) -> None:
    asked.update(one=reply("gpu1", lab), gpu2=reply("gpu2", lab))
    assert told(capsys) == ["one", "gpu2"]
    assert asked["rounds"] == [["one", "gpu2"]]


def test_a_silent_host_of_the_lab_is_told_and_not_waited_for(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    silent = {"host": "gpu4", "silent": 9000.0, "jobs": [], "drained": ""}
    asked.update(one={**reply("gpu1", LAB), "silent": [silent]}, gpu2=reply("gpu2", LAB))
    assert told(capsys) == ["one", "gpu2", "gpu3.lab", "gpu4"]
    assert asked["rounds"] == [["one", "gpu2"], ["gpu3.lab"]]


def test_a_silent_host_that_was_asked_in_vain_is_told_once(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": "train", "owner": "eve", "gpus": [], "since": 0.0}
    silent = {"host": "gpu2", "silent": 9000.0, "jobs": [job], "drained": "eve (PSU)"}
    lab = {"gpu1": "one", "gpu2": "gpu2.lab"}
    asked.update({"one": {**reply("gpu1", lab), "silent": [silent]}, "gpu2.lab": DOWN})
    config = state.Config(hosts=("one", "gpu2.lab"), root="/lab")
    assert status.run((), config, as_json=True) == 0
    [_, told] = json.loads(capsys.readouterr().out)
    assert told == {**silent, "host": "gpu2.lab", "error": {"kind": "unreachable", "message": "no answer"}}
    assert status.run((), config, as_json=False) == 0
    said = capsys.readouterr().out
    assert (
        "gpu2.lab  no answer\n  silent for 2h 30m · drained by eve (PSU)\njob train  01ARYZ6S41TSV4RRFFQ69G5FAV" in said
    )
    assert said.count("silent") == said.count("01ARYZ") == 1


def test_hosts_that_are_named_are_meant(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    asked["one"] = reply("gpu1", LAB)
    assert told(capsys, "one") == ["one"]
    assert asked["rounds"] == [["one"]]


def test_a_host_that_ssh_calls_otherwise_has_both_its_names(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs and `host drain` know it by its own."""
    asked.update(one=reply("gpu1"), gpu2=reply("gpu2"))
    assert status.run((), CONFIG, as_json=False) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if "load" in line)
    assert first.startswith("one (gpu1)  ") and second.startswith("gpu2  ")


@pytest.mark.parametrize(
    ("holder", "jobs", "said"),
    [
        ({"user": "ada", "session": "ID2"}, ["train", "eval"], "leased to ada's job train, ada's job eval"),
        ({"user": "ada", "session": "ID2"}, ["sweep", "sweep"], "leased to ada's job sweep"),
        ({"user": "ada", "session": "ID2"}, [], "leased to ada's job ID2"),
        ({"user": "ada", "session": "ID2", "name": "otter"}, [], "leased to ada's session otter"),
        (None, [], "free"),
    ],
)
def test_who_holds_a_gpu_is_told_by_name(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], holder: Any, jobs: list[str], said: str
) -> None:
    gpu = {"index": 0, "uuid": "GPU-1", "name": "H100", "memory": 81559, "holder": holder}
    there = [
        {"id": f"ID{number}", "name": name, "owner": "ada", "since": 1.0, "gpus": ["GPU-1"]}
        for number, name in enumerate(jobs)
    ]
    other = {"id": "ID9", "name": "other", "owner": "bob", "since": 1.0, "gpus": ["GPU-2"]}
    asked["one"] = {**reply("gpu1"), "gpus": [gpu], "jobs": [*there, other]}
    assert status.run(["one"], CONFIG, as_json=False) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if "H100" in line]
    assert row.endswith(f"  {said}")
