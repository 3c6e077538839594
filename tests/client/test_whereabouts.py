"""When a session is looked for, and how often."""

from __future__ import annotations

import queue
from types import SimpleNamespace

import pytest

from mlbox import errors
from mlbox.client import sessions, whereabouts
from mlbox.client.reach import Reach
from mlbox.client.state import Config
from mlbox.client.whereabouts import Found, Looking, Place

REACH = Reach("01ARYZ6S41TSV4RRFFQ69G5FAV", "nomad", "local", "/share/lab", {}, "/g.sock", moves=True)
PLACE = Place.of(REACH, Config())
NOWHERE = errors.NotFound("it waits")


@pytest.fixture(autouse=True)
def lab(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(session: str, than: str, config: Config) -> None:
        assert (session, than, config.root) == (REACH.id, "local", "/share/lab")
        raise NOWHERE

    monkeypatch.setattr(sessions, "elsewhere", elsewhere)


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


def test_a_host_that_answers_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tunnels tell how often."""
    asked: list[str] = []

    def reveal(host: object, session: str) -> None:
        asked.append(session)
        raise errors.NotFound("it is not here")

    monkeypatch.setattr(sessions, "reveal", reveal)
    made, heard = looking()
    for _ in range(3):
        made.begin(PLACE, away=False)
        assert heard.get(timeout=20) is NOWHERE
        made.wait(20)
    assert asked == [REACH.id] * 3


def test_a_colleague_s_is_not_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "reveal", lambda *_: {"owner": "eve"})
    monkeypatch.setattr(sessions, "elsewhere", lambda *_: PLACE.host)
    with pytest.raises(errors.NotFound, match="is eve's"):
        PLACE.now(True, Config())
