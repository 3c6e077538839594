"""Where a session is looked for: where it was, then on all hosts; and what is told when it is nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlbox import errors
from mlbox.client import sessions, ssh_config, state
from mlbox.client.commands import info, shutdown
from mlbox.client.commands import list as listing

CONFIG = state.Config(hosts=("gpu1", "gpu2"))
DOWN = errors.Unreachable("gpu1: no answer")


@pytest.fixture(autouse=True)
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each replies to the question for its sessions."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state.remember_session("01ARYZ6S41TSV4RRFFQ69G5FAV", "kind-otter", "gpu1", "")
    replies: dict[str, Any] = {"gpu1": DOWN, "gpu2": {"sessions": [], "met_at": {}}}
    monkeypatch.setattr(sessions, "connect", lambda name, *_: SimpleNamespace(name=name))
    for module in (sessions, listing):
        monkeypatch.setattr(module, "ask_all", lambda names, *_: {name: replies[name] for name in names})
    return replies


def there(name: str = "kind-otter") -> dict[str, Any]:
    return {"sessions": [{"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": name}], "met_at": {}}


class Act:
    def __init__(self, raises: dict[str, errors.MlboxError]) -> None:
        self.raises = raises
        self.tried: list[str] = []

    def __call__(self, host: Any) -> str:
        self.tried.append(host.name)
        if host.name in self.raises:
            raise self.raises[host.name]
        return f"done on {host.name}"


@pytest.mark.parametrize("error", [DOWN, errors.NotFound("not here")], ids=["down", "gone"])
def test_it_is_found_on_another_host(hosts: dict[str, Any], error: errors.MlboxError) -> None:
    hosts["gpu2"] = there()
    assert sessions.at_session("kind-otter", "", CONFIG, Act({"gpu1": error})) == "done on gpu2"


def test_nowhere_else_and_its_host_is_down() -> None:
    with pytest.raises(errors.Unreachable, match="gpu1: no answer"):
        sessions.at_session("kind-otter", "", CONFIG, Act({"gpu1": DOWN}))


def test_what_failed_where_it_runs_is_not_done_twice(hosts: dict[str, Any]) -> None:
    hosts["gpu1"] = there()
    act = Act({"gpu1": errors.Unreachable("no tunnel comes up")})
    with pytest.raises(errors.Unreachable, match="no tunnel comes up"):
        sessions.at_session("kind-otter", "", CONFIG, act)
    assert act.tried == ["gpu1"]


@pytest.mark.parametrize("wanted", ["01ARYZ6S", "q69g5fav", "kind-otter"])
def test_it_is_found_by_a_part_of_its_id(wanted: str, hosts: dict[str, Any]) -> None:
    hosts["gpu1"] = {"sessions": [{"id": "01ARYZ6S41TSV4RRFFQ69G5FAW", "name": "q69g5fav"}], "met_at": {}}
    hosts["gpu2"] = there()
    if wanted == "01ARYZ6S":
        del hosts["gpu1"]["sessions"][:]
    found = "gpu1" if wanted == "q69g5fav" else "gpu2"  # a name before a part of an id
    assert sessions.ask_around(wanted, CONFIG).name == found
    assert sessions.ask_around("69G5FAV", CONFIG).name == "gpu2"


def test_where_no_host_could_be_asked_that_is_said(hosts: dict[str, Any]) -> None:
    hosts.update(gpu1=errors.HostUnready("no python3", "install it"), gpu2=errors.Unreachable("gpu2: no route"))
    with pytest.raises(errors.HostUnready) as unready:
        sessions.at_session("heron", "", CONFIG, Act({}))
    assert (unready.value.message, unready.value.hint) == ("gpu1: no python3", "install it\nnot asked: gpu2 (no route)")
    hosts["gpu1"] = there()
    with pytest.raises(errors.NotFound) as missing:
        sessions.at_session("heron", "", CONFIG, Act({}))
    assert missing.value.message == "no session 'heron' is running on gpu1"
    assert missing.value.hint == "not asked: gpu2 (no route)"


# ---- a colleague's ----------------------------------------------------------------------------------------

SHARED = {"id": "01ARYZ6S41TSV4RRFFQ69G5FAW", "name": "heron", "owner": "ada"}


@pytest.mark.parametrize("wanted", ["heron", SHARED["id"], "ada/heron", f"ada/{SHARED['id']}"])
def test_a_colleague_s_is_found_where_it_is_meant(hosts: dict[str, Any], wanted: str) -> None:
    hosts["gpu2"] = {"sessions": [SHARED], "met_at": {}}
    assert sessions.at_session(wanted, "", CONFIG, Act({})) == "done on gpu2"


@pytest.mark.parametrize("wanted", ["", "bob/heron", "ada/", "ada"])
def test_a_colleague_s_is_not_taken_for_another(hosts: dict[str, Any], wanted: str) -> None:
    hosts["gpu2"] = {"sessions": [SHARED], "met_at": {}}
    with pytest.raises(errors.NotFound):
        sessions.at_session(wanted, "", CONFIG, Act({}))


def test_the_only_one_of_one_s_own_is_meant_beside_a_colleague_s(hosts: dict[str, Any]) -> None:
    hosts["gpu1"], hosts["gpu2"] = there(), {"sessions": [SHARED], "met_at": {}}
    assert sessions.at_session("", "", CONFIG, Act({})) == "done on gpu1"


def offered(owner: str, at: str = "gpu1") -> Any:
    """What a host replies for a session by its id; `owner`: whose door it is."""
    session = {"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": "kind-otter", **({"owner": owner} if owner else {})}
    transport = SimpleNamespace(public_keys=lambda: ())
    return SimpleNamespace(name=at, transport=transport, call=lambda *_: {"session": session})


@pytest.mark.parametrize(("before", "now", "at"), [("", "eve", "gpu1"), ("ada", "eve", "gpu1"), ("ada", "eve", "gpu2")])
def test_an_id_is_one_person_s_for_ever(before: str, now: str, at: str) -> None:
    state.remember_session("01ARYZ6S41TSV4RRFFQ69G5FAV", "kind-otter", "gpu1", "", owner=before)
    with pytest.raises(errors.Refused, match=f"and now {now} offers one"):
        sessions.reveal(offered(now, at), "kind-otter")


@pytest.mark.parametrize(
    ("before", "now", "at"), [("ada", "ada", "gpu1"), ("ada", "", "gpu1"), ("", "ada", "gpu1-bob")]
)
def test_and_that_person_s_on_every_way(before: str, now: str, at: str) -> None:
    """One's own is one's own, and may be reached as a colleague too: by another account of one's own."""
    state.remember_session("01ARYZ6S41TSV4RRFFQ69G5FAV", "kind-otter", "gpu1", "", owner=before)
    assert sessions.reveal(offered(now, at), "kind-otter").get("owner", "") == now


