"""GPU leases: kernel locks that outlive a killed keeper, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.core.gpu import Holder
from mlbox.host import files, lease

ADA = Holder("ada", "01J0", "kind-otter")
A, B, C = "GPU-a", "GPU-b", "GPU-c"
# Takes the GPUs named, says whether it has them, then does as its stdin says.
_TAKER = """
import socket, sys
from pathlib import Path
from mlbox import descriptors
from mlbox.core.gpu import Holder
from mlbox.host import files, lease
lease.FOLDER = Path(sys.argv[1])
held = lease.take(sys.argv[2].split(","), Holder("bob", "01J1", "calm-owl"))
print("none" if held is None else ",".join(held), flush=True)
for line in sys.stdin:
    if line.startswith("give"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(line.split()[1])
            descriptors.send(connection, {"leases": list(held)}, list(held.values()))
            connection.recv(1)
    print("done", flush=True)
"""
# Takes descriptors from the socket whose path it gets, and keeps them.
_HEIR = """
import socket, sys
from mlbox import descriptors
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
    listener.bind(sys.argv[1])
    listener.listen(1)
    print("listening", flush=True)
    connection, _ = listener.accept()
data, held = descriptors.receive(connection)
print(len(held), flush=True)
connection.sendall(b"x")
sys.stdin.read()
"""


class Process:
    """A Python process that is spoken to line by line."""

    def __init__(self, code: str, *arguments: str) -> None:
        self._child = subprocess.Popen(
            (sys.executable, "-c", code, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()

    def say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def kill(self) -> None:
        self._child.send_signal(signal.SIGKILL)
        self._child.communicate()


@contextmanager
def process(code: str, *arguments: str) -> Iterator[Process]:
    made = Process(code, *arguments)
    try:
        yield made
    finally:
        made.kill()


def is_free(uuid: str) -> bool:
    held = lease.take([uuid], ADA)
    if held is None:
        return False
    lease.drop(held)
    return True


def test_take_and_drop() -> None:
    held = lease.take([B, A], ADA)
    assert held is not None and list(held) == [A, B]
    assert set(lease.held_by([A, B, C])) == {A, B}
    lease.drop(held)
    assert held == {} and lease.held_by([A, B, C]) == {}
    assert is_free(A)


def test_nothing_asked_for_is_nothing_held() -> None:
    assert lease.take([], ADA) == {}


def test_a_lease_excludes_also_within_one_process() -> None:
    held = lease.take([A], ADA)
    assert held is not None
    assert lease.take([A], ADA) is None
    lease.drop(held)


def test_all_or_none_across_processes(leases: Path) -> None:
    with process(_TAKER, str(leases), f"{B}") as other:
        assert other.hear() == B
        assert lease.take([A, B, C], ADA) is None
        assert is_free(A) and is_free(C) and not is_free(B)
    assert is_free(B)


def test_many_at_once_one_wins(leases: Path) -> None:
    """In the same order by whoever asks: two that want the same pair can't take half of it each."""
    with process(_TAKER, str(leases), f"{A},{B}") as one, process(_TAKER, str(leases), f"{B},{A}") as two:
        assert sorted([one.hear(), two.hear()]) == [f"{A},{B}", "none"]


def test_a_killed_taker_frees_its_leases(leases: Path) -> None:
    with process(_TAKER, str(leases), A) as other:
        other.hear()
        assert not is_free(A)
        other.kill()
        assert is_free(A)


def test_a_lease_that_was_passed_on_outlives_its_taker(leases: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with process(_HEIR, path) as heir, process(_TAKER, str(leases), f"{A},{B}") as taker:
        assert (heir.hear(), taker.hear()) == ("listening", f"{A},{B}")
        taker.say(f"give {path}")
        assert (heir.hear(), taker.hear()) == ("2", "done")
        taker.kill()
        assert not is_free(A) and not is_free(B)
        assert lease.held_by([A])[A].name == "calm-owl"
        heir.kill()
        assert is_free(A) and is_free(B)


def test_an_executed_program_does_not_inherit() -> None:
    held = lease.take([A], ADA)
    assert held is not None
    with subprocess.Popen(("sleep", "1000"), close_fds=False) as executed:
        lease.drop(held)
        assert is_free(A)
        executed.kill()


# ---- who holds it --------------------------------------------------------------------------------


def test_the_holder_signs(leases: Path) -> None:
    held = lease.take([A], ADA)
    assert held is not None
    assert lease.held_by([A]) == {A: ADA}
    note = leases / f"{A}.{os.getuid()}"
    assert (stat.S_IMODE(note.stat().st_mode), stat.S_IMODE((leases / A).stat().st_mode)) == (0o644, 0o666)
    lease.drop(held)
    assert lease.held_by([A]) == {}  # the note is still there, and no longer believed
    assert note.exists()


@pytest.mark.parametrize("note", [None, b"{", b"[]", b"7"], ids=["absent", "torn", "list", "number"])
def test_a_holder_who_did_not_sign_is_someone(leases: Path, note: bytes | None) -> None:
    held = lease.take([A], ADA)
    assert held is not None
    path = leases / f"{A}.{os.getuid()}"
    path.unlink()
    if note is not None:
        path.write_bytes(note)
    assert lease.held_by([A]) == {A: Holder("someone")}
    lease.drop(held)


def test_only_a_note_s_owner_signs_with_it(leases: Path) -> None:
    held = lease.take([A], ADA)
    assert held is not None
    forged = leases / f"{A}.{os.getuid() + 1}"
    forged.write_text(json.dumps({"user": "mallory"}))
    os.utime(forged, (2**32, 2**32))
    (leases / f"{A}.x").symlink_to(forged)
    assert lease.held_by([A]) == {A: ADA}
    lease.drop(held)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's files")
@pytest.mark.parametrize("later", [True, False])
def test_the_last_to_sign_is_the_holder(leases: Path, later: bool) -> None:
    held = lease.take([A], ADA)
    assert held is not None
    own, bobs = leases / f"{A}.{os.getuid()}", leases / f"{A}.4711"
    bobs.write_text(json.dumps({"user": "bob"}))
    os.chown(bobs, 4711, 4711)
    for path, time in ((own, 1000), (bobs, 2000 if later else 500)):
        os.utime(path, (time, time))
    assert lease.held_by([A])[A].user == ("bob" if later else "ada")
    lease.drop(held)


def test_a_long_note_is_cut(leases: Path) -> None:
    held = lease.take([A], Holder("x" * 500))
    assert held is not None
    assert len(lease.held_by([A])[A].user) == 80
    lease.drop(held)


# ---- shares ---------------------------------------------------------------------------------------

ONE, TWO = "01ARYZ6S41TSV4RRFFQ69G5FAV", "01ARYZ6S41TSV4RRFFQ69G5FAW"


def share(job: str, memory: int) -> dict[str, int]:
    held = lease.take_share(A, job, memory, ADA)
    assert held is not None
    return held


def test_shares_go_together_and_never_with_a_whole_lease(leases: Path) -> None:
    one, two = share(ONE, 8192), share(TWO, 1024)
    assert set(one) == {A, f"{A}.share.{ONE}"}
    assert lease.shares() == {A: {ONE: 8192, TWO: 1024}}
    assert lease.held_by([A, B]) == {A: ADA}
    assert not is_free(A)
    lease.drop(one)
    assert lease.shares() == {A: {TWO: 1024}}
    assert (leases / f"{A}.share.{ONE}").exists()  # whoever only looks may be in the midst of another's start
    with lease.choosing():
        pass
    assert [path.name for path in leases.glob("*.share.*")] == [f"{A}.share.{TWO}"]
    assert not is_free(A)
    lease.drop(two)
    assert lease.shares() == {}
    assert is_free(A)


def test_who_looks_while_a_share_is_taken_takes_it_from_nobody(leases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched:
        """fcntl, and at each of its locks a look by somebody else."""

        def __getattr__(self, name: str) -> object:
            return getattr(fcntl, name)

        def flock(self, descriptor: int, how: int) -> None:
            with monkeypatch.context() as other:
                other.setattr(lease, "fcntl", fcntl)
                lease.shares()
            fcntl.flock(descriptor, how)

    with monkeypatch.context() as looked:
        looked.setattr(lease, "fcntl", Watched())
        held = share(ONE, 8192)
    assert lease.shares() == {A: {ONE: 8192}}
    lease.drop(held)


@pytest.mark.parametrize("fails", [0, 1])
def test_on_a_full_disk_nothing_is_held(leases: Path, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    """Whatever of it finds no room: the mark, or who has it."""
    room = [True] * fails  # for so many files

    def full(*words: object, **more: object) -> None:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room.pop()
        real(*words, **more)  # type: ignore[arg-type]

    real = files.write_whole
    with monkeypatch.context() as disk:
        disk.setattr(files, "write_whole", full)
        with pytest.raises(OSError, match="No space"):
            share(ONE, 8192)
        with pytest.raises(OSError, match="No space"):
            lease.take([B], ADA)
    assert is_free(A) and is_free(B) and lease.shares() == {}


def test_there_is_no_share_of_what_is_leased_as_a_whole(leases: Path) -> None:
    held = lease.take([A], ADA)
    assert held is not None
    assert lease.take_share(A, ONE, 1, ADA) is None
    assert not list(leases.glob("*.share.*"))
    lease.drop(held)
    lease.drop(share(ONE, 1))


@pytest.mark.parametrize("said", [b"{", b"[]", b"{}", b'{"memory": "8"}', b'{"memory": true}'])
def test_a_share_that_cannot_be_read_takes_all(leases: Path, said: bytes) -> None:
    held = share(ONE, 8192)
    (leases / f"{A}.share.{ONE}").write_bytes(said)
    assert lease.shares()[A][ONE] > 1 << 20  # MiB; no GPU has so much
    lease.drop(held)


def test_one_chooses_at_a_time(leases: Path) -> None:
    with lease.choosing():
        other = lease.lock_file("choosing")
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_what_is_held_does_not_look_forgotten(leases: Path) -> None:
    held = share(ONE, 1)
    there = [leases / A, leases / f"{A}.{os.getuid()}", leases / f"{A}.share.{ONE}"]
    for path in (*there, leases / "other"):
        path.touch()
        os.utime(path, (1, 1))
    lease.keep_young([*held, "gone"])
    assert all(path.stat().st_mtime > 1 for path in there)
    assert (leases / "other").stat().st_mtime == 1
    lease.drop(held)


# ---- odd places ----------------------------------------------------------------------------------


@pytest.mark.parametrize("uuid", ["../etc/passwd", "", "a" * 101, "GPU-1\n", "GPU 1", ".hidden"], ids=repr)
def test_what_is_no_uuid_is_refused(uuid: str) -> None:
    with pytest.raises(errors.Usage):
        lease.take([uuid], ADA)


def test_mig_uuids_have_slashes() -> None:
    held = lease.take(["MIG-GPU-1/2/0"], ADA)
    assert held is not None and set(lease.held_by(["MIG-GPU-1/2/0"])) == {"MIG-GPU-1/2/0"}
    lease.drop(held)


def test_the_folder_is_everybody_s(leases: Path) -> None:
    assert is_free(A)
    assert stat.S_IMODE(leases.stat().st_mode) == 0o1777


def test_what_can_not_be_asked_is_not_taken_for_free(leases: Path) -> None:
    leases.mkdir()
    (leases / A).symlink_to("nowhere")
    assert set(lease.held_by([A, B])) == {A}


def test_a_link_in_the_place_of_a_lock_is_not_followed(leases: Path, tmp_path: Path) -> None:
    leases.mkdir()
    (tmp_path / "target").write_text("")
    (leases / A).symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        lease.take([A], ADA)


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_a_folder_that_is_none_is_refused(leases: Path, tmp_path: Path, kind: str) -> None:
    if kind == "file":
        leases.write_text("")
    else:
        leases.symlink_to(tmp_path)
    with pytest.raises(errors.HostUnready, match="not a folder"):
        lease.take([A], ADA)


def test_asking_makes_nothing(leases: Path) -> None:
    assert lease.held_by([A]) == {}
    assert not leases.exists()
