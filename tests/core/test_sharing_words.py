"""What another user's keeper says at its door is taken by its form only."""

from __future__ import annotations

from typing import Any

import pytest

from mlbox import errors
from mlbox.core import sharing

Json = dict[str, Any]
ID = "01M8AK1K9S32X8M71682TR19D6"
FOLDER = f"/tmp/mlbox-1001.shared/{ID}"
SECRET = "0123456789abcdef" * 2
KEY = "ssh-ed25519 " + "A" * 68


def said(**changed: object) -> Json:
    services = {
        "jupyter": {"token": "t0ken-_"}, "vscode": {"token": "other", "folder": "/workspace"},
        "ssh": {"user": "ada", "host_key": KEY, "folder": "/workspace"},
    }  # fmt: skip
    good = {
        "name": "otter", "gpus": ["GPU-1"], "image": "i:1", "runtime": "docker", "since": 12.5, "trouble": {},
        "services": services, "secret": SECRET, "absent": {}, "guest_key": "k3y",
    }  # fmt: skip
    return {**good, **changed}


def test_what_a_good_keeper_says_is_what_one_s_own_says() -> None:
    facts = sharing.facts(said(), ID, "ada", "gpu2")
    assert (facts["id"], facts["name"], facts["owner"], facts["user"]) == (ID, "otter", "ada", "ada")
    assert (facts["gpus"], facts["image"], facts["since"], facts["host"]) == (["GPU-1"], "i:1", 12.5, "gpu2")
    found = sharing.reach(said(), FOLDER, "ada")
    assert (found["guest_socket"], found["guest_key"]) == (f"{FOLDER}/{SECRET}.guest", "k3y")
    older = said()
    del older["guest_key"]
    assert sharing.reach(older, FOLDER, "ada")["guest_key"] == ""
    assert found["services"]["jupyter"] == {"socket": f"{FOLDER}/{SECRET}.jupyter", "token": "t0ken-_"}
    assert found["services"]["ssh"]["host_key"] == KEY
    only = {"ssh": said()["services"]["ssh"]}
    assert list(sharing.reach(said(services=only, absent={"vscode": "no"}), FOLDER, "ada")["services"]) == ["ssh"]


def test_whose_it_is_and_where_its_sockets_are_is_not_its_to_say() -> None:
    lies = {"owner": "bob", "user": "bob", "id": ID[::-1], "host": "elsewhere", "state": "x\x1b", "queued": True}
    facts = sharing.facts(said(**lies), ID, "mallory", "gpu2")
    assert (facts["id"], facts["owner"], facts["user"], facts["host"]) == (ID, "mallory", "mallory", "gpu2")
    assert (facts["state"], facts["queued"]) == ("started", False)
    services = {"jupyter": {"token": "t", "socket": "/run/docker.sock"}}
    found = sharing.reach(said(services=services, guest_socket="/run/docker.sock"), FOLDER, "mallory")
    assert "docker" not in str(found)


@pytest.mark.parametrize(
    "changed",
    [
        {"secret": "../../../etc/passwd".ljust(32, "x")}, {"secret": SECRET[:-1]}, {"secret": 7}, {"services": None},
        {"guest_key": 7}, {"guest_key": "a b"},
        {"services": {"jupyter": {}}}, {"services": {"jupyter": {"token": "a b"}}}, {"services": {"ssh": []}},
        {"services": {"vscode": {"token": "t", "folder": "/w\x1b[2J"}}},
        {"services": {"vscode": {"token": "t", "folder": "--folder"}}},
        {"services": {"ssh": {"user": "-oProxyCommand=x", "host_key": KEY, "folder": "/"}}},
        {"services": {"ssh": {"user": "ada", "host_key": KEY + "\n* ssh-rsa A", "folder": "/"}}},
    ],
)  # fmt: skip
def test_a_word_of_another_form_is_refused(changed: Json) -> None:
    with pytest.raises(errors.HostUnready, match="mallory's session says of itself"):
        sharing.reach(said(**changed), FOLDER, "mallory")


@pytest.mark.parametrize("name", ["", "Otter", "a b", "-oX", "x\x1b", None, ["otter"], "gpu/2"])
def test_a_name_that_is_none_is_refused(name: object) -> None:
    with pytest.raises(errors.HostUnready):
        sharing.facts(said(name=name), ID, "mallory", "gpu2")


def test_words_for_people_are_harmless() -> None:
    wild = {"image": "i\x1b]0;x\x07\nrm", "gpus": ["\x1b[2J", 7], "trouble": {"ssh\x1b": "x" * 5000}, "since": "now"}
    facts = sharing.facts(said(**wild), ID, "mallory", "gpu2")
    assert "\x1b" not in str(facts) and "\n" not in facts["image"] and facts["since"] == 0
    assert max(map(len, facts["trouble"].values())) < 1000
    assert sharing.reach(said(absent={"rm": "x", "ssh": "gone\x1b"}), FOLDER, "m")["absent"].keys() == {"ssh"}


def test_keys_come_without_what_sshd_would_obey() -> None:
    rsa = "ssh-rsa " + "B" * 400 + "=="
    given = [
        KEY + " bob@laptop",
        f'command="x" {KEY}',
        rsa,
        KEY,
        7,
        "ssh-dss",
        KEY + "\nssh-rsa " + "C" * 99,
        f" {rsa} ",
    ]
    assert sharing.keys(given) == [KEY, rsa]
    assert len(sharing.keys(f"{KEY}{number}" for number in range(1000))) < 100
