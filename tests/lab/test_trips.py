"""How often each command uses the network: counted at an `ssh` that notes its calls (scripts/benchkit)."""

from __future__ import annotations

import contextlib

import pytest
from benchkit import trips
from benchkit.laptop import Laptop
from benchkit.trips import Trips

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

ONCE = {"status", "status, cold", "session list", "session info", "session shutdown"}
ONCE_AND_A_TUNNEL = {"session attach", "session start, attached", "session start, detached"}


def test_a_command_is_one_round_trip_and_a_tunnel_one_connection() -> None:
    with contextlib.closing(Laptop("gpu2")) as laptop:
        found = trips.count(laptop)
    assert set(found) == ONCE | ONCE_AND_A_TUNNEL
    for name, counted in found.items():
        assert (name, counted) == (name, Trips(1, int(name in ONCE_AND_A_TUNNEL), counted.local))
