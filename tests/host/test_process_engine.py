"""The engine that runs what it is given on the host itself: what it asks of the host, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlbox.core.session import Spec
from mlbox.host import engines, store
from mlbox.host.run import Cancel


@pytest.mark.parametrize(
    ("spec", "guest", "asks"),
    [
        (Spec(runtime="process"), False, False),
        (Spec(runtime="process"), True, True),
        (Spec(runtime="process", packages=("numpy",)), False, True),
        (Spec(runtime="process", requirements="numpy\n"), False, True),
        (Spec(runtime="process", init_script="true\n"), False, True),
    ],
)
def test_a_job_that_adds_nothing_to_its_host_asks_nothing_of_it(
    tmp_path: Path, spec: Spec, guest: bool, asks: bool
) -> None:
    engine = engines.by_name("process", store.Store(tmp_path))
    facts = engine.facts(spec, engine.identify(spec), Cancel(), guest)
    assert bool(facts.passwd) is asks
    assert facts.path == os.environ["PATH"]
