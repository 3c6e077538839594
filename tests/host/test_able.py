"""A job that this host does not start: the others that could are named, for the laptop to tell them."""

from __future__ import annotations

from typing import Any

import pytest
from queuebox import Box

from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.session import Spec
from mlbox.host import files, heard
from mlbox.host.handlers import cancel, host, move, queue, retry, submit

LAB = """
hosts:
  HERE: {queues: [default, night]}
  gpu6: {}
  gpu7: {queues: [default]}
  gpu8: {queues: [night]}
  gpu9: {ssh: lab-nine, queues: [night]}
queues: {default: {}, night: {}}
"""


@pytest.fixture(autouse=True)
def others(box: Box) -> None:
    """Of whom gpu6 has never been heard of."""
    box.lab(LAB.replace("HERE", box.found.host))
    for name, cpus in (("gpu7", 4000), ("gpu8", 1), ("gpu9", 4000)):
        files.make_folder(box.found.on(name))
        told = f'{{"at": 1.0, "gpus": [], "cpus": {cpus}, "memory": 1}}'
        files.write_whole(box.found.on(name) / "host.json", told.encode())


def submitted(box: Box, cpus: int, queue: str = "night") -> dict[str, Any]:
    resources = Resources(gpus="0", cpus=cpus)
    spec = JobSpec(command=("true",), work=Spec(runtime="process"), resources=resources, queue=queue)
    reply = box.call(submit, spec=spec.to_wire())
    box.jobs.append(box.found.job(reply["jobs"][0]["id"]))
    return reply


def retried(box: Box, cpus: int) -> dict[str, Any]:
    (box.root / "paused").mkdir()
    (box.root / "paused/night").touch()
    submitted(box, cpus)
    box.cancel(box.jobs[-1])
    (box.root / "paused/night").unlink()
    reply = box.call(retry, job=box.jobs[-1].id)
    box.jobs.append(box.found.job(reply["id"]))
    return reply


def moved(box: Box, cpus: int) -> dict[str, Any]:
    (box.root / "paused").mkdir()
    (box.root / "paused/default").touch()
    submitted(box, cpus, "default")
    return box.call(move, job=box.jobs[-1].id, queue="night")


@pytest.mark.parametrize("act", [submitted, retried, moved])
def test_who_could_run_it_is_named(act: Any, box: Box) -> None:
    assert act(box, 3000)["elsewhere"] == ["lab-nine"]


@pytest.mark.parametrize("act", [submitted, retried, moved])
@pytest.mark.parametrize("away", ["drained", "silent"])
def test_nobody_is_who_starts_nothing_just_now(act: Any, away: str, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    if away == "drained":
        box.call(host, do="drain", name="gpu9")
    else:
        monkeypatch.setattr(heard, "silent", lambda *_: {"gpu9": 2 * heard.LONG})
    assert act(box, 3000)["elsewhere"] == []


def test_all_are_told_that_one_left_the_line(box: Box) -> None:
    """Whatever they serve: what it held up may be in any queue."""
    box.call(queue, do="pause", queue="night")
    submitted(box, 0)
    assert box.call(cancel, job=box.jobs[-1].id, dry_run=True)["elsewhere"] == []
    assert box.cancel(box.jobs[-1])["elsewhere"] == ["gpu7", "gpu8", "lab-nine"]
    assert box.cancel(box.jobs[-1])["elsewhere"] == []
    box.call(host, do="drain", name="gpu8")
    assert box.call(host, do="fence", name="gpu7")["nudge"] == ["lab-nine"]


@pytest.mark.parametrize("act", [submitted, retried, moved])
def test_nobody_is_where_it_has_started(act: Any, box: Box) -> None:
    assert act(box, 0)["elsewhere"] == []
    assert box.end(box.jobs[-1]).name == "finished"
