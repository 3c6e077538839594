"""A submission that is interrupted says what may have become of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import homes
import pytest

from mlbox import cli, errors
from mlbox.client import lab, state
from mlbox.client.commands import submit
from mlbox.client.remote import Interrupted


@pytest.mark.parametrize(
    ("interrupt", "said"),
    [
        (KeyboardInterrupt(), "it may be in line: mlbox jobs"),
        (Interrupted(None), "it may be in line: mlbox jobs"),
        (Interrupted({"jobs": [{"name": "otter", "id": "01"}]}), "otter is in line all the same: mlbox cancel otter"),
        (Interrupted({"jobs": [{"name": "otter", "id": "01"}] * 9}), "otter, 9 jobs, is in line all the same"),
        (Interrupted({"started": []}), "it may be in line"),  # the reply of a tick that was asked for afterwards
    ],
)
def test_an_interrupted_submission(interrupt: KeyboardInterrupt, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), lab.submitting():
        raise interrupt
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("count", "names"), [(1, ["otter"]), (3, ["otter[0]", "otter[1]", "otter[2]"])])
def test_jobs_of_an_array_are_told_apart(count: int, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [{"name": "otter", "id": str(number)} for number in range(count)]
    submit.told({"jobs": jobs, "started": [], "on": {}, "waits": {}, "host": "gpu1", "trouble": ""})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train.py", "3"], "mlbox submit … -- python3 train.py"),
        (["job.yaml"], "mlbox submit -f job.yaml"),
        (["./train.py"], ""),
        (["make"], ""),  # a command, whatever else lies here
        (["other.py"], ""),
        (["--no-code", "train.py"], ""),
        (["--folder", "/data", "train.py"], ""),
    ],
)
def test_a_file_is_no_command(words: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "job.yaml", "make"):
        (tmp_path / name).touch()
    arguments = submit.parser(argparse.ArgumentParser).parse_args(words)
    if not hint:
        assert submit.prepare(arguments, state.Config()).spec.command == (words[-1],)
        return
    with pytest.raises(errors.Usage, match=f"{words[0]} is a file here") as refused:
        submit.prepare(arguments, state.Config())
    assert refused.value.hint == hint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--code", "nope"], "there is no folder nope"),
        (["--code", "a.py"], "there is no folder a.py"),
        (["--code", ".", "--folder", "/data"], "either --code, which is sent, or --folder, which is there"),
        ([], "you are in your home folder"),
    ],
)
def test_a_dry_run_refuses_what_would_be_refused_here(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(homes.fresh(tmp_path / "home", monkeypatch))
    Path("a.py").touch()
    assert cli.main(["submit", *words, "--dry-run", "--", "true"]) == 2
    assert said in capsys.readouterr().err


def test_each_job_is_said_with_the_host_that_started_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [{"name": "sweep", "id": str(number)} for number in range(3)]
    reply = {"jobs": jobs, "started": ["0"], "waits": {"1": "", "2": "full"}, "elsewhere": ["gpu2"], "host": "gpu1"}
    monkeypatch.setattr(lab, "nudge", lambda *_: {"gpu2": {"started": ["1"], "waits": {}}})
    arguments = submit.parser(argparse.ArgumentParser).parse_args(["--no-code", "true"])
    prepared = submit.prepare(arguments, state.Config())

    class Asked:
        def call(self, verb: str, args: object) -> dict[str, Any]:
            return {**reply, "trouble": ""}

    submit.told(submit.send(cast(Any, Asked()), prepared, state.Config()))
    said = [line.partition(str(index))[2].strip() for index, line in enumerate(capsys.readouterr().out.splitlines())]
    assert ["gpu1" in said[0], "gpu2" in said[1], "in line: full" in said[2]] == [True, True, True], said


@pytest.mark.parametrize("array", ["5%0", "5%", "%2", "0", "5%x"])
def test_an_array_that_can_t_be_read(array: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--dry-run", "--no-code", "--array", array, "--", "true"]) == 2
    assert "can't be read" in capsys.readouterr().err


@pytest.mark.parametrize(("waits", "warned"), [({"01": ""}, True), ({}, False)])
def test_what_stays_in_line_where_cron_does_not_call_is_warned_of(
    waits: dict[str, str], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    started = [] if waits else ["01"]
    submit.told(
        {"jobs": [{"id": "01", "name": "train"}], "started": started, "on": dict.fromkeys(started, "gpu1"),
         "waits": waits, "host": "gpu1", "trouble": "",
         "unattended": "no cron line of yours"}
    )  # fmt: skip
    assert ("no cron line of yours" in capsys.readouterr().err) == warned


def test_only_a_named_one_can_be_absent(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--if-absent", "--", "true"]) == 2
    assert "--name NAME" in capsys.readouterr().err


def test_what_is_there_already_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    reply = {"jobs": [{"id": "01", "name": "nightly"}], "started": [], "waits": {}, "there": "started"}
    submit.told(reply)
    assert capsys.readouterr().out == "nightly  01  is there already: running\n"