@pytest.mark.parametrize(
    ("owner", "known", "warned"),
    [("", "heron", False), ("", "mlbox-heron", True), ("ada", "mlbox-heron", False), ("ada", "mlbox-01", True)],
)
def test_a_name_that_is_another_than_to_be_expected_is_said(
    owner: str, known: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entered: list[object] = []

    def enter(*words: object) -> str:
        entered.append(words[-1])
        return known

    monkeypatch.setattr(ssh_config, "enter", enter)
    transport = SimpleNamespace(way=lambda _: {}, identity_files=tuple, agent=str)
    session = {**SHARED, "owner": owner, "services": {"ssh": {"socket": "/s"}}, "guest_socket": "/g"}
    there: Any = SimpleNamespace(name="gpu1", root="", via="", transport=transport)
    sessions.enter(there, session)
    assert entered == [owner]
    assert ("means something else" in capsys.readouterr().err) == warned
    reach = sessions.reach(there, session)
    assert reach.owner == reach.to_wire().get("owner", "") == owner


# ---- on hosts that can't be dialled ------------------------------------------------------------------------


def met(*names: str) -> dict[str, Any]:
    """What gpu2 replies of ws, which can't be dialled."""
    told = [{"id": f"01ARYZ6S41TSV4RRFFQ69G5FA{n}", "name": name, "host": "ws", "via": "gpu2"}
                for n, name in enumerate(names)]  # fmt: skip
    return {"sessions": told, "met_at": {"ws": "gpu2"}}


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "of_session", lambda s, _: SimpleNamespace(name=f"{s['name']} through {s['via']}"))


