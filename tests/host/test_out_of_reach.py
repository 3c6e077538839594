"""A host that can't be dialled: its key, where it meets, and what the other hosts know and do for it."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box, far_session, until
from users import let_in, nobody

from mlbox import errors
from mlbox.core import wire
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.core.reverse import Meeting
from mlbox.core.session import Spec
from mlbox.host import files, here, keeping, lab, reverse, tick
from mlbox.host.handlers import cancel, host, relay, sessions, shutdown, status, submit, wait
from mlbox.host.idle import idle
from mlbox.host.job import Job

Json = dict[str, Any]
PLACE: Json = {
    "via": "gate", "address": "10.0.0.1", "port": 22, "user": "ada", "folder": "/tmp/mlbox-1001",
    "host_keys": ["ssh-ed25519 " + "A" * 68],
}  # fmt: skip


def behind_nat(box: Box, name: str) -> None:
    box.lab(f"hosts: {{{name}: {{tunnel: reverse, via: gate}}}}\n")


def told(box: Box, **gpu: Any) -> None:
    """ws told of itself before the session began."""
    facts = {"index": 0, "uuid": "GPU-1", "name": "X", "memory": 1024, "holder": None, "processes": [], **gpu}
    document = {"at": time.time(), "cpus": 2, "memory": 100, "driver": "550", "gpus": [facts]}
    files.write_whole(box.found.on("ws") / "host.json", json.dumps(document).encode(), 0o644)


# ---- the key, and where to meet ----------------------------------------------------------------------------


def test_a_tick_makes_the_key_and_shows_it_and_takes_it_away(box: Box) -> None:
    shown, key = box.found.on() / "reverse.json", reverse._key()
    box.tick()
    assert not shown.exists() and not key.exists()
    behind_nat(box, box.found.host)
    box.tick()
    public = files.read_json(shown)["public_key"]
    assert public == " ".join(Path(f"{key}.pub").read_text().split()[:2])
    assert key.stat().st_mode & 0o777 == 0o600
    box.tick()
    assert files.read_json(shown)["public_key"] == public
    box.lab("{}")
    box.tick()
    assert not any(path.exists() for path in (shown, key, Path(f"{key}.pub")))


def test_hosts_that_share_a_home_have_a_key_each(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    behind_nat(box, box.found.host)
    box.tick()
    first = reverse._key()
    for path in (first, Path(f"{first}.pub")):  # as an earlier version named it
        path.rename(str(path).replace(f".{box.found.host}", ""))
    assert reverse._key().name == "reverse_ed25519"
    shown = files.read_json(box.found.on() / "reverse.json")
    box.tick()
    assert files.read_json(box.found.on() / "reverse.json") == shown
    monkeypatch.setattr(here, "host_name", lambda: "ws")
    assert reverse._key().name == "reverse_ed25519.ws" and not reverse._key().exists()


def test_an_idle_tick_sees_that_lab_yaml_has_changed_and_says_that_it_is_there(box: Box) -> None:
    box.tick()
    found, shown = box.found, box.found.on() / "reverse.json"
    assert idle(str(box.root), found.user, found.host)
    behind_nat(box, found.host)
    assert not idle(str(box.root), found.user, found.host)
    until(lambda: box.tick() and idle(str(box.root), found.user, found.host))
    os.utime(shown, (5, 5))
    assert idle(str(box.root), found.user, found.host)
    assert shown.stat().st_mtime > 5


def test_where_it_meets(box: Box) -> None:
    assert reverse.meeting(box.found, "") is None and reverse.meeting(box.found, "forward") is None
    with pytest.raises(errors.Refused, match="no rendezvous"):
        reverse.meeting(box.found, "reverse")
    behind_nat(box, box.found.host)
    with pytest.raises(errors.Refused, match="can't be dialled"):
        reverse.meeting(box.found, "forward")
    with pytest.raises(errors.HostUnready, match="have not met yet"):
        reverse.meeting(box.found, "")
    box.call(host, do="meet", name=box.found.host, meeting=PLACE)
    place = reverse.meeting(box.found, "")
    assert place == Meeting.from_wire(PLACE)
    assert reverse.meeting_file(box.found, box.found.host).stat().st_mode & 0o777 == 0o600
    box.lab(f"hosts: {{{box.found.host}: {{via: gate}}}}\n")
    assert reverse.meeting(box.found, "") is None
    assert reverse.meeting(box.found, "reverse") == place
    box.lab(f"hosts: {{{box.found.host}: {{via: another, tunnel: reverse}}}}\n")
    with pytest.raises(errors.HostUnready, match=r"has met gate, and lab\.yaml has it meet another") as caught:
        reverse.meeting(box.found, "")
    assert "--via another, on a laptop that knows it by that name (`Host another`" in caught.value.hint


def test_add_and_remove(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.lab("# ours\nhosts:\n  gpu1: {}\n")
    name = box.found.host
    added = box.call(host, do="add", name=name, via="gate", tunnel="reverse")
    assert added["key"] == files.read_json(box.found.on() / "reverse.json")["public_key"]
    assert lab.rules(box.found).lab.hosts[name].reverse
    assert box.call(host, do="add", name=name, via="gate", tunnel="reverse") == added
    with pytest.raises(errors.Refused, match="not with forward tunnels"):
        box.call(host, do="add", name=name, via="gate", tunnel="forward")
    with pytest.raises(errors.Refused, match=r"meet laptops at gate, not at gate\.lab") as caught:  # a colleague's name
        box.call(host, do="add", name=name, via="gate.lab", tunnel="reverse")
    assert "--via gate, on a laptop that knows it by that name (`Host gate`" in caught.value.hint
    box.call(host, do="meet", name=name, meeting=PLACE)
    assert box.call(host, do="place", name=name) == {"host": name, "via": "gate"}
    assert box.call(host, do="remove", name=name) == {"host": name, "via": "gate", "others": []}
    assert (box.root / "lab.yaml").read_text() == "# ours\nhosts:\n  gpu1: {}\n"
    assert not reverse.meeting_file(box.found, name).exists()
    with pytest.raises(errors.NotFound):
        box.call(host, do="remove", name=name)
    with pytest.raises(errors.Usage):
        box.call(host, do="add", name=name, via="-oProxyCommand=x")


def test_a_host_that_shows_no_key(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_KEY_PATIENCE", 0.0)
    with pytest.raises(errors.Refused, match="ws has not shown its key"):
        box.call(host, do="add", name="ws", via="gate", tunnel="reverse")


def test_remove_leaves_what_people_wrote_and_what_runs(box: Box) -> None:
    box.lab("hosts:\n  ws:\n    tunnel: reverse\n    via: gate\n")
    with pytest.raises(errors.Refused, match="more than one line"):
        box.call(host, do="remove", name="ws")
    behind_nat(box, "ws")
    far_session(box)
    with pytest.raises(errors.Refused, match="1 job of yours still on ws"):
        box.call(host, do="place", name="ws")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")
def test_a_host_that_others_meet_too_stays_in_lab_yaml(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.lab("hosts:\n  ws: {tunnel: reverse, via: gate}\n")
    let_in(box.root)
    place = box.root / "users/nobody"
    place.mkdir(parents=True)
    os.chown(place, 65534, 65534)
    met = reverse.meeting_file(box.found, "ws")

    def others(**words: Any) -> Any:
        with monkeypatch.context() as patch, nobody():
            patch.setenv("LOGNAME", "nobody")
            return box.call(host, do="remove", name="ws", **words)["others"]

    box.call(host, do="meet", name="ws", meeting=PLACE)
    before = (box.root / "lab.yaml").read_text()
    assert others() == [box.found.user] and (box.root / "lab.yaml").read_text() == before
    met.parent.chmod(0o700)  # an older version's
    assert others() == [box.found.user]
    met.parent.chmod(0o711)
    met.unlink()
    assert others(dry_run=True) == []


# ---- the tunnel ----------------------------------------------------------------------------------------------


def tunnel(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: str) -> tuple[reverse.Tunnel, Job]:
    """With `ssh` for a program of that name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f"#!/bin/sh\necho >>{tmp_path}/dials\n{ssh}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(reverse, "_FIRST", 0.01)
    job = far_session(box)
    box.found.reserve(job)
    return reverse.Tunnel(job, Meeting.from_wire(PLACE), {"ssh": str(job.dialled / "ssh.sock")}), job


