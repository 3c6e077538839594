"""What may go, by its last use."""

from __future__ import annotations

import pytest

from mlbox.core.stored import DAY, Stored, expendable, parse_age, size
from mlbox.errors import Usage

NOW = 1000 * DAY


def used(days: float, stays: str = "") -> Stored:
    return Stored("layer", f"mlbox-layer:{days}", 1, NOW - days * DAY, "docker x", stays)


def test_what_is_in_use_stays_whatever_its_age() -> None:
    things = [used(31), used(29), used(400, "in use"), used(30)]
    assert expendable(things, NOW, 30 * DAY) == [things[0], things[3]]
    assert expendable(things, NOW, 0) == [things[0], things[1], things[3]]


def test_what_was_used_in_the_future_by_another_clock_stays() -> None:
    assert expendable([used(-1)], NOW, 0) == []


def test_it_survives_the_wire() -> None:
    assert Stored.from_wire(used(3, "in use").to_wire()) == used(3, "in use")


@pytest.mark.parametrize(("words", "seconds"), [("30d", 30 * DAY), ("12h", 43200), ("0d", 0)])
def test_ages(words: str, seconds: float) -> None:
    assert parse_age(words) == seconds


@pytest.mark.parametrize("words", ["", "d", "30", "-1d", "1.5d", "30 d", "1w", "9999999d", "²d"])
def test_what_is_no_age(words: str) -> None:
    with pytest.raises(Usage, match="no age"):
        parse_age(words)


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (1_500_000, "1.5 MB"), (45e9, "45.0 GB"), (450e9, "450 GB"),
     (2e12, "2.0 TB")],
)  # fmt: skip
def test_sizes(amount: float, words: str) -> None:
    assert size(amount) == words
