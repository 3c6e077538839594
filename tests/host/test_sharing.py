"""A shared session's door: who is let in is the kernel's word, and taking a share back is felt at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from colleagues import Client, as_user

from mlbox import errors
from mlbox.core import ids
from mlbox.host import behind, colleague, door, files, lines, peer, sharing
from mlbox.host.job import Job

Json = dict[str, Any]
BOB, EVE, OTHER = 65501, 65502, 65503  # uids without an account
KEY = "ssh-ed25519 " + "A" * 68
pytestmark = pytest.mark.skipif(not peer.known() or os.getuid() != 0, reason="needs Linux, and root to be others")


class Session:
    """A session's folders, with services that say what they hear; `keep` makes its keeper's part anew."""

    def __init__(self, root: Path) -> None:
        id_ = ids.ulid(1, os.urandom(10))
        self.job = Job(id_, "ada", root / "job", root / "mlbox-0" / id_[-8:].lower())
        for folder in (self.job.sockets, self.job.conf, self.job.logs):
            folder.mkdir(parents=True)
        for name in ("ssh", "guest"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.job.sockets / f"{name}.sock"))
            listener.listen()
            threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        facts = {"user": "ada", "host_key": KEY, "folder": "/w", "socket": str(self.job.sockets / "ssh.sock")}
        self.reach: Json = {"id": id_, "name": "otter", "services": {"ssh": facts}, "gpus": [], "image": "i",
                            "runtime": "docker", "since": 5.0, "guest_socket": "", "guest_key": "k3y",
                            "absent": {}}  # fmt: skip
        self.clients: list[Client] = []
        self.keep()

    def keep(self) -> None:
        kept = sharing.begin(self.job, behind.Here(self.job, self.reach))
        assert kept is not None
        self.kept = kept

    def tell(self, op: str, uid: int) -> Json:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.job.control))
            connection.sendall(json.dumps({"op": op, "uid": uid}).encode() + b"\n")
            return dict(json.loads(connection.makefile().readline()))

    def client(self, uid: int, name: str) -> Client:
        made = Client(uid, self.job.door / name)
        self.clients.append(made)
        return made

    def ask(self, uid: int, question: Json, session: str = "") -> Json:
        """At the door; empty where nothing is said."""
        line = self.client(uid, session or "door").ask(json.dumps(question).encode() + b"\n")
        return {} if line == b"[end]\n" else dict(json.loads(line))

    def enter(self, uid: int, *keys: str) -> Json:
        return self.ask(uid, {"op": "enter", "keys": list(keys)})


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """In a /tmp of its own, with a short name."""
    root = Path(tempfile.mkdtemp(prefix="mt"))
    root.chmod(0o1777)
    (root / "mlbox-0").mkdir(mode=0o700)
    monkeypatch.setattr(Job, "door", property(lambda job: root / "mlbox-0.shared" / job.id))
    monkeypatch.setattr(door, "_FOLDERS", root)
    made = Session(root)
    yield made
    made.kept.close()
    for client in made.clients:
        client.end()
    assert not (made.job.door.parent / made.job.id).exists() and not made.job.control.exists()
    shutil.rmtree(root)


def test_nothing_is_there_before_it_is_shared(session: Session) -> None:
    assert not session.job.door.parent.exists()
    assert stat.S_IMODE(session.job.control.stat().st_mode) == 0o600


def test_a_colleague_is_let_in_and_nobody_else_gets_a_byte(session: Session) -> None:
    assert session.tell("share", BOB) == {"changed": True, "trouble": ""}
    said = session.enter(BOB)
    assert said["guest_key"] == "k3y"
    assert (said["name"], said["services"]["ssh"]["user"], "socket" in said["services"]["ssh"]) == (
        "otter",
        "ada",
        False,
    )
    for service in ("ssh", "guest"):
        path = f"{said['secret']}.{service}"
        assert session.client(BOB, path).ask(b"hello\n") == b"hello\n"
        for uid in (EVE, 0):
            assert session.client(uid, path).ask(b"hello\n") == b"[end]\n"
    for uid in (EVE, 0):
        for op in ("facts", "enter", "logs"):
            assert session.ask(uid, {"op": op}) == {}
    argv = ("/bin/ls", str(session.job.door))
    assert subprocess.run(argv, user=EVE, group=EVE, extra_groups=(), capture_output=True).returncode != 0


def test_a_colleague_s_way_is_no_other_colleague_s(session: Session) -> None:
    for uid in (BOB, EVE):
        session.tell("share", uid)
    bobs = f"{session.enter(BOB)['secret']}.ssh"
    assert session.client(EVE, bobs).ask(b"hello\n") == b"[end]\n"
    assert session.client(EVE, f"{session.enter(EVE)['secret']}.ssh").ask(b"hello\n") == b"hello\n"


def test_taking_it_back_ends_what_is_open_and_not_the_others(session: Session) -> None:
    for uid in (BOB, EVE):
        session.tell("share", uid)
    ways = {uid: f"{session.enter(uid)['secret']}.ssh" for uid in (BOB, EVE)}
    open_ = {uid: session.client(uid, way) for uid, way in ways.items()}
    assert all(client.ask(b"one\n") == b"one\n" for client in open_.values())
    assert session.tell("unshare", BOB) == {"changed": True, "ended": 1, "trouble": ""}
    assert open_[BOB].hear() == b"[end]\n"
    assert open_[EVE].ask(b"two\n") == b"two\n"
    assert session.ask(BOB, {"op": "facts"}) == {}
    assert not (session.job.door / ways[BOB]).exists()
    assert session.ask(EVE, {"op": "facts"})["name"] == "otter"
    session.tell("unshare", EVE)
    assert open_[EVE].hear() == b"[end]\n" and not session.job.door.exists()
    assert session.tell("share", BOB) == {"changed": True, "trouble": ""}
    assert f"{session.enter(BOB)['secret']}.ssh" != ways[BOB]


def test_the_owner_s_word_may_come_twice(session: Session) -> None:
    assert [session.tell("share", BOB)["changed"] for _ in range(2)] == [True, False]
    assert [session.tell("unshare", BOB)["changed"] for _ in range(2)] == [True, False]


def test_keys_go_with_the_share_and_the_owner_s_stay(session: Session) -> None:
    owners, shared = session.job.conf / "authorized_keys", session.job.conf / "shared_keys"
    owners.write_text(f"{KEY}\n")
    for uid in (BOB, EVE):
        session.tell("share", uid)
    session.enter(BOB, KEY, f'command="x" {KEY}1')
    session.enter(BOB, f"{KEY}2 bob@other")
    session.enter(EVE, f"{KEY}3")
    assert sorted(shared.read_text().splitlines()) == [KEY, f"{KEY}2", f"{KEY}3"]
    session.tell("unshare", BOB)
    assert shared.read_text() == f"{KEY}3\n" and owners.read_text() == f"{KEY}\n"


def test_another_keeper_lets_the_same_people_in_by_the_same_way(session: Session) -> None:
    session.tell("share", BOB)
    way = f"{session.enter(BOB, KEY)['secret']}.ssh"
    kept = {path: path.read_bytes() for path in (session.job.share,)}
    session.kept.close()  # a killed one leaves all of this
    for path, content in kept.items():
        path.write_bytes(content)
    session.job.door.mkdir(parents=True)
    (session.job.door / "door").touch()
    session.keep()
    assert session.client(BOB, way).ask(b"hello\n") == b"hello\n"
    assert session.ask(EVE, {"op": "facts"}) == {}


def test_one_colleague_s_thousand_connections_are_not_another_s_loss(session: Session) -> None:
    for uid in (BOB, EVE):
        session.tell("share", uid)
    way = session.job.door / f"{session.enter(BOB)['secret']}.ssh"
    flood = (
        "held = []\n"
        "for _ in range(1000):\n    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)\n"
        "alive = 0\n"
        "for s in held:\n"
        "    try:\n        s.sendall(b'x'); alive += s.recv(1) == b'x'\n"
        "    except OSError: pass\n"
        "print(alive, flush=True); sys.stdin.read()"
    )
    with as_user(BOB, flood, str(way)) as process:
        assert process.stdout is not None
        assert 0 < int(process.stdout.readline()) <= 64
        assert session.client(EVE, f"{session.enter(EVE)['secret']}.ssh").ask(b"hello\n") == b"hello\n"
        assert session.tell("unshare", BOB)["ended"] <= 64


@pytest.mark.parametrize("op", ["facts", "enter", "logs"])
def test_a_question_begun_before_is_not_answered_after(session: Session, op: str) -> None:
    session.tell("share", BOB)
    begun = session.client(BOB, "door")
    begun.say(b'{"op": ')
    assert session.ask(BOB, {"op": "facts"})["name"] == "otter"  # who came before this one is in
    session.tell("unshare", BOB)
    assert begun.ask(f'"{op}", "keys": []}}\n'.encode()) == b"[end]\n"


def test_a_question_that_is_none_is_the_end_of_it(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs: list[object] = []
    monkeypatch.setattr(threading, "excepthook", bugs.append)
    session.tell("share", BOB)
    for line in (b"[" * 60_000 + b"\n", b"{}\n", b"7\n", b'{"op": ["facts"]}\n', b"x" * 70_000, b'{"op": "share"}\n'):
        assert session.client(BOB, "door").ask(line) == b"[end]\n"
    assert session.enter(BOB, "no key")["name"] == "otter"
    assert bugs == []  # a colleague can't fill the keeper's log


def test_a_full_disk_takes_nobody_s_share_for_granted(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for uid in (BOB, EVE):
        session.tell("share", uid)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_whole", full)
        assert "No space left" in session.tell("share", OTHER)["error"]
        said = session.tell("unshare", BOB)
    assert said["changed"] and "No space left" in said["trouble"]
    assert session.ask(BOB, {"op": "facts"}) == {} and session.ask(OTHER, {"op": "facts"}) == {}
    assert not session.job.share.exists()  # a later keeper finds nobody in it


def test_a_folder_that_somebody_else_prepared_is_not_used(session: Session) -> None:
    trap = session.job.door.parent.parent / "trap"
    (trap / session.job.id).mkdir(parents=True)
    (trap / session.job.id / "precious").touch()
    session.job.door.parent.symlink_to(trap)
    os.lchown(session.job.door.parent, EVE, EVE)
    assert "is not a folder of yours" in session.tell("share", BOB)["error"]
    session.job.clear_shares()
    assert (trap / session.job.id / "precious").exists()
    session.job.door.parent.unlink()
    session.keep()
    assert session.tell("share", BOB) == {"changed": True, "trouble": ""}  # and the failure left no half of a share
    shutil.rmtree(trap)


def test_who_comes_next_to_the_door_lets_the_same_people_in(session: Session) -> None:
    """At a rendezvous the next end of its tunnel."""
    session.tell("share", BOB)
    way = f"{session.enter(BOB)['secret']}.ssh"
    open_ = session.client(BOB, way)
    assert open_.ask(b"one\n") == b"one\n"
    session.kept.leave()
    assert open_.hear() == b"[end]\n" and not session.job.control.exists()
    assert (session.job.door / way).exists()  # a name that is gone would be the end of sharing
    session.keep()
    assert session.client(BOB, way).ask(b"two\n") == b"two\n"
    assert session.tell("unshare", BOB)["changed"]


class Slow(behind.Here):
    """A session's sshd that takes its time."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.job, session.reach)
        self.entered, self.may_go = threading.Semaphore(0), threading.Event()

    def entry(self, keys: Iterable[str]) -> Json:
        self.entered.release()
        self.may_go.wait()
        return super().entry(keys)