def dials(tmp_path: Path) -> int:
    return (tmp_path / "dials").read_text().count("\n") if (tmp_path / "dials").exists() else 0


def why(job: Job) -> str:
    return str((files.read_json(job.attempt(1) / "tunnel.json") or {}).get("why", ""))


@pytest.mark.parametrize(
    ("end", "reason"), [("exec sleep 1000 >&-", "the connection ended"), ("exec sleep 1000", "on gate fell silent")]
)
def test_one_whose_far_end_has_died_is_dialled_anew(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, reason: str
) -> None:
    """ssh stays for the connections that it carries."""
    monkeypatch.setattr(reverse, "_SILENCE", 0.1)
    made, job = tunnel(box, tmp_path, monkeypatch, f"echo up; echo up; {end}")
    made.open()
    until(lambda: dials(tmp_path) > 1)
    until(lambda: reason in why(job))
    made.close()


def test_a_rendezvous_of_an_earlier_version_says_up_only_once(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse, "_SILENCE", 0.0)
    made, job = tunnel(box, tmp_path, monkeypatch, "echo up; sleep 0.3; echo no more")
    made.open()
    until(lambda: why(job) == "no more")  # for a moment: it is dialled anew
    made.close()


class _Listener:
    """Out of descriptors at first; then one call, and none after it."""

    def __init__(self, *calls: socket.socket) -> None:
        self._calls = list(calls)
        self._full = True

    def accept(self) -> tuple[socket.socket, str]:
        if self._full:
            self._full = False
            raise OSError(errno.EMFILE, "Too many open files")
        if not self._calls:
            threading.Event().wait()
        return self._calls.pop(), ""


