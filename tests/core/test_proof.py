"""A guest's proof is its key's and its nonce's, and nothing else passes for one."""

from __future__ import annotations

import pytest

from mlbox.core.proof import proof, proves


def test_a_proof() -> None:
    assert proves(proof("k3y", "n1"), "k3y", "n1")
    # RFC 4231, test case 2
    assert proof("Jefe", "what do ya want for nothing?").startswith("5bdcc146bf60754e6a042426089575c75a003f089d27")


@pytest.mark.parametrize("said", [None, 7, "", "é", "n1", proof("k3y", "n2"), proof("other", "n1"), proof("", "n1")])
def test_none(said: object) -> None:
    assert not proves(said, "k3y", "n1")
