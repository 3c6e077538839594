"""What was asked for, as a person reads it: by --dry-run and by `show`."""

from __future__ import annotations

from pathlib import Path

import homes
import pytest

from mlbox import cli
from mlbox.client import lab
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources

ASKED = ["--gpus", "A100:2", "--gpu-memory", "40G", "--time-limit", "90m", "--packages", "a,b", "--env", "TOKEN=s3cret"]
AFTER = "01ARYZ6S41TSV4RRFFQ69G5FAV"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = homes.fresh(tmp_path / "home", monkeypatch)
    monkeypatch.chdir(folder)
    return folder


def test_a_job_s_dry_run_says_what_is_not_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        *ASKED,
        "--image",
        "x",
        "--mount",
        "/a:/b:ro",
        "--mount",
        "/c:/d",
        "--after",
        AFTER,
        "--after",
        "eval",
        "--array",
        "20%4",
    ]
    assert cli.main(["submit", "--dry-run", *words, "--", "python", "a b"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "would submit: python 'a b'"
    assert sorted(rest) == [
        f"  after: {AFTER}:ok, eval:ok", "  array: 20", "  array_limit: 4", "  code: .", "  env: TOKEN=***",
        "  gpu_memory: 40 GiB", "  gpus: A100:2", "  image: x", "  mounts: /a:/b:ro, /c:/d", "  packages: a, b",
        "  queue: default", "  time_limit: 1h 30m",
    ]  # fmt: skip


def test_a_session_s_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "own.vsix").write_bytes(b"PK" * 5000)
    (home / "more.txt").write_text("einops\npandas\n")
    words = ["--packages", "a,b", "--requirements", "more.txt", "--vscode-extensions", "own.vsix", "--port", "6006"]
    for place, first in (
        (["local"], "would start on local, unless one of yours runs there, which would be joined:"),
        (["--queue", "night"], "would wait in queue night:"),
    ):
        assert cli.main(["session", *place, "--dry-run", *words]) == 0
        head, *rest = capsys.readouterr().out.splitlines()
        assert head == first
        assert sorted(set(rest) - {"  queue: night"}) == [
            "  extension_files: own.vsix", "  packages: a, b", "  port: 6006", "  requirements: 2 lines",
        ]  # fmt: skip


def test_show_says_it_in_words_that_can_be_typed_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = JobSpec(command=("sh", "-c", "a; b"), resources=Resources(gpu_share=8192, memory=512, time_limit=14400))
    job = {"id": AFTER, "name": "otter", "state": "submitted", "attempt": 1, "queue": "default", "host": "", "gpus": []}
    reply = {"job": job, "spec": spec.to_wire(), "folder": "/x", "progress": "", "waits": {}, "events": [], "silent": 0}

    class Entry:
        def call(self, verb: str, args: object) -> object:
            return reply

    monkeypatch.setattr(lab, "entry", lambda *_: Entry())
    assert cli.main(["show", "otter"]) == 0
    said = capsys.readouterr().out
    assert "command:   sh -c 'a; b'\n" in said
    assert "asked for: gpu_share 8 GiB, cpus 1, memory 512 MiB, time_limit 4h\n" in said
