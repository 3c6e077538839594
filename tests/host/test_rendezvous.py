"""Where reverse tunnels end: sockets get their lasting names, replace stale ones, and go with the connection."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from meeting import FOLDER, bound, dial, hang_up, said
from queuebox import Call, program

from mlbox.core import ids, reverse
from mlbox.core.job import JobSpec
from mlbox.host import files, store
from mlbox.host import rendezvous as end
from mlbox.host.handlers import rendezvous

KEY = "ssh-ed25519 " + "A" * 68
# For what is removed: with a name go all tunnels that this user has by it, those of tests beside this one, too.
MINE = f"ws-{os.urandom(4).hex()}"


@pytest.fixture
def session() -> Iterator[str]:
    id_ = ids.ulid(1, os.urandom(10))
    files.private_folder(FOLDER)
    yield id_
    for path in FOLDER.glob(f"r.{id_[-8:].lower()}.*"):
        path.unlink()


def answers(session: str, service: str, listener: socket.socket) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(FOLDER / reverse.lasting(session, service)))
        listener.settimeout(0.5)
        try:
            listener.accept()[0].close()
        except TimeoutError:
            return False
        return True


def names(session: str) -> list[str]:
    return sorted(path.name for path in FOLDER.glob(f"r.{session[-8:].lower()}.*"))


def test_sockets_have_lasting_names_while_the_tunnel_lives(tmp_path: Path, session: str) -> None:
    listeners = {service: bound(session, "00000001", service) for service in ("jupyter", "ssh")}
    tunnel = dial(tmp_path, reverse.request(session, "00000001", listeners))
    assert said(tunnel) == b"up\n"
    assert names(session) == [reverse.lasting(session, "jupyter"), reverse.lasting(session, "ssh")]
    assert all(answers(session, service, listener) for service, listener in listeners.items())
    hang_up(tunnel)
    assert names(session) == []


def test_a_later_tunnel_takes_over_and_the_first_ones_end_leaves_it_alone(tmp_path: Path, session: str) -> None:
    first, second = bound(session, "00000001", "ssh"), bound(session, "00000002", "ssh")
    tunnels = [dial(tmp_path, reverse.request(session, f"0000000{n}", ["ssh"])) for n in (1,)]
    assert said(tunnels[0]) == b"up\n" and answers(session, "ssh", first)
    tunnels.append(dial(tmp_path, reverse.request(session, "00000002", ["ssh"])))
    assert said(tunnels[1]) == b"up\n" and answers(session, "ssh", second)
    assert tunnels[0].wait(20) == 0  # by itself: what is left of a lost connection would stay for hours
    tunnels[0].communicate()
    assert answers(session, "ssh", second)
    hang_up(tunnels[1])
    assert names(session) == []


def test_who_is_connected_by_a_tunnel_that_was_replaced_is_told(tmp_path: Path, session: str) -> None:
    """Its sshd ends with it, for the connections through it lead nowhere. One whose tunnel has ended goes by itself."""
    sshd = tmp_path / "sshd"
    sshd.write_text('#!/bin/sh\n"$@"\nexit 0\n')
    sshd.chmod(0o755)
    listeners = [bound(session, f"0000000{n}", "ssh") for n in (1, 2)]
    first = dial(tmp_path, reverse.request(session, "00000001", ["ssh"]), str(sshd))
    assert said(first) == b"up\n"
    second = dial(tmp_path, reverse.request(session, "00000002", ["ssh"]), str(sshd))
    assert said(second) == b"up\n"
    assert first.wait(20) == -signal.SIGTERM
    first.communicate()
    hang_up(second)
    for listener in listeners:
        listener.close()


def test_it_says_up_again_and_again(tmp_path: Path, session: str) -> None:
    listener = bound(session, "00000001", "ssh")
    tunnel = dial(tmp_path, reverse.request(session, "00000001", ["ssh"]))
    assert [said(tunnel), said(tunnel), said(tunnel)] == [b"up\n"] * 3
    hang_up(tunnel)
    listener.close()


def test_a_stale_socket_is_replaced(tmp_path: Path, session: str) -> None:
    bound(session, "00000001", "ssh").close()
    os.rename(FOLDER / reverse.fresh(session, "00000001", "ssh"), FOLDER / reverse.lasting(session, "ssh"))
    listener = bound(session, "00000002", "ssh")
    tunnel = dial(tmp_path, reverse.request(session, "00000002", ["ssh"]))
    assert said(tunnel) == b"up\n" and answers(session, "ssh", listener)
    hang_up(tunnel)


def test_sockets_of_tunnels_that_never_came_up_go(tmp_path: Path, session: str) -> None:
    bound(session, "00000001", "ssh").close()
    coming, listener = bound(session, "00000003", "ssh"), bound(session, "00000002", "ssh")
    tunnel = dial(tmp_path, reverse.request(session, "00000002", ["ssh"]))
    assert [said(tunnel), said(tunnel)] == [b"up\n"] * 2
    assert names(session) == [reverse.fresh(session, "00000003", "ssh"), reverse.lasting(session, "ssh")]
    hang_up(tunnel)
    coming.close()
    listener.close()


def on_record(tmp_path: Path, session: str, host: str) -> None:
    """In a lab's ROOT, which is there."""
    found = store.Store(tmp_path / "root")
    job = found.job(session)
    found.create(job, JobSpec(), queued=True)
    job.append("submitted", {"at": 1.0, "queue": "default"})
    job.append("claimed", {"at": 1.0, "host": host, "boot": "b", "gpus": [], "attempt": 1})
    (tmp_path / "root/mlbox.json").write_text('{"format": 1, "id": "lab"}')


