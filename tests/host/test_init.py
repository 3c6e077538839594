"""A folder becomes a lab's ROOT, and nothing of the trials is left in it."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from queuebox import Box, Call

from mlbox import errors
from mlbox.host import lab, race, slots
from mlbox.host.handlers import init


def test_what_the_trials_made_is_gone(box: Box) -> None:
    reply = box.call(init, ssh="gpu1")
    assert reply["problems"] == []
    trial = ".trial-0123abcd"
    assert len(box.call(init, race=trial)["won"]) == 25
    assert (box.root / trial).is_dir()
    for _ in range(2):  # also when it is gone
        assert box.call(init, race=trial, over=True)["left"] is False
    assert not list(box.root.glob(".trial-*"))


def test_a_root_that_no_container_could_mount_is_refused(tmp_path: Path) -> None:
    root, ask = tmp_path / "a:b/mlbox", cast(Any, init).run
    with pytest.raises(errors.Refused, match="it has a : in it"):
        ask(Call(root))
    assert not root.parent.exists()
    lab.make_root(root)  # of an older mlbox's: its jobs without a container run
    assert ask(Call(root))["made"] is False


@pytest.mark.parametrize("name", ["users", "../x", ".trial-0123abcd/../users", ".trial-", "/etc"])
def test_only_a_trial_s_folder_is_made_or_removed(box: Box, name: str) -> None:
    for more in ({}, {"over": True}):
        with pytest.raises(errors.Usage):
            box.call(init, race=name, **more)


def test_hosts_wait_for_one_another_and_each_wins_some(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda host: race.run(tmp_path, host, 3), ("gpu1", "gpu2", "gpu3")))
    won = sorted(slot for answer in answers for slot in answer["won"])
    assert won == list(range(1, len(won) + 1)) and len(won) >= race.SLOTS
    assert all(answer["met"] and len(answer["won"]) >= 5 for answer in answers)


def test_one_whom_nobody_meets_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_PATIENCE", 0.0)
    answer = race.run(tmp_path, "gpu1", 2)
    assert (answer["met"], len(answer["won"])) == (False, race.SLOTS)


def test_what_ends_a_writer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(slots.Files, "write", full)
    assert "No space left" in race.run(tmp_path, "gpu1")["broken"]


def test_an_error_that_passes_ends_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = iter([True] * 2)
    real = slots.Files.create

    def once(self: slots.Files, name: str) -> int:
        if name.isdigit() and next(failed, False):
            raise OSError(errno.EIO, "Input/output error", name)
        return real(self, name)

    monkeypatch.setattr(slots.Files, "create", once)
    said = race.run(tmp_path, "gpu1")
    assert said["broken"] == "" and len(said["won"]) >= race.SLOTS and next(failed, None) is None


def test_two_winners_of_a_name_are_a_problem(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem whose exclusive creation is none."""
    real = os.open

    def careless(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        return real(path, flags & ~os.O_EXCL, *rest, **named)

    monkeypatch.setattr(os, "open", careless)
    assert "exclusive creation has not exactly one winner" in box.call(init)["problems"][0]
    assert box.call(init, several=True)["problems"] == []  # that trial is one of all, and comes


def test_a_mark_that_was_set_for_nothing_is_taken_back(tmp_path: Path) -> None:
    """With the folder, where that was made for it; and never another lab's."""
    root, ask = tmp_path / "mlbox", cast(Any, init).run
    marked = ask(Call(root, **{"mark": True}))
    assert marked["made"] and marked["folder"] and [p.name for p in root.iterdir()] == ["mlbox.json"]
    other = {"unmark": marked["id"], "folder": True}
    assert ask(Call(tmp_path / "other", **other))["left"] is False  # another host took it back already
    assert ask(Call(root, **{"unmark": "0" * 16, "folder": True}))["left"] is True
    assert ask(Call(root, **{"unmark": marked["id"], "folder": True}))["left"] is False
    assert not root.exists() and not (tmp_path / "other").exists()
    root.mkdir()
    marked = ask(Call(root, **{"mark": True}))
    ask(Call(root, **{"unmark": marked["id"], "folder": marked["folder"]}))
    assert list(root.iterdir()) == []
    again = [ask(Call(root, **{"mark": True})) for _ in range(2)]
    assert [one["made"] for one in again] == [True, False] and len({one["id"] for one in again}) == 1


def test_a_mark_that_is_not_seen_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host has just set it, and this one's view of the share is from before."""
    known, real, looks = lab.make_root(tmp_path / "mlbox"), Path.exists, list[Path]()

    def exists(path: Path) -> bool:
        looks.append(path)
        return len(looks) > 2 and real(path)

    monkeypatch.setattr(lab, "_AGAIN", (0.0,) * 4)
    monkeypatch.setattr(Path, "exists", exists)
    assert lab.make_root(tmp_path / "mlbox") == known and len(looks) == 3