def test_who_takes_long_to_come_in_keeps_nobody_from_being_taken_out(session: Session) -> None:
    for uid in (BOB, EVE, OTHER):
        session.tell("share", uid)
    way = f"{session.enter(OTHER)['secret']}.ssh"
    session.kept.leave()
    slow = Slow(session)
    made = sharing.begin(session.job, slow)
    assert made is not None
    session.kept = made
    open_ = session.client(OTHER, way)
    assert open_.ask(b"one\n") == b"one\n"
    coming = [session.client(uid, "door") for uid in (BOB, BOB, EVE, EVE)]
    for client in coming:
        client.say(b'{"op": "enter", "keys": []}\n')
    assert slow.entered.acquire(timeout=20)
    said: list[Json] = []
    owner = threading.Thread(target=lambda: said.append(session.tell("unshare", OTHER)))
    owner.start()
    assert open_.hear() == b"[end]\n"  # at once
    slow.may_go.set()
    owner.join(20)
    assert said[0]["changed"] and said[0]["ended"] == 1
    assert [json.loads(client.hear())["name"] for client in coming] == ["otter"] * 4
    assert session.tell("unshare", BOB)["changed"]


def test_who_has_left_the_door_lets_nobody_in_again(session: Session) -> None:
    """Its process may live on for a while: what was begun there is told so, and changes nothing."""
    session.tell("share", BOB)
    begun = [session.client(BOB, "door") for _ in range(2)]
    for client in begun:
        client.say(b'{"op": ')
    assert session.ask(BOB, {"op": "facts"})["name"] == "otter"  # who came before this one is in
    session.kept.leave()
    colleague.record(session.job, [])  # the owner's word, done by who came there next
    for client in begun:
        assert b"just changing" in client.ask(f'"enter", "keys": ["{KEY}"]}}\n'.encode())
        assert client.hear() == b"[end]\n"
    assert colleague.recorded(session.job) == [] and (session.job.conf / behind.KEYS).read_text() == ""
    session.keep()


