"""A submission that is interrupted says what may have become of it."""

from __future__ import annotations

import pytest

from mlbox.client import lab
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
