"""A session behind a rendezvous, shared there: its door is at its tunnel's end, by the owner's word alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from colleagues import Client
from meeting import FOLDER, bound, dial, said
from queuebox import Box, far_session, until

from mlbox import errors
from mlbox.core import ids, reverse, wire
from mlbox.core.job import JobSpec
from mlbox.core.session import Spec
from mlbox.core.sharing import socket_name
from mlbox.host import behind, colleague, keeping, peer
from mlbox.host.handlers import relay, sessions, share
from mlbox.host.job import Job

Json = dict[str, Any]
NOBODY, EVE = 65534, 65502
KEY = "ssh-ed25519 " + "A" * 68
SERVICES = ("ssh", "guest", reverse.CALL)
pytestmark = pytest.mark.skipif(not peer.known() or os.getuid() != 0, reason="needs Linux, and root to be others")


class Workstation:
    """At the other ends of a tunnel's sockets: services that say what they hear, and mlbox, which is asked."""

    def __init__(self, box: Box) -> None:
        self.box, self.job = box, far_session(box)
        self.asked: list[wire.Request] = []
        self.answers: Callable[[wire.Request], bytes] | None = None
        self.clients: list[Client] = []
        self.tunnels: list[subprocess.Popen[bytes]] = []

    def dial(self, host: str = "ws") -> bytes:
        """A tunnel; what its end says."""
        token = f"{len(self.tunnels):08}"
        for service in SERVICES:
            listener = bound(self.job.id, token, service)
            threading.Thread(target=self._serve, args=(listener, service), daemon=True).start()
        folder = self.box.root.parent
        words = reverse.request(self.job.id, token, SERVICES)
        self.tunnels.append(dial(folder, words, host=host, root=self.box.root))
        return said(self.tunnels[-1])

    def kill_the_tunnel(self) -> None:
        self.tunnels[-1].kill()
        self.hang_up()

    def hang_up(self) -> None:
        self.tunnels[-1].communicate()

    def _serve(self, listener: socket.socket, service: str) -> None:
        while True:
            connection, _ = listener.accept()
            act = self._answer if service == reverse.CALL else self._echo
            threading.Thread(target=act, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            line = lines.readline()
            if not line:  # somebody only looked whether the tunnel is up
                return
            request = wire.decode_request(line)
            self.asked.append(request)
            facts = {"user": "ada", "host_key": KEY, "folder": "/w", "socket": "/tmp/mlbox-1/s/ssh.sock"}
            reach = {"services": {"ssh": facts}, "guest_key": "k3y", "absent": {}, "shared": []}
            reply: Json = {"reply": {"session": reach, "logs": {"ssh": "a line"}}}
            answer = self.answers(request) if self.answers else wire.encode_message(request.nonce, reply)
            with suppress(BrokenPipeError):  # who has its answer goes
                connection.sendall(answer)

    def keys(self) -> list[str]:
        """What its sshd was last told."""
        return list(next(r.args["keys"] for r in reversed(self.asked) if r.verb == "share"))

    def tell(self, lets: bool, user: str = "nobody", **more: Any) -> Json:
        return self.box.call(share, session=self.job.id, user=user, lets=lets, **more)

    def client(self, uid: int, name: str) -> Client:
        made = Client(uid, self.job.door / name)
        self.clients.append(made)
        return made

    def ask(self, uid: int, op: str, **more: Any) -> Json:
        line = self.client(uid, "door").ask(json.dumps({"op": op, **more}).encode() + b"\n")
        return {} if line == b"[end]\n" else dict(json.loads(line))


@contextmanager
def a_caller_that_stays() -> Iterator[None]:
    """At the other end of this process's stdin."""
    before, (near, far) = os.dup(0), os.pipe()
    os.dup2(near, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        for descriptor in (before, near, far):
            os.close(descriptor)


@pytest.fixture
def ws(box: Box, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workstation]:
    monkeypatch.setattr(relay, "pause", lambda: None)
    monkeypatch.setattr(share, "pause", lambda: threading.Event().wait(0.05))
    box.lab(f"hosts: {{{box.found.host}: {{}}, ws: {{tunnel: reverse, via: {box.found.host}}}}}\n")
    made = Workstation(box)
    yield made
    for client in made.clients:
        client.end()
    for tunnel in made.tunnels:
        tunnel.kill()
        tunnel.communicate()
    for path in FOLDER.glob(f"r.{made.job.id[-8:].lower()}.*"):
        path.unlink()
    shutil.rmtree(made.job.door, ignore_errors=True)


def test_a_colleague_is_let_in_and_nobody_else_gets_a_byte(ws: Workstation) -> None:
    assert ws.dial() == b"up\n"
    reply = ws.tell(True)
    assert (reply["changed"], reply["user"], reply["session"]["shared"]) == (True, "nobody", ["nobody"])
    assert (reply["host"], reply["session"]["host"]) == (ws.box.found.host, "ws")
    entered = ws.ask(NOBODY, "enter", keys=[KEY])
    assert ws.keys() == [KEY] and entered["guest_key"] == "k3y" and entered["name"] == "far"
    assert "socket" not in entered["services"]["ssh"]
    assert ws.ask(NOBODY, "logs") == {"logs": {"ssh": "a line"}}
    assert ws.ask(NOBODY, "facts")["gpus"] == ["GPU-1"]
    for service in ("ssh", "guest"):
        way = socket_name(entered["secret"], service)
        assert ws.client(NOBODY, way).ask(b"hello\n") == b"hello\n"
        for uid in (EVE, 0):
            assert ws.client(uid, way).ask(b"hello\n") == b"[end]\n"
    assert not (ws.job.door / socket_name(entered["secret"], reverse.CALL)).exists()  # by which its owner is answered
    for uid in (EVE, 0):
        assert [ws.ask(uid, op) for op in ("facts", "enter", "logs")] == [{}, {}, {}]
    with a_caller_that_stays():
        told = ws.box.call(relay, session=ws.job.id, verb="sessions", args={})
    assert told["session"]["shared"] == ["nobody"]  # to its owner


def test_taking_it_back_ends_what_is_open_and_takes_the_keys_out(ws: Workstation) -> None:
    ws.dial()
    ws.tell(True)
    open_ = ws.client(NOBODY, socket_name(ws.ask(NOBODY, "enter", keys=[KEY])["secret"], "ssh"))
    assert open_.ask(b"one\n") == b"one\n"
    reply = ws.tell(False)
    assert (reply["changed"], reply["ended"], reply["trouble"]) == (True, 1, "")
    assert open_.hear() == b"[end]\n" and ws.keys() == []
    assert not ws.job.door.exists() and reply["session"]["shared"] == []


def test_the_next_tunnel_lets_the_same_people_in_by_the_same_way(ws: Workstation) -> None:
    ws.dial()
    ws.tell(True)
    secret = ws.ask(NOBODY, "enter", keys=[KEY])["secret"]
    ws.kill_the_tunnel()
    ws.asked.clear()
    assert ws.dial() == b"up\n"
    until(lambda: ws.asked)  # who had come in is let in again by then
    assert ws.keys() == [KEY]  # the session may be another start, with a new sshd
    assert ws.client(NOBODY, socket_name(secret, "ssh")).ask(b"hello\n") == b"hello\n"


def test_a_tunnel_that_a_later_one_replaced_leaves_its_door_alone(ws: Workstation) -> None:
    ws.dial()
    ws.tell(True)
    secret = ws.ask(NOBODY, "enter", keys=[KEY])["secret"]
    assert ws.dial() == b"up\n"
    ws.tunnels[0].wait(20)
    until(ws.job.control.exists)  # its successor comes to the door when it has gone
    assert ws.client(NOBODY, socket_name(secret, "ssh")).ask(b"hello\n") == b"hello\n"
    assert ws.tell(False)["changed"]


def test_what_is_taken_back_while_no_tunnel_is_up_stays_so(ws: Workstation) -> None:
    ws.dial()
    ws.tell(True)
    ws.ask(NOBODY, "enter", keys=[KEY])
    ws.kill_the_tunnel()
    assert ws.tell(False, dry_run=True)["changed"]
    assert [ws.tell(False)["changed"] for _ in range(2)] == [True, False]
    assert not ws.job.door.exists()
    ws.asked.clear()
    ws.dial()
    until(lambda: ws.asked)
    assert ws.keys() == [] and not ws.job.door.exists()


def test_who_may_come_is_forgotten_when_the_session_has_ended(ws: Workstation) -> None:
    ws.dial()
    ws.tell(True)
    ended = threading.Thread(target=ws.hang_up)
    ended.start()  # its tunnel ends first
    until(lambda: not list(FOLDER.glob(f"r.{ws.job.id[-8:].lower()}.*")))
    assert ws.job.share.exists()
    ws.job.append("finished", {"at": 2.0}, 1)
    ended.join()
    assert not ws.job.share.exists() and not ws.job.control.exists() and not ws.job.door.exists()


def test_a_key_opens_no_door_of_another_host_s_session(ws: Workstation) -> None:
    ws.dial()
    ws.tell(True)
    ws.ask(NOBODY, "enter", keys=[KEY])
    ws.kill_the_tunnel()
    assert b"this key is desk's" in ws.dial(host="desk")
    with pytest.raises(AssertionError):
        ws.client(NOBODY, "door")


def test_two_words_at_once_without_a_tunnel_are_both_done(ws: Workstation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the door's lock changes the record; the other tries again."""
    ws.dial()
    ws.tell(True)
    ws.kill_the_tunnel()
    held = keeping.taken(ws.job.door_lock)
    waited = []

    def pause() -> None:
        waited.append(ws.job.share.read_bytes())
        if len(waited) == 3:
            os.close(held)

    monkeypatch.setattr(share, "pause", pause)
    assert ws.tell(False)["changed"] and len(waited) == 3 and len(set(waited)) == 1
    assert colleague.recorded(ws.job) == []


def test_where_nobody_may_come_nothing_is_left_of_its_door(ws: Workstation) -> None:
    ws.dial()
    until(ws.job.control.exists)
    assert ws.job.door_lock.exists()
    ws.hang_up()
    assert not any(path.exists() for path in (ws.job.share, ws.job.control, ws.job.door, ws.job.door_lock))


def test_nor_before_the_lab_says_whose_it_is(ws: Workstation) -> None:
    """It has its names by then, and a laptop makes sure of the session itself; a colleague can't."""
    ws.box.root.rename(ws.box.root.with_name("away"))
    assert ws.dial() == b"up\n"
    assert said(ws.tunnels[0]) == b"up\n" and not ws.job.control.exists()
    ws.box.root.with_name("away").rename(ws.box.root)
    until(ws.job.control.exists)


def test_what_its_own_host_says_against_it_is_told(ws: Workstation) -> None:
    ws.dial()
    ws.tell(True)
    ws.answers = lambda request: wire.encode_message(request.nonce, wire.encode_error(errors.HostUnready("it starts")))
    assert ws.ask(NOBODY, "enter", keys=[KEY]) == {"unready": "it starts"}
    assert "it starts" in ws.tell(False)["trouble"]


def test_what_an_older_mlbox_says_there_is_told(ws: Workstation) -> None:
    """Which takes the question for a person's word."""
    ws.dial()
    refusal = wire.encode_error(errors.Refused("there is no user '' on ws"))
    ws.answers = lambda request: wire.encode_message(request.nonce, refusal)
    assert "an older mlbox started it: there is no user ''" in ws.tell(True)["trouble"]


@pytest.mark.parametrize(
    "answer", [5, {"reply": 5}, {"error": 5}, {"reply": {"session": {"services": [1]}}}, "{"], ids=str
)
def test_what_makes_no_sense_keeps_nobody_in(ws: Workstation, answer: Any) -> None:
    ws.dial()
    ws.tell(True)
    secret = ws.ask(NOBODY, "enter", keys=[KEY])["secret"]
    words = answer if isinstance(answer, str) else json.dumps(answer)
    ws.answers = lambda request: f"@mlbox:{request.nonce} {words}\n".encode()
    assert ws.ask(NOBODY, "enter", keys=[KEY]) == {"unready": "what answers at the other end of its tunnel is no mlbox"}
    for changed in (True, False):
        reply = ws.tell(False)
        assert (reply["changed"], "is no mlbox" in reply["trouble"]) == (changed, changed)
    assert not (ws.job.door / socket_name(secret, "ssh")).exists()


def test_a_host_that_is_silent_is_no_end_of_sharing(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much it says: it is waited for so long, and no longer."""
    monkeypatch.setattr(behind, "_PATIENCE", 0.3)
    monkeypatch.setattr(behind.Far, "way", lambda *_: tmp_path / "call")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "call"))
        listener.listen()

        def drip() -> None:
            with listener.accept()[0] as connection, suppress(OSError):
                while True:
                    connection.sendall(b"x")
                    threading.Event().wait(0.002)

        threading.Thread(target=drip, daemon=True).start()
        far = behind.Far(box.found, far_session(box), SERVICES)
        with pytest.raises(TimeoutError):
            far.put_keys([KEY])


def test_what_is_left_of_a_share_goes_with_the_next_call_after_the_end(ws: Workstation) -> None:
    """The session ended while its tunnel was down."""
    ws.dial()
    ws.tell(True)
    ws.kill_the_tunnel()
    ws.box.call(sessions)
    assert ws.job.share.exists() and ws.job.door.exists()
    ws.job.append("finished", {"at": 2.0}, 1)
    ws.box.call(sessions)
    assert not any(path.exists() for path in (ws.job.share, ws.job.control, ws.job.door, ws.job.door_lock))


def test_without_a_tunnel_nobody_is_let_in(ws: Workstation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PATIENCE", 0.1)
    with pytest.raises(errors.Unreachable, match=r"the reverse tunnel of ws to .* is not up"):
        ws.tell(True)
    ws.job.append("finished", {"at": 2.0}, 1)
    with pytest.raises(errors.Ended):
        ws.tell(True)


def test_a_tunnel_s_end_of_an_older_mlbox_is_told(ws: Workstation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "_TRIES", 2)
    ws.dial()
    until(ws.job.control.exists)
    ws.job.control.unlink()
    with pytest.raises(errors.HostUnready) as refused:
        ws.tell(True)
    assert f"(mlbox host add ws --via {ws.box.found.host} renews it)" in refused.value.hint


def test_on_its_own_host_a_person_s_word_is_refused(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older laptop relays it: who is meant is a user of the rendezvous."""
    job = Job(ids.ulid(1, os.urandom(10)), box.found.user, tmp_path / "job", tmp_path / "boot")
    job.conf.mkdir(parents=True)
    (job.conf / "session.json").write_text(json.dumps({"via": {"via": "gate"}}))
    box.lab(f"hosts: {{{box.found.host}: {{tunnel: reverse, via: gate}}}}")
    with pytest.raises(errors.Refused, match="colleagues come to far by gate"):
        share._check(box.found, job, "far", False)
    box.lab(f"hosts: {{{box.found.host}: {{via: gate}}}}")  # that can be dialled too: colleagues do
    share._check(box.found, job, "far", False)


def test_on_its_own_host_its_sshd_takes_those_keys(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reach = {"services": {}, "guest_key": "k3y"}
    job = Job(ids.ulid(1, os.urandom(10)), box.found.user, tmp_path / "job", tmp_path / "boot")
    job.conf.mkdir(parents=True)
    monkeypatch.setattr(share, "sweep", lambda _: [job])
    monkeypatch.setattr(share, "is_session", lambda _: True)
    monkeypatch.setattr(Job, "spec", lambda _: JobSpec(work=Spec()))
    with pytest.raises(errors.HostUnready, match="still starting"):
        box.call(share, session=job.id, keys=[KEY])
    (job.conf / "session.json").write_text(json.dumps(reach))
    assert box.call(share, session=job.id, keys=[KEY, f'command="x" {KEY}1', 7]) == {"session": reach}
    assert (job.conf / "via_keys").read_text() == f"{KEY}\n"
    many = [f"{KEY}{n:03}" for n in range(32 * colleague.MOST + 1)]
    box.call(share, session=job.id, keys=many)
    assert (job.conf / "via_keys").read_text().split("\n") == [*many[:-1], ""]