def test_a_steady_drip_is_no_question() -> None:
    near, far = socket.socketpair()
    with near, far:

        def drip() -> None:
            with suppress(OSError):
                while True:
                    far.sendall(b"x")
                    threading.Event().wait(0.002)

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(TimeoutError):
            lines.hear(near, 1 << 20, time.monotonic() + 0.3)
        near.shutdown(socket.SHUT_RDWR)


def test_who_has_too_many_connections_open_is_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.tell("share", BOB)
    monkeypatch.setattr(colleague.Colleague, "take", lambda _: False)
    assert "so many connections" in session.ask(BOB, {"op": "facts"})["unready"]
    assert session.ask(EVE, {"op": "facts"}) == {}


# ---- the colleague's side --------------------------------------------------------------------------------

_FAKE = """
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666); s.listen()
print("up", flush=True)
while True:
    c, _ = s.accept()
    c.recv(4096); c.sendall(sys.argv[2].encode() + b"\\n"); c.close()
"""


class Offer:
    """Another user's door, with a program of that user's (or of `by`'s) behind it."""

    def __init__(self, root: Path, uid: int, session: str, said: Json | str, by: int | None = None) -> None:
        self.folder = root / f"mlbox-{uid}.shared" / session
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(exist_ok=True)
            os.chown(folder, uid, uid)
        runs_as = uid if by is None else by
        if by is not None:
            self.folder.chmod(0o777)
        words = said if isinstance(said, str) else json.dumps(said)
        self._process = as_user(runs_as, _FAKE, str(self.folder / "door"), words)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"up\n"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mt"))
    made.chmod(0o1777)
    monkeypatch.setattr(door, "_FOLDERS", made)
    monkeypatch.setattr(door, "_GLANCE", 20.0)  # all of these answer, or close
    yield made
    shutil.rmtree(made)