@pytest.mark.usefixtures("reached")
@pytest.mark.parametrize("wanted", ["far", "01ARYZ6S41TSV4RRFFQ69G5FA1"])
def test_a_session_on_a_host_that_can_not_be_dialled(hosts: dict[str, Any], wanted: str) -> None:
    hosts["gpu2"] = met("near", "far")
    assert sessions.at_session(wanted, "ws", CONFIG, Act({})) == "done on far through gpu2"


@pytest.mark.parametrize(
    ("names", "wanted", "why"),
    [
        ((), "far", "no session 'far' is running on ws, which is met at gpu2"),
        ((), "", "no session of yours is running on ws, which is met at gpu2"),
        (("near", "far"), "", "2 sessions of yours run on ws"),
    ],
)
def test_it_is_not_dialled_where_it_has_no_such_session(
    hosts: dict[str, Any], names: tuple[str, ...], wanted: str, why: str
) -> None:
    hosts["gpu2"] = met(*names)
    with pytest.raises(errors.NotFound, match=why):
        sessions.at_session(wanted, "ws", CONFIG, Act({}))


def test_a_host_that_nobody_tells_of_is_dialled(hosts: dict[str, Any]) -> None:
    hosts["gpu2"] = met("far")
    assert sessions.at_session("far", "gpu9", CONFIG, Act({})) == "done on gpu9"


