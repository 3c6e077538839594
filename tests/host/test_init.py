"""A folder becomes a lab's ROOT, and nothing of the trials is left in it."""

from __future__ import annotations

import pytest
from queuebox import Box

from mlbox import errors
from mlbox.host.handlers import init


def test_what_the_trials_made_is_gone(box: Box) -> None:
    reply = box.call(init, ssh="gpu1")
    assert reply["problems"] == []
    race = ".trial-0123abcd"
    assert len(box.call(init, race=race)["won"]) == 25
    assert (box.root / race).is_dir()
    for _ in range(2):  # also when it is gone
        assert box.call(init, race=race, over=True)["left"] is False
    assert not list(box.root.glob(".trial-*"))


@pytest.mark.parametrize("name", ["users", "../x", ".trial-0123abcd/../users", ".trial-", "/etc"])
def test_only_a_trial_s_folder_is_made_or_removed(box: Box, name: str) -> None:
    for more in ({}, {"over": True}):
        with pytest.raises(errors.Usage):
            box.call(init, race=name, **more)
