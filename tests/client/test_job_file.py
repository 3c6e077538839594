"""job.yaml is as if its settings had been typed as options, where none were."""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
from pathlib import Path
from typing import Any, Callable

import homes
import pytest

from mlbox import cli
from mlbox.client import job_file, yaml_file
from mlbox.client.commands import submit

ULID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
EXAMPLE = Path(__file__).parents[2] / "conf/job.yaml"
Asked = Callable[..., Any]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder one is in, which is not the home."""
    homes.fresh(tmp_path / "home", monkeypatch)
    monkeypatch.delenv("MLBOX_SSH_CONFIG", raising=False)
    folder = tmp_path / "project"
    for name in ("", "exp", "src", "x", "here"):
        (folder / name).mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def asked(project: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    """What would be submitted by this file and these words."""

    def ask(content: str, *words: str) -> Any:
        (project / "exp/job.yaml").write_text(content)
        assert cli.main(["submit", "-f", "exp/job.yaml", "--dry-run", "--json", *words]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def refused(project: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    def ask(content: str, *words: str, verb: str = "submit") -> str:
        (project / "job.yaml").write_text(content)
        assert cli.main([verb, "-f", "job.yaml", "--dry-run", *words]) == 2
        return capsys.readouterr().err

    return ask


def test_everything_that_can_be_said(asked: Asked, project: Path) -> None:
    (project / "exp/req.txt").write_text("torch\n")
    found = asked(
        "command: [python, train.py, --lr, 3e-4, --seed, 007]\nname: sweep\nimage: x:1.10\nruntime: docker\n"
        "user: root\npackages: einops, numpy>=2,<3\nrequirements: req.txt\nenv: {TOKEN: s3cret, DEBUG: yes}\n"
        "mount: [/a:/b:ro]\nengine_args: --shm-size 8g\ngpus: A100:2\ngpu-memory: 40G\ncpus: 4\nmemory: 1T\n"
        "on: [gpu1, gpu2]\nlabel: nvlink\ntime_limit: 1:30:00\nqueue: night\npriority: -3\n"
        f"after: {ULID.lower()}\nafter_any: [{ULID}]\narray: 20%4\nretries: 2\nretry_on: oom, lost\nbackoff: 1m\n"
        "grace: 30s\noutput_limit: 1G\non_host_loss: hold\nmax_losses: 7\n"
    )
    spec, work = found["spec"], found["spec"]["work"]
    assert (found["array"], spec["array_limit"], found["code"]) == (20, 4, ".")
    assert spec["command"] == ["python", "train.py", "--lr", "3e-4", "--seed", "007"]
    assert [work[key] for key in ("name", "image", "runtime", "user")] == ["sweep", "x:1.10", "docker", "root"]
    assert (work["packages"], work["requirements"]) == (["einops", "numpy>=2,<3"], "torch\n")
    assert (work["env"], work["engine_args"]) == ({"TOKEN": "***", "DEBUG": "***"}, ["--shm-size", "8g"])
    assert work["mounts"] == [{"source": "/a", "target": "/b", "read_only": True}]
    assert spec["resources"] == {
        "gpus": "A100:2", "gpu_memory": 40960, "gpu_share": 0, "cpus": 4, "memory": 1 << 20, "hosts": ["gpu1", "gpu2"],
        "labels": ["nvlink"], "time_limit": 5400,
    }  # fmt: skip
    assert spec["after"] == [{"job": ULID, "end": "ok"}, {"job": ULID, "end": "any"}]
    kept = (
        "queue",
        "priority",
        "retries",
        "backoff",
        "retry_on",
        "grace",
        "output_limit",
        "on_host_loss",
        "max_losses",
    )
    assert [spec[key] for key in kept] == ["night", -3, 2, 60, ["oom", "lost"], 30, 1024, "hold", 7]


def test_the_example_shows_every_option(project: Path, asked: Asked) -> None:
    example = EXAMPLE.read_text()
    everything = re.sub(r"(?m)^( *)# (?=[A-Za-z_]+:|  )", r"\1", example)
    (project / "job.yaml").write_text(everything)
    known = job_file.kinds(submit.parser(argparse.ArgumentParser))
    assert set(yaml_file.read(project / "job.yaml", known, "")) == set(known)
    of_the_call = {
        "-f",
        "--file",
        "--if-absent",
        "--dry-run",
        "--json",
        "--host",
        "--root",
        "--ssh-config",
        "--no-code",
    }
    options = {o for action in submit.parser(argparse.ArgumentParser)._actions for o in action.option_strings}
    assert {f"--{name.replace('_', '-')}" for name in set(known) - {"command"}} == options - of_the_call - {
        "-h",
        "--help",
    }
    assert asked(example)["spec"]["command"] == ["python", "train.py", "--lr", "3e-4"]


def test_a_text_is_a_script(asked: Asked) -> None:
    script = "cd src\npython train.py --seed $MLBOX_ARRAY_INDEX\n"
    assert asked("command: |\n  cd src\n  python train.py --seed $MLBOX_ARRAY_INDEX\n")["spec"]["command"] == [
        "sh", "-c", script,
    ]  # fmt: skip


def test_a_dry_run_shows_the_words_that_would_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "job.yaml").write_text('command: "echo \\e[31m; ls -l"\n')
    assert cli.main(["submit", "-f", "job.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("would submit: sh -c 'echo \N{REPLACEMENT CHARACTER}[31m; ls -l'\n")


@pytest.mark.parametrize(
    ("content", "words", "path", "value"),
    [
        ("gpus: 2\nqueue: night\n", ("--gpus", "0"), "resources.gpus", "0"),
        ("gpus: 2\nqueue: night\n", ("--gpus", "0"), "queue", "night"),
        ("command: [a]\n", (), "command", ["a"]),
        ("command: [a]\n", ("--", "b", "c"), "command", ["b", "c"]),
        ("priority: 5\n", ("--priority", "0"), "priority", 0),
        ("label: [a, b]\n", ("--label", "c"), "resources.labels", ["c"]),
        ("image: x\n", ("--runtime", "process"), "work.image", ""),
        ("runtime: process\n", ("--image", "x"), "work.runtime", ""),
        ("folder: /data\n", ("--code", "here"), "folder", ""),
        ("folder: /data\n", ("--no-code",), "folder", "/data"),
        ("code: here\n", ("--folder", "/data"), "folder", "/data"),
    ],
)
def test_flags_win(asked: Asked, content: str, words: tuple[str, ...], path: str, value: object) -> None:
    found = asked(content, *(words if "--" in words or "command" in content else (*words, "--", "true")))["spec"]
    for key in path.split("."):
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    ("content", "words", "code"),
    [
        ("", (), "."),
        ("code: .\n", (), "exp"),
        ("code: ../src\n", (), "exp/../src"),
        ("code: false\n", (), ""),
        ("code: /abs\n", ("--no-code",), ""),
        ("code: false\n", ("--code", "x"), "x"),
        ("folder: /data\n", (), ""),
        ("folder: /data\n", ("--code", "x"), "x"),
        ("folder: /data\n", ("--no-code",), ""),
    ],
)
def test_which_folder_s_code_goes_along(asked: Asked, content: str, words: tuple[str, ...], code: str) -> None:
    assert asked(content, *words, "--", "true")["code"] == code


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "what is to be run?"),
        ("command: ' '\n", "what is to be run?"),
        ("command: []\n", "what is to be run?"),
        ("command: {a: b}\n", "job.yaml: command is a list"),
        ("command: [[a]]\n", "job.yaml: command is a list"),
        ("comand: x\n", "there is no setting 'comand'"),
        ("comand: x\n", "did you mean command?"),
        ("dry_run: true\n", "there is no setting 'dry_run'"),
        ("dry_run: true\n", "mlbox submit --help shows"),
        ("file: job.yaml\n", "there is no setting 'file'"),
        ("cpus: many\n", "job.yaml: cpus is a whole number"),
        ("retries: 1.5\n", "job.yaml: retries is a whole number"),
        ("gpus: [1]\n", "job.yaml: gpus is one value"),
        ("on: {gpu1: yes}\n", "job.yaml: on is a list"),
        ("env: [[a]]\n", "job.yaml: env is a list"),
        ("time_limit: soon\n", "job.yaml: time_limit: 'soon' is no duration"),
        ("array: many\n", "job.yaml: array: --array many can't be read"),
        ("on_host_loss: pray\n", "job.yaml: on_host_loss: on_host_loss is hold or requeue"),
        ("image: x\nmemory: 8x\n", "job.yaml: memory: '8x' is no amount of memory"),
        ("name: Foo_Bar\ngpus: 1\n", "job.yaml: name: 'Foo_Bar' can't be a name"),
        ("retries: -1\n", "job.yaml: retries: retries can't be -1"),
        ("gpus: 2\ngpu_share: 8G\n", "mlbox: a share is of one GPU"),
        ("name: ~\n", "job.yaml: name: '~' can't be a name"),
        ("a: b: c\n", "job.yaml: line 1, column 5"),
        ("- a\n", "must be `name: value` lines"),
        ("- a\n", "mlbox submit --help shows every setting"),
        ("{" * 5000, "job.yaml: it is nested too deeply"),
        ("\0" * 10, "job.yaml: "),
        ("#" * ((1 << 20) + 1), "job.yaml is larger than 1 MiB"),
        ("name: !!bool abc\n", "not of the type that its tag"),
        ("name: !!python/object/apply:os.system ['touch hacked']\n", "line 1, column 7"),
    ],
    ids=lambda v: v.splitlines()[0][:30] if isinstance(v, str) and v else "",
)
def test_what_is_wrong_is_said(refused: Asked, project: Path, content: str, words: str) -> None:
    more = () if "run?" in words else ("--", "true")
    said = refused(content, *more)
    assert words in said and "bug" not in said
    assert not (project / "hacked").exists()


def test_what_a_flag_says_wrong_is_not_the_file_s(refused: Asked) -> None:
    assert refused("memory: 8G\n", "--memory", "8x", "--", "true").startswith("mlbox: '8x' is no amount")


@pytest.mark.parametrize("verb", ["submit", "run", "session"])
def test_no_file_s_name_is_no_absence_of_a_file(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "-f", "", *([] if verb == "session" else ["--", "true"])]) == 2
    assert "can't be read: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("host: local\nname: Foo_Bar\n", "job.yaml: name: 'Foo_Bar' can't be a name"),
        ("host: local\nport: 0\n", "job.yaml: port: '0' is not a port"),
        ("queue: night\nmemory: 8x\n", "job.yaml: memory: '8x' is no amount of memory"),
    ],
)
def test_what_is_wrong_in_a_session_s_file_is_said_to_be_there(refused: Asked, content: str, words: str) -> None:
    assert words in refused(content, verb="session")
    assert "job.yaml" not in refused("host: local\n", "--name", "Foo_Bar", verb="session")


def test_code_that_can_not_be_sent_is_refused_where_it_was_said(
    refused: Asked, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "job.yaml: code: there is no folder nope" in refused("command: [a]\ncode: nope\n")
    assert "either --code" in refused("command: [a]\ncode: src\nfolder: /data\n")
    monkeypatch.setenv("HOME", str(project))
    assert "mlbox: you are in your home folder" in refused("command: [a]\nqueue: night\n")
    assert "job.yaml: cpus: " in refused("command: [a]\ncpus: -1\n")


def test_a_home_is_no_absence_of_a_folder(asked: Asked) -> None:
    assert asked("command: [pwd]\nfolder: ~\n")["spec"]["folder"] == "~"
    assert asked("command: [pwd]\nfolder: null\n")["spec"]["folder"] == ""


def test_whom_it_waits_for_by_names(asked: Asked) -> None:
    found = asked(f"command: [a]\nafter: [train, {ULID.lower()}]\nafter_any: eval\n")
    assert found["after"] == [{"job": "train", "end": "ok"}, {"job": "eval", "end": "any"}]
    assert found["spec"]["after"] == [{"job": ULID, "end": "ok"}]


@pytest.mark.parametrize(("words", "count"), [((), 20), (("--array", "1"), 1), (("--array", ""), 0)])
def test_an_array_of_the_file_s_may_be_left_out(asked: Asked, words: tuple[str, ...], count: int) -> None:
    assert asked("command: [a]\narray: 20%4\n", *words)["array"] == count


def test_run_follows_the_first_of_an_array(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "job.yaml").write_text("command: [a]\narray: 20\n")
    assert cli.main(["run", "-f", "job.yaml", "--array", "1", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["array"] == 1


def test_run_follows_one_job_of_a_file_too(refused: Asked) -> None:
    assert "run follows one job" in refused("command: [a]\narray: 3\n", verb="run")


def test_it_is_read_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a shell's <(…), say."""
    os.mkfifo(project / "pipe")
    writer = threading.Thread(target=(project / "pipe").write_text, args=("command: [from, a, pipe]\n",))
    writer.start()
    assert cli.main(["run", "-f", "pipe", "--dry-run", "--json"]) == 0
    writer.join()
    assert json.loads(capsys.readouterr().out)["spec"]["command"] == ["from", "a", "pipe"]
