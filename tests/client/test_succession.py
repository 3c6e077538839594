"""Which link is used, which comes next and which is given up: decided without a socket, a clock or a thread."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.client.tunnels.events import Timing, TunnelEvent
from mlbox.client.tunnels.succession import Action, End, Hurry, Route, Seen, Start, Succession, What

TIMING = Timing()


class World:
    """The links as they are, and what was decided about them."""

    def __init__(self, timing: Timing = TIMING) -> None:
        self.succession, self.now = Succession(timing), 1000.0
        self.seen: dict[int, Seen] = {}
        self.events: list[TunnelEvent] = []
        self.ended: dict[int, bool] = {}
        self.hurried: list[int] = []
        self.route: int | None = None

    def take(self, what: What, generation: int = 0, detail: str = "") -> None:
        self.act(self.succession.take(what, generation, detail, self.now, self.seen))

    def says(self, generation: int, *answers: str) -> None:
        for answer in answers:
            self.take("probe", generation, answer)

    def looks(self, generation: int, **changes: object) -> None:
        self.seen[generation] = dataclasses.replace(self.seen[generation], **changes)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        """All that falls due meanwhile, when it does."""
        end = self.now + seconds
        while (due := self.succession.due()) is not None and due <= end:
            self.now = max(self.now, due)
            self.act(self.succession.tick(self.now, self.seen))
            assert (self.succession.due() or end + 1) > self.now, "it would spin"
        self.now = end

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, TunnelEvent):
                self.events.append(action)
            elif isinstance(action, Start):
                assert action.generation == len(self.seen) + len(self.ended) + 1
                self.seen[action.generation] = Seen(idle=True, alive=True, words="")
            elif isinstance(action, End):
                del self.seen[action.generation]
                self.ended[action.generation] = action.cut
            elif isinstance(action, Route):
                self.route = action.generation
            elif isinstance(action, Hurry):
                self.hurried.append(action.generation)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def begun(timing: Timing = TIMING) -> World:
    world = World(timing)
    world.take("reconnect")
    world.wait(0)
    return world


def up(timing: Timing = TIMING) -> World:
    world = begun(timing)
    world.says(1, "answered")
    return world


def replaced() -> World:
    """The first one carries something and is silent; the second one has answered."""
    world = up()
    world.looks(1, idle=False)
    world.says(1, "silent")
    world.wait(1)
    world.says(2, "answered")
    return world


def test_the_first_link_is_used_once_it_answers() -> None:
    world = begun()
    assert (list(world.seen), world.route, world.events) == ([1], None, [])
    world.says(1, "silent", "silent")
    assert (world.route, world.events) == (None, [])
    world.says(1, "answered")
    assert (world.route, world.events) == (1, [TunnelEvent("up", 1)])
    assert world.succession.due() is None


def test_the_first_one_has_longer_to_come_up_for_somebody_may_be_asked() -> None:
    world = begun()
    world.wait(TIMING.first_start_limit - 1)
    world.says(1, "silent")
    assert list(world.seen) == [1]
    world.wait(1)
    assert world.ended == {1: True}
    assert world.events == [TunnelEvent("retrying", 1, "no answer")]
    world.wait(1)
    world.says(2, "answered")
    world.take("reconnect")
    world.wait(TIMING.start_limit - 1)
    assert list(world.seen) == [2, 3]
    world.wait(1)
    assert world.kinds() == ["retrying", "up", "retrying"]


def test_silence_starts_a_second_one_and_the_first_may_heal() -> None:
    world = up()
    world.looks(1, idle=False)
    world.wait(5)
    world.says(1, "silent")
    assert world.route is None
    assert world.events[-1] == TunnelEvent("lost", 1, "no answer for 4 s")
    world.says(1, "silent")
    world.wait(1)
    assert list(world.seen) == [1, 2]
    world.says(1, "answered")
    assert world.route == 1
    assert world.ended == {2: True}
    assert world.events[-1] == TunnelEvent("back", 1, downtime=TIMING.probe_timeout + 1)
    world.says(1, "silent", "answered")
    assert world.kinds() == ["up", "lost", "back", "lost", "back"]
    world.wait(1000)
    assert list(world.seen) == [1]


def test_an_old_one_lives_on_while_it_answers_within_the_grace() -> None:
    world = replaced()
    assert (world.route, list(world.seen)) == (2, [1, 2])
    world.wait(TIMING.grace - 1)
    world.says(1, "answered")
    world.wait(1000)
    assert list(world.seen) == [1, 2]
    world.says(1, "silent")
    world.wait(TIMING.grace - 1)
    world.says(1, "silent")
    assert list(world.seen) == [1, 2]
    world.wait(1)
    assert (list(world.seen), world.ended) == ([2], {1: True})


def test_a_silent_old_one_need_not_be_asked_again_to_be_given_up() -> None:
    world = replaced()
    world.wait(TIMING.grace)
    assert world.ended == {1: True}


def test_an_old_one_that_answered_last_has_no_limit() -> None:
    world = up()
    world.looks(1, idle=False)
    world.take("reconnect")
    world.wait(0)
    world.says(2, "answered")
    world.wait(1000)
    assert list(world.seen) == [1, 2]


def test_an_old_one_goes_once_nothing_runs_over_it() -> None:
    world = replaced()
    world.take("drained", 1)
    world.take("drained", 2)
    assert list(world.seen) == [1, 2]
    world.looks(1, idle=True)
    world.take("drained", 1)
    assert list(world.seen) == [2]
    world.says(1, "answered")  # a probe that was under way
    world.take("ended", 1)
    assert world.route == 2


def test_one_that_carries_nothing_goes_at_once() -> None:
    world = up()
    world.take("reconnect")
    world.wait(0)
    assert world.route == 1
    world.says(2, "answered")
    assert (world.route, list(world.seen)) == (2, [2])
    assert world.events[-1] == TunnelEvent("back", 2)


def test_what_runs_over_one_whose_process_has_gone_ends_by_itself() -> None:
    world = up()
    world.looks(1, words="Timeout, server not responding.\nConnection reset")
    world.take("ended", 1)
    assert (world.route, world.ended) == (None, {1: False})
    assert world.events[-1] == TunnelEvent("lost", 1, "Connection reset")


def test_the_end_of_one_that_was_silent_before_is_no_second_loss() -> None:
    world = up()
    world.says(1, "silent")
    world.take("ended", 1)
    world.wait(1)
    assert world.kinds() == ["up", "lost"]
    assert list(world.seen) == [2]


@pytest.mark.parametrize("steady", [True, False])
def test_what_was_up_for_long_is_dialled_anew_at_once(steady: bool) -> None:
    timing = dataclasses.replace(TIMING, backoff_first=30, backoff_last=30)
    world = up(timing)
    world.wait(timing.steady if steady else timing.steady - 1)
    world.take("ended", 1)
    world.wait(0)
    assert list(world.seen) == ([2] if steady else [])
    world.wait(0 if steady else 40)
    assert list(world.seen) == [2]


def test_attempts_go_on_ever_more_rarely_one_at_a_time() -> None:
    world = begun()
    for generation in range(1, 30):
        world.take("reconnect")
        world.take("reconnect")
        assert list(world.seen) == [generation]
        world.looks(generation, words="connect to host: No route to host")
        world.take("ended", generation)
        before = world.now
        world.wait(1000 if not world.succession.due() else world.succession.due() - world.now)  # type: ignore[operator]
    assert set(world.kinds()) == {"retrying"}
    assert TIMING.backoff_last * 0.75 <= world.now - before <= TIMING.backoff_last * 1.25
    assert world.hurried == sorted([*range(1, 30)] * 2)


@pytest.mark.parametrize("words", ["", "Permission denied (publickey)."])
def test_success_starts_the_attempts_afresh(words: str) -> None:
    """That of a login at once, that of a connection once it has lasted."""
    first = TIMING.barred_first if words else TIMING.backoff_first
    world = begun()
    for generation in range(1, 8):
        world.looks(generation, words=words)
        world.take("ended", generation)
        world.take("reconnect")
        world.wait(0)
    world.says(8, "answered")
    world.wait(TIMING.steady)
    world.take("ended", 8)
    world.wait(0)
    world.looks(9, words=words)
    world.take("ended", 9)
    world.wait(first * 1.25)
    assert list(world.seen) == [10]


def test_one_that_cannot_be_made_is_an_attempt() -> None:
    world = begun()
    del world.seen[1]
    world.ended[1] = False
    world.take("failed", 1, "no folder")
    assert world.events == [TunnelEvent("retrying", 1, "no folder")]
    world.wait(1)
    assert list(world.seen) == [2]


_JUMPED = "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535"


@pytest.mark.parametrize(
    ("said", "barred"),
    [
        ("ada@gpu1: Permission denied (publickey,password).", True),
        (f"ada@jump: Permission denied (publickey).\n{_JUMPED}", True),
        ("Load key: Permission denied\nada@gpu1: Permission denied (publickey).", True),
        ("No ED25519 host key is known for gpu1.\nHost key verification failed.", True),
        (f"Received disconnect: Too many authentication failures\nDisconnected from gpu1\n{_JUMPED}", True),
        ('Load key "/home/ada/.ssh/id_rsa": Permission denied\nConnection to gpu1 timed out', False),
        (
            "Welcome. Elsewhere it says: Permission denied (by policy).\n" + "more\n" * 4 + "reset by peer",
            False,
        ),
        ("ssh: connect to host gpu1 port 22: No route to host", False),
    ],
)
def test_a_login_that_ssh_s_last_words_refuse_is_not_repeated_soon(said: str, barred: bool) -> None:
    world = begun()
    world.looks(1, words=said)
    world.take("ended", 1)
    assert world.events == [TunnelEvent("retrying", 1, said.splitlines()[-1], barred=barred)]
    world.wait(TIMING.barred_first / 2)
    assert list(world.seen) == ([] if barred else [2])
    if barred:
        world.take("reconnect")  # the user may ask for it
        world.wait(0)
        assert list(world.seen) == [2]


def test_nobody_behind_a_link_is_no_reason_for_another_one() -> None:
    world = begun()
    world.looks(1, words="one\nchannel 2: open failed")
    world.says(1, "refused")
    assert world.events == [TunnelEvent("refused", 1, "channel 2: open failed")]
    world.wait(10_000)
    assert list(world.seen) == [1]
    world.says(1, "silent")
    world.wait(TIMING.start_limit)
    assert world.ended == {1: True}


def test_the_host_is_asked_less_and_less_often() -> None:
    world = begun()
    for _ in range(600):
        world.says(1, "refused")
        world.wait(1)
    assert 10 <= len(world.events) <= 18
    world.says(1, "answered", "refused")
    assert world.kinds()[-2:] == ["up", "refused"]
    assert world.route == 1  # it is for the host to say no, at once
    world.wait(TIMING.refused_first * 1.25)
    world.says(1, "refused", "answered", "refused")
    assert world.kinds()[-3:] == ["refused"] * 3


def test_a_refusal_of_one_that_is_dying_is_not_told() -> None:
    world = begun()
    world.looks(1, alive=False)
    world.says(1, "refused")
    assert world.events == []


def test_nothing_goes_where_a_stranger_answers() -> None:
    world = begun()
    world.says(1, "stranger")
    assert (world.route, world.kinds()) == (None, ["stranger"])
    world.says(1, "answered")
    assert world.route == 1
    world.says(1, "stranger")
    assert world.route is None
    assert world.kinds()[-1] == "lost"
    assert "session's place" in world.events[-1].reason
    world.says(1, "refused")
    assert world.route is None


def test_both_are_hurried() -> None:
    world = up()
    world.take("reconnect")
    world.wait(0)
    world.take("hurry")
    assert world.hurried == [1, 2]


@pytest.mark.parametrize("carries", [False, True])
def test_where_the_session_was_nothing_is_carried_on(carries: bool) -> None:
    """Not by the current one, whatever it carries, nor by one that is coming up."""
    world = up()
    world.looks(1, idle=not carries)
    world.take("reconnect")
    world.wait(0)
    world.take("anew", detail="it moved")
    assert (world.route, world.ended) == (None, {1: True, 2: True})
    assert world.events[-1] == TunnelEvent("lost", 2, "it moved")
    world.says(1, "answered")
    world.wait(0)
    assert (list(world.seen), world.route) == ([3], None)
    world.says(3, "answered")
    assert (world.route, world.kinds()) == (3, ["up", "lost", "back"])


def test_what_was_lost_is_not_lost_again_when_the_session_starts_anew() -> None:
    world = up()
    world.says(1, "stranger")
    world.take("anew", detail="it moved")
    world.wait(0)
    assert (list(world.seen), world.kinds()) == ([2], ["up", "lost"])
    world.says(2, "answered")
    assert world.kinds()[-1] == "back"


def test_the_host_is_asked_at_once_of_a_new_start() -> None:
    world = begun()
    world.says(1, "refused", "refused")
    assert world.kinds() == ["refused"]
    world.take("anew")
    world.wait(0)
    world.says(2, "refused")
    assert world.kinds() == ["refused", "refused"]


LINKS = ["answered", "silent", "refused", "stranger", "ended", "drained", "busy"]
ASKED: dict[str, What] = {"reconnect": "reconnect", "hurry": "hurry", "anew": "anew"}
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 4.0, 11.0, 50.0, 700.0])),
    st.tuples(st.sampled_from([*ASKED]), st.just(0)),
    st.tuples(st.sampled_from(LINKS), st.integers(0, 3)),
)


@given(st.lists(STEPS, max_size=60))
def test_laws(steps: list[tuple[str, float]]) -> None:
    """Whatever happens: one starts at a time, nothing new goes where nobody has answered, a way that is lost is looked
    for, and loss and return are told in turn."""
    world, last = begun(), dict[int, str]()
    for what, number in steps:
        links = sorted(world.seen)
        if what == "wait":
            world.wait(number)
        elif what in ASKED:
            world.take(ASKED[what])
        elif links:
            link = links[int(number) % len(links)]
            if what == "busy":
                world.looks(link, idle=link != world.route)
            elif what == "drained":
                world.looks(link, idle=True)
                world.take("drained", link)
            elif what == "ended":
                world.looks(link, alive=False)
                world.take("ended", link)
            else:
                last[link] = what if (what, last.get(link)) != ("refused", "answered") else "answered"
                world.says(link, what)
        came_up = {event.generation for event in world.events if event.kind in ("up", "back")}
        starting = world.seen.keys() - came_up
        assert len(starting) <= 1
        if world.route is not None:
            assert world.route in world.seen and last[world.route] == "answered"
        elif world.succession.due() is None:
            assert any(last.get(link) in ("refused", "stranger") for link in starting)
        told = [kind for kind in world.kinds() if kind in ("up", "lost", "back")]
        assert told[:1] in ([], ["up"])
        assert all(one != other for one, other in zip(told, told[1:]) if "lost" in (one, other))