def takes_over(tmp_path: Path, session: str, asked: str) -> bytes:
    """What a key is told that asks for the names of `session`, which has a tunnel, as those of `asked`; it has them
    when it is told `up`, and then only."""
    victim = bound(session, "00000001", "ssh")
    os.rename(FOLDER / reverse.fresh(session, "00000001", "ssh"), FOLDER / reverse.lasting(session, "ssh"))
    thief = bound(asked, "00000002", "ssh")
    tunnel = dial(tmp_path, reverse.request(asked, "00000002", ["ssh"]))
    told = said(tunnel)
    assert answers(session, "ssh", victim) == (told != b"up\n")
    tunnel.communicate()
    for listener in (victim, thief):
        listener.close()
    return told


@pytest.mark.parametrize(("host", "heard"), [("gpu2", b"is on gpu2, and this key is ws's"), ("ws", b"up\n")])
def test_a_key_takes_over_no_other_hosts_session(tmp_path: Path, session: str, host: str, heard: bytes) -> None:
    on_record(tmp_path, session, host)
    assert heard in takes_over(tmp_path, session, session)


def forged(session: str) -> str:
    """An id whose sockets have the same names."""
    made = "0" * 18 + session[-8:]
    assert ids.is_ulid(made) and reverse.lasting(made, "ssh") == reverse.lasting(session, "ssh")
    return made


def test_nor_by_an_id_that_is_made_up(tmp_path: Path, session: str) -> None:
    on_record(tmp_path, session, "gpu2")
    made = forged(session)
    heard = takes_over(tmp_path, session, made)
    assert f"there is no session {made} in {tmp_path / 'root'}, or it is not seen yet".encode() in heard
    on_record(tmp_path, made, "ws")
    assert f"session {session} is on gpu2, and this key is ws's".encode() in takes_over(tmp_path, session, made)


def test_a_session_that_the_share_shows_late_is_met(
    tmp_path: Path, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_record(tmp_path, ids.ulid(2, os.urandom(10)), "gpu2")
    seen = SimpleNamespace(sleep=lambda pause: on_record(tmp_path, session, "ws"))
    monkeypatch.setattr(end, "time", seen)
    for host, refusal in (("ws", ""), ("ws2", f"session {session} is on ws, and this key is ws2's")):
        look = end.Look(session, host, str(tmp_path / "root"))
        look.thread.join()
        assert (look.refusal, look.store is None) == (refusal, refusal != "")


def test_a_root_that_is_not_there_keeps_no_tunnel_down(tmp_path: Path, session: str) -> None:
    (tmp_path / "root").mkdir()  # a mount point
    assert takes_over(tmp_path, session, session) == b"up\n"


def test_without_the_sockets_it_says_why_and_leaves_nothing(tmp_path: Path, session: str) -> None:
    listener = bound(session, "00000001", "ssh")
    tunnel = dial(tmp_path, reverse.request(session, "00000001", ["ssh", "jupyter"]))
    assert b"lets no socket be forwarded" in said(tunnel)
    assert tunnel.wait(20) == 1
    tunnel.communicate()
    assert names(session) == []
    listener.close()


def test_other_words_are_refused(tmp_path: Path) -> None:
    tunnel = dial(tmp_path, "id")
    assert b"does nothing else" in tunnel.communicate()[1]
    assert tunnel.returncode == 2


# ---- authorized_keys -------------------------------------------------------------------------------------------


@pytest.fixture
def keys(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "argv", [str(program(tmp_path))])
    return home / ".ssh/authorized_keys"


def ask(do: str, name: str = MINE, key: str = KEY) -> store.Json:
    return rendezvous.run(Call(None, do=do, name=name, key=key))  # type: ignore[arg-type]


def test_the_line_is_shown_first_then_there_once_then_gone(keys: Path) -> None:
    keys.parent.mkdir(mode=0o700)
    keys.write_text(f"{KEY} ada@laptop\n# mine, with no line break")
    before = keys.read_text()
    shown = ask("show")
    assert (shown["known"], keys.read_text()) == (False, before)
    assert ask("add")["changed"]
    assert not ask("add")["changed"]
    assert keys.read_text() == f"{before}\n{shown['line']}\n"
    assert keys.stat().st_mode & 0o777 == 0o644  # as it was
    other = "ssh-ed25519 " + "B" * 68
    ask("add", key=other)
    assert KEY + " mlbox" not in keys.read_text() and other in keys.read_text()
    assert ask("show", key=other)["known"]
    assert ask("remove")["removed"]
    assert keys.read_text() == f"{before}\n"
    assert not ask("remove")["removed"]


def test_all_that_is_somebody_elses_stays_as_it_was(keys: Path) -> None:
    keys.parent.mkdir(mode=0o700)
    before = f"{KEY} ada\u2028at\x0cthe\x85laptop\r\n\n#\x1c mine \udcff\n".encode(errors="surrogateescape")
    keys.write_bytes(before)
    line = ask("show")["line"]
    assert ask("add")["changed"] and keys.read_bytes() == before + f"{line}\n".encode()
    assert ask("remove")["removed"] and keys.read_bytes() == before


def test_where_there_is_no_file_yet(keys: Path) -> None:
    ask("add")
    assert keys.stat().st_mode & 0o777 == 0o600 and keys.parent.stat().st_mode & 0o777 == 0o700


def test_remove_ends_its_tunnels_and_no_others(keys: Path, tmp_path: Path, session: str) -> None:
    listener = bound(session, "00000001", "ssh")
    tunnel = dial(tmp_path, reverse.request(session, "00000001", ["ssh"]), host=MINE)
    assert said(tunnel) == b"up\n"
    assert ask("remove", MINE[:-1])["ended"] == 0
    assert ask("remove")["ended"] == 1
    assert tunnel.wait(20) == 0 and names(session) == []
    tunnel.communicate()
    listener.close()
