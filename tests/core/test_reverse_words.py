"""What the two ends of a reverse tunnel say to each other, and what neither takes from the other."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from mlbox.core import reverse
from mlbox.core.reverse import Meeting
from mlbox.errors import Usage

ID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
KEY = "ssh-ed25519 " + "A" * 68
PLACE: dict[str, Any] = {
    "via": "gpu1", "address": "10.0.0.1", "port": 22, "user": "ada", "folder": "/tmp/mlbox-1001", "host_keys": [KEY],
}  # fmt: skip


def test_a_request_is_read_as_it_was_made() -> None:
    words = reverse.request(ID, "00c0ffee", ["jupyter", "ssh"])
    assert reverse.parse(words) == (ID, "00c0ffee", ["jupyter", "ssh"])
    assert reverse.fresh(ID, "00c0ffee", "ssh") == "r.q69g5fav.00c0ffee.ssh"
    assert reverse.lasting(ID, "ssh") == "r.q69g5fav.ssh"


@pytest.mark.parametrize(
    "words",
    ["", "id", ID, f"{ID} 00c0ffee", f"{ID} 00c0ffee ", f"{ID}; id x", f"{ID} ../../ab ssh", f"{ID} 00c0ffee ../x",
     f"{ID} 00c0ffee ssh\nid", f"{ID} 00C0FFEE ssh",
     " ".join((ID, "00c0ffee", *"abcdefghijklmnopqrstu")), f"../{ID} 00c0ffee ssh",
     f"{ID} 00c0ffee ssh ssh"],
)  # fmt: skip
def test_nothing_else_is_a_request(words: str) -> None:
    with pytest.raises(Usage, match="holds the reverse tunnels"):
        reverse.parse(words)


def test_the_line_of_authorized_keys() -> None:
    line = reverse.authorized("ws", KEY, ("/usr/bin/python3", "/home/ada x/m.pyz", "rendezvous", "ws"))
    options, rest = line.split('" ssh-ed25519 ')
    assert options.startswith("restrict,port-forwarding,")
    assert set(re.findall(r'permit\w+="[^"]*"', options)) == {
        'permitopen="none.invalid:1"', 'permitlisten="none.invalid:1"'
    }  # fmt: skip
    command = options.split('command="')[1]
    assert shlex.split(command) == ["exec", "/usr/bin/python3", "/home/ada x/m.pyz", "rendezvous", "ws"]
    assert rest == "A" * 68 + " mlbox-reverse-ws"


@pytest.mark.parametrize("key", ["", "ssh-rsa " + "A" * 68, KEY + " x", KEY + "\n" + KEY, f'command="id" {KEY}'])
def test_no_other_line_gets_there_by_a_key(key: str) -> None:
    with pytest.raises(Usage):
        reverse.authorized("ws", key, ("python3",))


def test_nor_by_a_path() -> None:
    for path in ('a"b', "a\nb", "a%b", "a\\b"):
        with pytest.raises(Usage):
            reverse.authorized("ws", KEY, (path,))


def test_only_the_hosts_own_line_goes() -> None:
    mine = reverse.authorized("ws", KEY, ("python3",))
    others = [KEY, reverse.authorized("ws2", KEY, ("python3",)), f"{KEY} x-mlbox-reverse-ws", "", "# mlbox-reverse-ws2"]
    assert reverse.without([others[0], mine, *others[1:]], "ws") == others


def test_a_meeting_travels() -> None:
    place = Meeting.from_wire(json.loads(json.dumps(PLACE)))
    assert Meeting.from_wire(json.loads(json.dumps(place.to_wire()))) == place
    assert place.known_hosts() == f"mlbox-rendezvous {KEY}\n"  # one that an earlier version wrote has no name
    words = place.dial("/key", "/a b/known")
    assert 'UserKnownHostsFile="/a b/known"' in words and "StrictHostKeyChecking=yes" in words


def test_an_authority_is_one_for_that_name_only() -> None:
    keys = [KEY, f"@cert-authority {KEY}", f"@revoked {KEY}"]
    place = Meeting.from_wire({**PLACE, "host_keys": keys, "name": "[gate.lab]:2200"})
    assert Meeting.from_wire(json.loads(json.dumps(place.to_wire()))) == place
    lines = [f"[gate.lab]:2200 {KEY}", f"@cert-authority [gate.lab]:2200 {KEY}", f"@revoked [gate.lab]:2200 {KEY}"]
    assert place.known_hosts().splitlines() == lines
    assert "HostKeyAlias=[gate.lab]:2200" in place.dial("/key", "/known")


@pytest.mark.parametrize(
    "change",
    [{"address": "-oProxyCommand=id"}, {"address": "a b"}, {"port": "22"}, {"port": 0}, {"port": True}, {"user": "-x"},
     {"user": ""}, {"folder": "/tmp/mlbox-1/../x"}, {"folder": "/tmp/x:/y"}, {"host_keys": []}, {"host_keys": ["x"]},
     {"host_keys": KEY}, {"host_keys": [KEY + "\n*"]}, {"via": 5},
     {"host_keys": ["@other " + KEY]}, {"host_keys": ["@cert-authority * " + KEY]}, {"name": "*"}, {"name": "a b"},
     {"name": 5}],
)  # fmt: skip
def test_what_could_mean_more_to_ssh_is_no_meeting(change: dict[str, Any]) -> None:
    with pytest.raises(Usage):
        Meeting.from_wire({**PLACE, **change})
    with pytest.raises(Usage):
        Meeting.from_wire(None)
