"""What a waiting job held up starts when that one is cancelled: no cron is there to find it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from queuebox import Box, Call

from mlbox import cli
from mlbox.client.remote import Host
from mlbox.core.schedule import After
from mlbox.host import view
from mlbox.host.handlers import queue
from mlbox.host.job import Job
from mlbox.host.serve import HANDLERS

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def laptop(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls are answered in this process."""

    def answered(self: Host, verb: str, args: Json, on_progress: object) -> Json:
        handler = importlib.import_module(f"mlbox.host.handlers.{HANDLERS[verb]}")
        reply: Json = handler.run(Call(**{**args, "root": box.root}))
        return reply

    monkeypatch.setattr(Host, "_call", answered)


@pytest.fixture
def big(box: Box, monkeypatch: pytest.MonkeyPatch) -> Job:
    """It is the first in line, asks for all memory, and some of that is in use: none is left for others."""
    monkeypatch.setattr(view, "_memory_free", lambda: view._memory() - 1)
    box.call(queue, do="pause", queue="default")
    return box.submit("true", resources={"memory": view._memory()}, name="big")


def resume(box: Box) -> None:
    (box.root / "paused/default").unlink()
    assert box.tick().started == ()


def test_what_room_was_kept_from(box: Box, big: Job) -> None:
    small = box.submit("true", resources={"memory": 1})
    resume(box)
    assert cli.main(["cancel", "big", "--root", str(box.root)]) == 0
    assert (box.end(big).name, box.end(small).name) == ("cancelled", "finished")


def test_what_waited_for_its_end(box: Box, big: Job) -> None:
    behind = box.submit("true", after=(After(big.id, "any"),))
    resume(box)
    assert cli.main(["cancel", "big", "--root", str(box.root)]) == 0
    assert box.end(behind).name == "finished"


def test_what_waited_for_one_that_can_never_run_then(box: Box, big: Job) -> None:
    doomed = box.submit("true", after=(After(big.id, "ok"),))
    behind = box.submit("true", after=(After(doomed.id, "any"),))
    resume(box)
    assert cli.main(["cancel", "big", "--root", str(box.root)]) == 0
    assert (box.end(doomed).name, box.end(behind).name) == ("failed", "finished")


def test_what_is_cancelled_next_is_not_started_before(box: Box, big: Job) -> None:
    small = box.submit("true", resources={"memory": 1}, name="small")
    resume(box)
    assert cli.main(["cancel", "big", "small", "--root", str(box.root)]) == 0
    assert box.end(small).name == "cancelled" and not box.claims(small)