def test_calls_are_answered_again_when_there_are_descriptors_again(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse, "_FIRST", 0.01)
    near, far = socket.socketpair()
    threading.Thread(target=reverse._answer, args=(_Listener(far),), daemon=True).start()
    with near:
        near.settimeout(20)
        near.sendall(wire.Request("sessions", {"root": str(box.root)}, "0123456789abcdef").encode())
        assert b"0123456789abcdef" in near.recv(4096)


def test_nothing_of_it_is_where_a_container_writes(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks there is taken for the owner, and what answers runs on the host."""
    says = (
        f"echo $* >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/words; echo no route >&2"  # whole: it is dialled anew
    )
    made, job = tunnel(box, tmp_path, monkeypatch, says)
    (job.boot_folder / "mlbox-host.pyz").write_text(f"open({str(tmp_path / 'evil')!r}, 'w')\n")
    victim = tmp_path / "mine"
    victim.write_text("mine")
    for log in ("tunnel", "calls"):
        (job.logs / f"{log}.log").symlink_to(victim)
    made.open()
    until(lambda: why(job) == "no route")
    assert f"call:{job.calls} " in (tmp_path / "words").read_text()
    assert job.calls.parent == job.boot_folder.parent and os.listdir(job.sockets) == []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(job.calls))
        connection.sendall(wire.Request("sessions", {"root": str(box.root)}, "0123456789abcdef").encode())
        assert b"0123456789abcdef" in connection.recv(4096)
    made.close()
    assert not (tmp_path / "evil").exists() and victim.read_text() == "mine"
    box.found.clear(job)
    assert not job.calls.exists()


# ---- what other hosts know and do ----------------------------------------------------------------------------


def test_its_sessions_are_listed_by_the_others(box: Box) -> None:
    behind_nat(box, "ws")
    job = far_session(box)
    [listed] = box.call(sessions)["sessions"]
    assert (listed["id"], listed["name"], listed["host"], listed["via"]) == (job.id, "far", "ws", "gate")
    assert listed["trouble"] == {}
    (job.attempt(1) / "tunnel.json").write_text('{"up": false, "why": "no route"}')
    assert box.call(sessions)["sessions"][0]["trouble"] == {"tunnel": "no route"}
    for another in ("{}", "hosts: {ws: {via: gate}}"):  # which answers for itself
        box.lab(another)
        assert box.call(sessions)["sessions"] == []


def test_its_inventory_is_shown_with_its_age_and_todays_holders(box: Box) -> None:
    behind_nat(box, "ws")
    assert box.call(status)["out_of_reach"][0]["age"] is None
    job = far_session(box)
    told(box)
    [shown] = box.call(status)["out_of_reach"]
    assert (shown["host"], shown["via"], shown["jobs"]) == ("ws", "gate", [])
    assert 0 <= shown["age"] < 60
    assert shown["gpus"][0]["holder"] == {"user": box.found.user, "session": job.id}
    assert [session["id"] for session in shown["sessions"]] == [job.id]
    os.utime(box.found.on("ws") / "host.json", (time.time() - 500, time.time() - 500))
    assert 400 < box.call(status)["out_of_reach"][0]["age"] < 600
    (box.found.on("ws") / "reverse.json").write_text("{}")
    assert box.call(status)["out_of_reach"][0]["age"] < 60
    told(box, index="x")  # not believed
    assert box.call(status)["out_of_reach"][0]["gpus"] == []


def test_the_others_that_a_laptop_may_ask_are_told(box: Box) -> None:
    assert box.call(status)["lab"] == {}
    box.lab("hosts: {ws: {tunnel: reverse, via: gate}, gpu9: {ssh: gpu9.lab}, gpu8: {}}\n")
    assert box.call(status)["lab"] == {"gpu9": "gpu9.lab", "gpu8": "gpu8"}


def test_nobody_is_sent_to_nudge_it(box: Box) -> None:
    box.lab("hosts: {ws: {tunnel: reverse, via: gate}, gpu9: {ssh: gpu9.lab}}\n")
    job = far_session(box)
    told(box)
    spec = JobSpec(command=("true",), work=Spec(runtime="process")).to_wire()
    reply = box.call(submit, spec=json.loads(json.dumps({**spec, "resources": {"gpus": "1", "hosts": ["ws"]}})))
    assert reply["elsewhere"] == []
    reply = box.call(cancel, job=job.id, session=True)
    assert (reply["host"], reply["requested"], reply["nudge"]) == ("ws", "cancel_requested", "")


def test_whoever_waits_hears_where_to_meet(box: Box) -> None:
    behind_nat(box, "ws")
    job = far_session(box)
    found = box.call(wait, job=job.id)
    assert (found["host"], found["via"]) == ("ws", "gate")
    box.lab("hosts: {ws: {via: gate}}")
    assert box.call(wait, job=job.id)["via"] == ""


@pytest.fixture
def quiet_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that stays: `pause` looks at stdin."""
    monkeypatch.setattr(shutdown, "pause", lambda: time.sleep(0.01))
    monkeypatch.setattr(relay, "pause", lambda: time.sleep(0.01))


def test_its_session_is_ended_by_a_word_in_the_log(box: Box, quiet_stdin: None) -> None:
    behind_nat(box, "ws")
    job = far_session(box)

    def keeper() -> None:
        until(lambda: job.state().requested == "cancel_requested")
        job.append("finished", {"why": "shut down"}, 1)

    thread = threading.Thread(target=keeper)
    thread.start()
    reply = box.call(shutdown, session="far")
    thread.join()
    assert (reply["session"]["id"], reply["freed"]) == (job.id, ["GPU-1"])
    assert "shut down" in box.call(shutdown, session=job.id)["already"]


def test_a_session_that_does_not_end_in_time(box: Box, quiet_stdin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "_PATIENCE", 0.0)
    behind_nat(box, "ws")
    far_session(box)
    with pytest.raises(errors.MlboxError, match="far on ws has not ended"):
        box.call(shutdown, session="far")


def test_a_call_without_a_tunnel_says_why(box: Box, quiet_stdin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PATIENCE", 0.0)
    behind_nat(box, "ws")
    job = far_session(box)
    (job.attempt(1) / "tunnel.json").write_text('{"up": false, "why": "Permission denied"}')
    with pytest.raises(errors.Unreachable, match=r"tunnel of ws to .* is not up: Permission denied"):
        box.call(relay, session=job.id, verb="sessions", args={})
    job.append("lost", {"at": 2.0, "why": "ws was rebooted"}, 1)
    with pytest.raises(errors.Unreachable, match="waits in line, so no tunnel of it is up"):
        box.call(relay, session=job.id, verb="sessions", args={})
    job.append("cancelled", {"why": "shut down"})
    with pytest.raises(errors.Ended, match="has ended: shut down"):
        box.call(relay, session=job.id, verb="sessions", args={})


def test_a_relayed_call_is_one_about_sessions(box: Box) -> None:
    behind_nat(box, "ws")
    with pytest.raises(errors.Usage, match="is not asked for 'submit'"):
        box.call(relay, session=far_session(box).id, verb="submit", args={})
    asked = {"spec": {"queue": "No Name"}}  # nothing comes of it, for a submission of nothing is a session in line
    request = wire.Request("submit", asked, "0123456789abcdef").encode()
    for mode, answer in (("relayed", b"knows no 'submit'"), ("", b"can't be a queue's name")):
        argv = (sys.executable, "-I", "-S", sys.argv[0], "host", mode)
        assert answer in subprocess.run(argv, input=request, stdout=subprocess.PIPE).stdout


def test_a_keeper_looks_again_after_whatever_it_found(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_LOOK_EVERY", 0.01)
    heard = threading.Event()
    monkeypatch.setattr(os, "kill", lambda pid, number: heard.set())
    looks = iter((ValueError("half of an event"), State("started", requested="cancel_requested")))

    class Odd(Job):
        def state(self) -> State:
            look = next(looks)
            if isinstance(look, Exception):
                raise look
            return look

    keeping.listen(Odd("", "", box.root, box.root))
    assert heard.wait(20)


def test_where_root_is_not_there_nothing_has_ended(box: Box, quiet_stdin: None) -> None:
    """As after a boot, before it is mounted: whoever hears that a session has ended lets go of its tunnels."""
    job = far_session(box)
    away = box.root.rename(box.root.with_name("away"))
    box.root.mkdir()
    for handler in (relay, sessions):
        with pytest.raises(errors.HostUnready, match=r"it has no mlbox\.json"):
            box.call(handler, session=job.id, verb="sessions", args={})
    box.root.rmdir()
    away.rename(box.root)


def test_a_keeper_finds_the_word_in_the_log_by_itself(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody can call its host: only the log is written."""
    behind_nat(box, box.found.host)
    job = box.sh("sleep 1000")
    box.tick()
    box.started(job)
    cancel.request(box.found, job)
    assert box.end(job, patience=60).name == "cancelled"
    assert tick.run(box.found).failed == ()
