"""When a session is looked for, and how often."""

from __future__ import annotations

import queue
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mlbox import errors
from mlbox.client import sessions, whereabouts
from mlbox.client.reach import Reach
from mlbox.client.state import Config
from mlbox.client.whereabouts import Found, Looking, Place

REACH = Reach("01ARYZ6S41TSV4RRFFQ69G5FAV", "nomad", "local", "/share/lab", {}, "/g.sock", moves=True, lab="c0ffee")
PLACE = Place.of(REACH, Config())
NOWHERE, HERE = errors.NotFound("it runs nowhere"), errors.NotFound("it waits in line")


@pytest.fixture(autouse=True)
def lab(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sessions that its others were asked for."""
    asked: list[str] = []

    def elsewhere(session: str, than: str, config: Config, lab: str) -> None:
        assert than in ("", "local") and (config.root, lab) == ("/share/lab", "c0ffee")
        asked.append(session)
        raise NOWHERE

    monkeypatch.setattr(sessions, "elsewhere", elsewhere)
    return asked


def looking() -> tuple[Looking, queue.Queue[Found]]:
    heard: queue.Queue[Found] = queue.Queue()
    return Looking(Config(), lambda found, away: heard.put(found)), heard


def test_without_its_host_it_is_looked_for_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(whereabouts, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made, heard = looking()
    looks = []
    for _ in range(1800):  # s, as an attempt fails each second
        made.begin(PLACE, away=True)
        made.wait(20)
        looks += [now[0]] * heard.qsize()
        while not heard.empty():
            assert heard.get() is NOWHERE
        now[0] += 1
    assert looks[0] == 1000.0 and 7 <= len(looks) <= 10
    made.rest()
    made.begin(PLACE, away=True)
    assert heard.get(timeout=20) is NOWHERE


def test_a_host_that_answers_is_asked_each_time(monkeypatch: pytest.MonkeyPatch, lab: list[str]) -> None:
    """The tunnels tell how often. The others are asked rarely all the same: it may wait in line for days."""
    asked: list[str] = []

    def reveal(host: object, session: str, lab: str) -> None:
        assert lab == "c0ffee"
        asked.append(session)
        raise HERE

    monkeypatch.setattr(sessions, "reveal", reveal)
    made, heard = looking()
    for _ in range(3):
        made.begin(PLACE, away=False)
        assert heard.get(timeout=20) is HERE
        made.wait(20)
    assert (asked, lab) == ([REACH.id] * 3, [REACH.id])


def test_only_one_of_a_queue_is_looked_for_elsewhere(monkeypatch: pytest.MonkeyPatch, lab: list[str]) -> None:
    def reveal(host: object, session: str, lab: str) -> None:
        raise HERE

    monkeypatch.setattr(sessions, "reveal", reveal)
    made, heard = looking()
    stays = replace(PLACE, reach=replace(REACH, moves=False))
    made.begin(stays, away=True)
    made.wait(20)
    made.begin(stays, away=False)
    assert heard.get(timeout=20) is HERE and heard.empty() and lab == []


def test_a_colleague_s_is_not_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "reveal", lambda *_: {"owner": "eve"})
    monkeypatch.setattr(sessions, "elsewhere", lambda *_: PLACE.host)
    with pytest.raises(errors.NotFound, match="is eve's"):
        PLACE.now(Config(), here=False, around=True)
