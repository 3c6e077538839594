"""mlbox doctor, as far as the laptop goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlbox import cli, errors
from mlbox.client.commands import doctor
from mlbox.client.state import Config
from mlbox.core.finding import Finding

GOOD, BAD = Finding("good", "GPUs", "4 GPUs, 3 free"), Finding("bad", "docker", "no\x1b[2J way", "ask ada\nor bob")


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each replies."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    replies: dict[str, Any] = {}

    def ask_all(names: list[str], verb: str, args: object, config: object) -> dict[str, Any]:
        assert verb == "doctor"
        return {name: replies[name] for name in names}

    monkeypatch.setattr(doctor, "ask_all", ask_all)
    return replies


def found(*findings: Finding) -> dict[str, Any]:
    return {"findings": [finding.to_wire() for finding in findings]}


def test_what_is_wrong_is_said_with_what_would_mend_it(
    hosts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    hosts.update(gpu1=found(GOOD), gpu2=found(GOOD, BAD), gpu3=errors.NotConnected("no route", "is it on?"))
    assert cli.main(["doctor", "gpu1"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("this machine\n  ✓ mlbox") and "gpu1\n  ✓ GPUs  4 GPUs, 3 free" in told
    assert cli.main(["doctor", "gpu2"]) == 5
    told = capsys.readouterr().out
    assert "  ✗ docker  no" in told and "\x1b" not in told
    assert f"    {' ' * 6}  try: ask ada\n    {' ' * 6}  try: or bob\n" in told
    assert cli.main(["doctor", "gpu2", "gpu3"]) == 5
    capsys.readouterr()
    assert cli.main(["doctor", "gpu1", "gpu3"]) == 4  # nothing is wrong that was looked at
    capsys.readouterr()
    hosts["gpu4"] = errors.HostUnready("no python")
    assert cli.main(["doctor", "gpu1", "gpu3", "gpu4"]) == 5
    capsys.readouterr()
    assert cli.main(["doctor", "gpu1", "gpu3"]) == 4
    assert "gpu3\n  ✗ ssh  no route\n         try: is it on?\n" in capsys.readouterr().out


def test_without_a_host_it_looks_here_and_says_so(hosts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr()
    assert "· hosts" in said.out and "no host was looked at" in said.err


def test_as_facts(hosts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    hosts.update(gpu2=found(BAD), gpu3=errors.NotConnected("no route", "is it on?"))
    assert cli.main(["doctor", "gpu2", "gpu3", "--json"]) == 5
    here, two, three = json.loads(capsys.readouterr().out)
    assert here["host"] == "this machine" and {one["about"] for one in here["findings"]} >= {"mlbox", "ssh", "hosts"}
    assert two == {"host": "gpu2", "findings": [BAD.to_wire()]}
    assert three["error"] == {"kind": errors.NotConnected("").kind, "message": "no route", "hint": "is it on?"}


@pytest.mark.parametrize("said", [[{"grade": "fine"}], ["x"], [{}], None, 7])
def test_a_host_that_says_something_else(hosts: dict[str, Any], said: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hosts["gpu1"] = {"findings": said}
    assert cli.main(["doctor", "gpu1"]) == 5
    assert "what this mlbox does not know" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "grade"), [("OpenSSH_9.2p1 Debian-2, OpenSSL", "good"), ("OpenSSH_7.4p1", "note"), ("Sun_SSH_1.1", "note")]
)
def test_the_ssh_of_this_machine(said: str, grade: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._ssh(Config()).grade == grade
    (tmp_path / "ssh").unlink()
    assert doctor._ssh(Config()).grade == "bad"
    assert doctor._ssh(Config(transport="fabric")).grade == "note"