def test_a_list_of_a_host_that_can_not_be_dialled(hosts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    hosts["gpu2"], hosts["gpu9"] = met("far"), {"sessions": [], "met_at": {}}
    assert listing.run(["ws", "gpu9"], CONFIG, True) == 0
    assert [session["host"] for session in json.loads(capsys.readouterr().out)] == ["ws"]
    hosts["gpu1"] = hosts["gpu2"] = met()
    for asked, told in ((["ws"], "ws"), ([], "gpu1, gpu2, ws"), (["gpu2"], "gpu2")):
        assert listing.run(asked, CONFIG, False) == 0
        assert capsys.readouterr().err == f"no session of yours is running on {told}\n"
    with pytest.raises(errors.NotFound, match="no session 'other' is running on gpu1, gpu2, ws"):
        sessions.at_session("other", "", CONFIG, Act({}))


@pytest.mark.parametrize(("asked", "listed"), [(["gpu9"], []), (["gpu9", "gpu2"], ["gpu2"]), ([], ["gpu2"])])
def test_a_list_of_a_host_that_was_not_known(
    asked: list[str], listed: list[str], hosts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The known ones are asked for it too, but not listed."""
    hosts["gpu1"] = hosts["gpu9"] = {"sessions": [], "met_at": {}}
    hosts["gpu2"] = there()
    assert listing.run(asked, CONFIG, True) == 0
    assert [session["host"] for session in json.loads(capsys.readouterr().out)] == listed


def test_a_list_forgets_no_session_met_elsewhere(hosts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry leads to gpu1, the rendezvous, and gpu2 tells of it, on which it runs."""
    kept: dict[str, list[str]] = {}
    monkeypatch.setattr(ssh_config, "keep_only", lambda name, _, living: kept.update({name: living}))
    facts = {"state": "started", "gpus": [], "image": "", "since": 0}
    hosts["gpu1"] = {"sessions": [], "met_at": {}}
    hosts["gpu2"] = {"sessions": [{"id": "01ARYZ6S41TSV4RRFFQ69G5FAV", "name": "met", **facts}], "met_at": {}}
    assert listing.run([], CONFIG, False) == 0
    assert kept == {"gpu1": ["01ARYZ6S41TSV4RRFFQ69G5FAV"], "gpu2": ["01ARYZ6S41TSV4RRFFQ69G5FAV"]}


def test_info_has_the_words_of_lists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = {
        "id": "01ARYZ6S41TSV4RRFFQ69G5FAV",
        "name": "kind-otter",
        "state": "started",
        "runtime": "process",
    }
    facts.update(image="", user="ada", gpus=[], since=0.0)
    monkeypatch.setattr(sessions, "at_session", lambda *_: (SimpleNamespace(name="gpu1"), facts))
    assert info.run("kind-otter", "", CONFIG, False) == 0
    assert "  state:   running\n  runtime: process\n  user:    ada\n" in capsys.readouterr().out


# ---- of a queue: elsewhere than it was ----------------------------------------------------------------------

KNOWN = "01ARYZ6S41TSV4RRFFQ69G5FAV"


def on(monkeypatch: pytest.MonkeyPatch, raises: errors.MlboxError | None = None) -> None:
    """What a host says of it by its log."""

    def call(verb: str, args: dict[str, Any]) -> dict[str, Any]:
        assert (verb, args) == ("sessions", {"session": KNOWN, "lab": ""})
        if raises is not None:
            raise raises
        return {"session": there()["sessions"][0]}

    monkeypatch.setattr(sessions, "connect", lambda name, *_: SimpleNamespace(name=name, call=call))
    monkeypatch.setattr(sessions, "of_session", lambda s, _: SimpleNamespace(name=s["host"]))


def test_one_of_a_queue_is_found_on_another_host(hosts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And its own host, which may be away, is not asked."""
    on(monkeypatch)
    del hosts["gpu1"]
    hosts["gpu2"] = there()
    assert sessions.elsewhere(KNOWN, "gpu1", CONFIG).name == "gpu2"


def test_a_colleague_s_door_is_not_where_one_s_own_runs(hosts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, errors.NotFound("the session waits in line"))
    hosts["gpu0"] = {"sessions": [{**SHARED, "id": KNOWN}], "met_at": {}}
    config = state.Config(hosts=("gpu0", "gpu1", "gpu2"))
    with pytest.raises(errors.NotFound, match="waits in line"):
        sessions.elsewhere(KNOWN, "gpu1", config)
    hosts["gpu2"] = there()
    assert sessions.elsewhere(KNOWN, "gpu1", config).name == "gpu2"


def test_a_host_of_no_lab_hides_none(hosts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no sessions to list, and nothing to tell."""
    on(monkeypatch, errors.Ended("the session has ended: shut down"))
    known, hosts["gpu0"] = vars(sessions)["connect"], {"sessions": [], "met_at": {}}

    def refuse(*_: object) -> None:
        raise errors.HostUnready("/shared is not a folder of mlbox's")

    other = SimpleNamespace(name="gpu0", call=refuse)
    monkeypatch.setattr(sessions, "connect", lambda name, *rest: other if name == "gpu0" else known(name, *rest))
    with pytest.raises(errors.Ended):
        sessions.elsewhere(KNOWN, "gpu1", state.Config(hosts=("gpu0", "gpu1", "gpu2")))


def test_its_end_is_told_by_any_host_that_answers(hosts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, errors.Ended("the session has ended: shut down"))
    with pytest.raises(errors.Ended):
        sessions.elsewhere(KNOWN, "gpu1", CONFIG)
    hosts["gpu2"] = DOWN
    with pytest.raises(errors.NotFound, match="no other host") as caught:
        sessions.elsewhere(KNOWN, "gpu1", CONFIG)
    assert not isinstance(caught.value, errors.Ended)


def test_what_has_ended_is_looked_for_nowhere_else(hosts: dict[str, Any]) -> None:
    hosts["gpu2"] = there()
    act = Act({"gpu1": errors.Ended("the session has ended: shut down")})
    with pytest.raises(errors.Ended):
        sessions.at_session(KNOWN, "", CONFIG, act)
    assert act.tried == ["gpu1"]


@pytest.mark.parametrize(("reply", "hint"), [
    (there(), "mlbox session list shows what runs"),
    ({"sessions": [], "met_at": {}}, "mlbox session HOST starts one"),
])  # fmt: skip
def test_what_to_try_depends_on_whether_others_run(hosts: dict[str, Any], reply: dict[str, Any], hint: str) -> None:
    hosts["gpu2"] = reply
    with pytest.raises(errors.NotFound) as caught:
        sessions.ask_around("zzz", state.Config(hosts=("gpu2",)))
    assert caught.value.hint == hint


OTHER = "01BRYZ6S41TSV4RRFFQ69G5FAV"


def test_of_two_that_are_called_so_none_is_ended(hosts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that was started last either: ending can't be undone."""
    state.remember_session(OTHER, "kind-otter", "gpu2", "")
    hosts["gpu1"] = there()
    hosts["gpu2"] = {"sessions": [{"id": OTHER, "name": "kind-otter"}], "met_at": {}}
    monkeypatch.setattr(shutdown, "end", lambda host, *_: pytest.fail(f"ended on {host.name}"))
    with pytest.raises(errors.Several, match=f"on gpu1 .01ARYZ6S41TSV4RRFFQ69G5FAV., .* on gpu2 .{OTHER}."):
        shutdown.run("kind-otter", "", CONFIG, False)


def test_one_host_s_several_are_looked_for_nowhere_else(hosts: dict[str, Any]) -> None:
    hosts["gpu2"] = there()
    act = Act({"gpu1": errors.Several("2 sessions of yours are running on gpu1")})
    with pytest.raises(errors.Several):
        sessions.at_session("kind-otter", "", CONFIG, act)
    assert act.tried == ["gpu1"]


def test_a_name_that_two_have_is_no_word_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"01ARYZ6S41TSV4RRFFQ69G5FAV": "kind-otter", OTHER: "kind-otter", "01CRYZ6S41TSV4RRFFQ69G5FAV": "lone"}
    monkeypatch.setattr(ssh_config, "names", lambda: {id_: [f"mlbox-{id_.lower()}"] for id_ in entries})
    monkeypatch.setattr(ssh_config, "place", lambda id_: {"name": entries[id_]})
    said = [sessions.word_for(id_, name) for id_, name in entries.items()]
    assert said == ["01ARYZ6S41TSV4RRFFQ69G5FAV", OTHER, "lone"]


@pytest.mark.parametrize("both", [True, False], ids=["both are remembered", "one is"])
def test_another_of_its_name_is_not_meant_where_its_own_host_is_away(
    hosts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    if both:
        state.remember_session(OTHER, "kind-otter", "gpu2", "")
    hosts["gpu2"] = {"sessions": [{"id": OTHER, "name": "kind-otter"}], "met_at": {}}

    def end(host: Any, *_: object) -> int:
        if host.name == "gpu1":
            raise DOWN
        return pytest.fail("the other one was ended")

    monkeypatch.setattr(shutdown, "end", end)
    with pytest.raises(errors.Several if both else errors.Unreachable, match="gpu1"):
        shutdown.run("kind-otter", "", CONFIG, False)


def test_a_host_that_was_named_fails_a_list(hosts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.run((), CONFIG, as_json=True) == 0
    assert listing.run(("gpu1", "gpu2"), CONFIG, as_json=True) == 4