@pytest.fixture
def offers(root: Path) -> Iterator[Any]:
    made: list[Offer] = []

    def offer(*words: Any, **more: Any) -> Offer:
        made.append(Offer(root, *words, **more))
        return made[-1]

    yield offer
    for one in made:
        one.end()


ONE, TWO = "01M8AK1K9S32X8M71682TR19D6", "01M8AK1K9S32X8M71682TR19D7"


def test_it_is_found_by_id_by_name_and_by_its_owner(offers: Any) -> None:
    offers(BOB, ONE, {"name": "otter"})
    offers(EVE, TWO, {"name": "heron"})
    for wanted in (ONE, "otter", ONE[-6:], f"{BOB}/otter", f"{BOB}/{ONE}"):
        found = door.find(wanted)
        assert found is not None and found[1]["id"] == ONE and found[1]["owner"] == str(BOB)
    assert [door.find(wanted) for wanted in ("", "wolf", f"{EVE}/otter", "/")] == [None] * 4
    assert sorted(facts["name"] for facts in door.visible()) == ["heron", "otter"]


def test_one_id_offered_by_two_is_said_and_not_guessed(offers: Any) -> None:
    offers(BOB, ONE, {"name": "otter"})
    offers(EVE, ONE, {"name": "otter"})
    for wanted in (ONE, "otter"):
        with pytest.raises(errors.NotFound, match=f"{BOB}/otter.*{EVE}/otter"):
            door.find(wanted)
    found = door.find(f"{EVE}/{ONE}")
    assert found is not None and found[0].uid == EVE


def test_a_door_in_another_s_name_is_none(offers: Any, root: Path) -> None:
    offers(BOB, ONE, {"name": "otter"}, by=EVE)
    with pytest.raises(errors.NotFound, match=f"is not {BOB}'s"):
        door.find(ONE)
    offer = offers(EVE, TWO, {"name": "heron"})
    os.rename(offer.folder.parent, root / f"mlbox-{OTHER}.shared")  # EVE's folder, with another's number
    assert door.find(TWO) is None
    os.symlink(root / f"mlbox-{OTHER}.shared", root / f"mlbox-{EVE}.shared")
    os.lchown(root / f"mlbox-{EVE}.shared", EVE, EVE)
    assert door.find(TWO) is None and door.visible() == []


@pytest.mark.parametrize("said", ["", "[" * 100_000, "7", json.dumps({"name": "x\x1b"}), "{"])
def test_one_who_says_nothing_or_nonsense_offers_nothing(offers: Any, said: str) -> None:
    offers(BOB, ONE, {"name": "otter"})
    offers(EVE, TWO, said)
    assert [facts["name"] for facts in door.visible()] == ["otter"]
    with pytest.raises(errors.MlboxError, match=f"{EVE}"):
        door.find(TWO)


def test_a_dead_keeper_is_not_an_end_of_sharing(offers: Any) -> None:
    offers(BOB, ONE, {"name": "otter"}).end()
    with pytest.raises(errors.HostUnready, match="nobody answers at the door"):
        door.find(ONE)


def test_all_doors_are_asked_at_once() -> None:
    """However many of them are silent, who waits for all waits for one."""
    asked = threading.Barrier(200)

    class Silent(door.Door):
        def facts(self, patience: float = 0) -> Json:
            asked.wait(20)
            raise errors.HostUnready("nobody answers")

    assert door._known([Silent(Path("/none"), BOB)] * 200) == []
    assert not asked.broken
