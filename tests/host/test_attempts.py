"""How an attempt ended, by its runner's record and what its engine saw; and how that is put on record."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from queuebox import Box

from mlbox.core.gpu import Gpu
from mlbox.core.verdict import Outcome
from mlbox.host import attempts, nvml, usage

LOST = Outcome(lost="docker failed while it ran (its output)")


@pytest.mark.parametrize(
    ("record", "seen", "outcome"),
    [
        ({"exit": 125}, (125, False), Outcome(125)),  # the job's own
        ({"exit": 125}, (137, False), LOST),  # the daemon was killed, and the container with it
        ({"exit": 125}, (None, False), Outcome(unstarted="docker did not start it: no such flag")),  # it never ran
        ({"exit": 125, "stopped": True}, (137, False), Outcome(125, stopped=True)),
        ({"exit": 137}, (137, True), Outcome(137, 9, oom=True)),
        ({"exit": 137}, (137, False), Outcome(137, 9)),
        ({"exit": 3}, None, Outcome(3)),  # the engine is not asked
    ],
)
def test_docker_run_s_own_failure_is_not_the_job_s(
    tmp_path: Path, record: dict[str, Any], seen: tuple[int | None, bool] | None, outcome: Outcome
) -> None:
    (tmp_path / "exit.json").write_text(json.dumps({"signal": 0, **record}))
    (tmp_path / "output.log").write_text("no such flag\n")
    job = SimpleNamespace(boot_folder=tmp_path, id="01ARYZ6S41TSV4RRFFQ69G5FAV")
    work = SimpleNamespace(runtime="docker")
    attempt: Any = SimpleNamespace(job=job, spec=SimpleNamespace(work=work), folder=tmp_path)

    def ending(session: str) -> tuple[int | None, bool]:
        assert seen is not None and session == job.id
        return seen

    engine: Any = SimpleNamespace(ending=ending)
    assert attempts.outcome(attempt, engine) == outcome


def test_gpu_time_is_counted_once_though_the_end_is_recorded_again(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = attempts.settle, usage._add
    tries = tmp_path / "tries"

    def settle(*arguments: Any) -> None:
        with tries.open("a") as file:
            file.write("x")
        if tries.read_text() == "x":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*arguments)

    def counted(*arguments: Any) -> None:
        with (tmp_path / "counted").open("a") as file:
            file.write("x")
        count(*arguments)

    monkeypatch.setattr(attempts, "settle", settle)
    monkeypatch.setattr(usage, "_add", counted)
    monkeypatch.setattr(nvml, "is_there", lambda: True)
    monkeypatch.setattr(nvml, "gpus", lambda: ([Gpu(0, "GPU-1", "A100", 40960)], "550"))
    assert box.end(box.sh("true", resources={"gpus": "1"})).name == "finished"
    assert (tries.read_text(), (tmp_path / "counted").read_text()) == ("xx", "x")
