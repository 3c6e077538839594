"""The short form of `make chaos`: every kind of fault once, and afterwards nothing was lost, doubled or left."""

from __future__ import annotations

from pathlib import Path

import faults
import pytest
from chaos import Chaos
from plans import short

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2", "gpu3")]


def test_chaos(tmp_path: Path) -> None:
    report = Chaos(short(14), tmp_path).run()
    print(report)
    assert report.violations == []
    made = {kind for kind in report.faults if not kind.endswith(" in vain")}
    assert {*made, *faults.VICTIMS} == set(faults.KINDS)
    assert len(made & {*faults.VICTIMS}) > 1  # whether one runs just then that is to be killed is the machine's timing
