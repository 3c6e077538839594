"""The runner of one attempt, alone: what it says of an end, what it keeps of the output, and that nothing is left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from queuebox import kill, until

from mlbox.core import ids
from mlbox.host import keeping, processes, runner
from mlbox.host.runner import LOCK, PID, Command, Output, run

JOB = ids.ulid(0, os.urandom(10))  # its processes are found machine-wide: not those of another run of these tests


class Runner:
    def __init__(self, folder: Path, *argv: str, limit: int = 1 << 20, grace: float = 5, held: int = -1) -> None:
        self.folder = folder
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        env, output = {"PATH": os.environ["PATH"], "MLBOX_SESSION": JOB}, folder / "output.log"
        command = Command(JOB, argv, env, folder, folder, output, limit, grace)
        kept = (lock, held) if held >= 0 else (lock,)
        keeping.detach(lambda: run(command), None, kept)
        os.close(lock)

    @property
    def pid(self) -> int:
        until((self.folder / PID).exists)
        return int(json.loads((self.folder / PID).read_text())["pid"])

    def end(self) -> dict[str, Any]:
        with (self.folder / LOCK).open("rb") as file:
            until(lambda: not _held(file))
        assert not processes.marked(JOB)
        found: dict[str, Any] = json.loads((self.folder / "exit.json").read_text())
        return found

    def output(self) -> str:
        path = self.folder / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def says(self, word: str) -> None:
        until(lambda: word in self.output())


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    for pid in processes.marked(JOB):
        kill(pid)


def _held(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def sh(folder: Path, script: str, **options: Any) -> Runner:
    return Runner(folder, "/bin/sh", "-c", script, **options)


@pytest.mark.parametrize(
    ("script", "exit_", "number"),
    [("true", 0, 0), ("exit 3", 3, 0), ("exit 255", 255, 0), ("exit 137", 137, 0), ("kill -9 $$", 0, 9),
     ("kill -SEGV $$", 0, 11), ("kill -TERM $$", 0, 15)],
)  # fmt: skip
def test_exit_codes_and_signals(tmp_path: Path, script: str, exit_: int, number: int) -> None:
    found = sh(tmp_path, script).end()
    assert (found["exit"], found["signal"], found["stopped"], found["oom"]) == (exit_, number, False, False)


@pytest.mark.parametrize(
    ("script", "oom"), [("exit 137", True), ("kill -9 $$", False), ("exit 3", False), ("true", False)]
)
def test_a_shell_whose_child_was_killed_for_want_of_memory(
    tmp_path: Path, script: str, oom: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its control group has counted one more."""
    counts = iter((4, 5))
    monkeypatch.setattr(runner, "_oom_kills_among_ours", lambda: next(counts))
    monkeypatch.setattr(runner, "_oom_kills", lambda: 0)
    assert sh(tmp_path, script).end()["oom"] is oom


@pytest.mark.parametrize(
    ("known", "file", "found"),
    [
        ("0::/user.slice/cron.service\n", "user.slice/cron.service/memory.events", 3),
        ("3:cpu:/x\n2:memory:/a/b\n0::/a\n", "memory/a/b/memory.oom_control", 3),
        ("0::/\n", "memory.events", 0),
        ("2:memory:/\n", "memory/memory.oom_control", 0),
        ("0::/x\n", "other", 0),
    ],
)
def test_the_kills_of_one_s_own_control_group(tmp_path: Path, known: str, file: str, found: int) -> None:
    (tmp_path / "known").write_text(known)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("low 0\noom 1\noom_kill 3\n")
    assert runner._oom_kills_among_ours(tmp_path / "known", tmp_path) == found


@pytest.mark.parametrize(
    ("argv", "exit_", "words"),
    [(("no-such-program",), 127, "no-such-program: No such file"), (("/etc/passwd",), 126, "Permission denied"),
     (("/etc",), 126, "Permission denied"), (("a\udcff",), 127, "No such file"), (("true", "a\0b"), 127, "null byte"),
     (("echo a; echo b",), 127, "sh -c"), (("a\ud800",), 127, "surrogates not allowed")],
)  # fmt: skip
def test_what_is_no_command(tmp_path: Path, argv: tuple[str, ...], exit_: int, words: str) -> None:
    runner = Runner(tmp_path, *argv)
    assert runner.end()["exit"] == exit_
    assert words in runner.output()


@pytest.mark.parametrize(("mode", "exit_", "words"), [(0o644, 126, "chmod +x"), (0o755, 127, "its first line")])
def test_a_script_that_is_no_program(tmp_path: Path, mode: int, exit_: int, words: str) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    (tmp_path / "train.py").chmod(mode)
    runner = Runner(tmp_path, str(tmp_path / "train.py"))
    assert runner.end()["exit"] == exit_
    assert words in runner.output()


def test_all_output_in_its_order_and_of_children_that_outlive_the_command(tmp_path: Path) -> None:
    child = "(echo c; touch said; sleep 0.1; exec sleep 77078)"
    runner = sh(tmp_path, f"echo a; echo b >&2; {child} & until [ -e said ]; do sleep 0.05; done; sleep 0.3; echo d")
    assert runner.end()["exit"] == 0
    assert runner.output() == "a\nb\nc\nd\n"


def test_a_lot_of_output_arrives(tmp_path: Path) -> None:
    runner = sh(tmp_path, "head -c 8000000 /dev/zero", limit=1 << 30)
    assert runner.end()["dropped"] == 0
    assert (tmp_path / "output.log").stat().st_size == 8_000_000


def test_output_beyond_the_limit_is_counted_and_said(tmp_path: Path) -> None:
    runner = sh(tmp_path, "head -c 100000 /dev/zero | tr '\\0' x; exit 4", limit=1000)
    found = runner.end()
    assert (found["exit"], found["dropped"]) == (4, 99_000)
    assert runner.output().startswith("x" * 1000 + "\n[mlbox: 99000 bytes of output were dropped: the limit of")


def test_a_full_disk_costs_output_and_not_the_job(tmp_path: Path) -> None:
    (tmp_path / "output.log").symlink_to("/dev/full")
    linked = Output(tmp_path / "output.log", 100)
    linked.write(b"x")
    assert (linked.dropped, linked._why) == (1, "Too many levels of symbolic links")  # none is followed
    linked.close()
    output = Output(Path("/dev/full"), 100)
    output.write(b"x" * 10)
    output.write(b"y" * 5)
    assert (output.dropped, output._why) == (15, "No space left on device")
    output.close()


def test_output_that_cannot_be_opened_is_no_reason_to_lose_the_job(tmp_path: Path) -> None:
    (tmp_path / "output.log").mkdir()
    runner = sh(tmp_path, "echo x; exit 3")
    found = runner.end()
    assert (found["exit"], found["dropped"]) == (3, 2)


def test_sigterm_ends_in_order(tmp_path: Path) -> None:
    runner = sh(tmp_path, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
    runner.says("up")
    os.kill(runner.pid, signal.SIGTERM)
    found = runner.end()
    assert (found["exit"], found["stopped"]) == (5, True)
    assert runner.output().endswith("bye\n")


SECONDS = f"77079.{os.getpid()}"  # by which they are found, machine-wide
HIDING = """
trap '' TERM
sleep SECONDS &
setsid sleep SECONDS &
setsid env -i /bin/sleep SECONDS &
(setsid sh -c 'trap "" TERM; env -i /bin/sleep SECONDS' &)
python3 -c 'import os,time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "SECONDS"], {})
    os._exit(0)
os.wait()'
echo up
while [ ! -e go ]; do sleep 0.05; done
""".replace("SECONDS", SECONDS)


@pytest.mark.parametrize("how", ["told to stop", "by itself"])
def test_all_descendants_end_with_the_command(tmp_path: Path, how: str) -> None:
    """Also those in other sessions, without the mark in their environment, and whose parents are gone."""
    runner = sh(tmp_path, HIDING, grace=0.5)
    runner.says("up")
    sleepers = ("pgrep", "-f", f"sleep {SECONDS}")
    assert len(subprocess.run(sleepers, capture_output=True, text=True).stdout.split()) >= 5
    if how == "told to stop":
        os.kill(runner.pid, signal.SIGTERM)
    else:
        (tmp_path / "go").touch()
    found = runner.end()
    assert subprocess.run(sleepers, capture_output=True, text=True).stdout == ""
    assert found["signal"] == (9 if how == "told to stop" else 0)


def test_the_lock_is_held_from_birth_to_end_and_never_by_the_command(tmp_path: Path) -> None:
    runner = sh(tmp_path, "ls -l /proc/$$/fd; echo listed; exec sleep 77080")
    with (tmp_path / LOCK).open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        runner.says("listed")
        assert LOCK not in runner.output()
        kill(runner.pid)
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed though the command lives on
    assert processes.marked(JOB)


def test_leases_are_held_until_the_command_has_ended(tmp_path: Path) -> None:
    lease = os.open(tmp_path / "lease", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lease, fcntl.LOCK_EX)
    runner = sh(tmp_path, f"ls -l /proc/$$/fd; echo up; while ! test -e {tmp_path}/go; do sleep 0.02; done", held=lease)
    runner.says("up")
    os.close(lease)  # the keeper is gone
    assert f"{tmp_path}/lease" not in runner.output()
    with (tmp_path / "lease").open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        (tmp_path / "go").touch()
        assert runner.end()["exit"] == 0
        until(lambda: not _held(file))  # the kernel frees what was opened last, the runner's own lock, first


def test_what_a_full_disk_has_no_room_for_is_said_later() -> None:
    output = Output(Path("/dev/full"), 1 << 20)
    output.write(b"lost")
    assert output.close() == "\n[mlbox: 4 bytes of output were dropped: No space left on device]\n"


def test_output_that_a_share_took_and_lost_is_said_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(tmp_path / "output.log", 1 << 20)
    output.write(b"taken")

    def lost(file: int) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", lost)
        said = output.close()
    os.close(output._file)
    assert said == "\n[mlbox: the end of the output may be missing: Transport endpoint is not connected]\n"


def test_the_record_of_an_end_is_written_where_room_was_made_for_it(tmp_path: Path) -> None:
    """A job may well fill /tmp: it has ended as it did all the same."""
    runner.make_room(tmp_path)
    room = (tmp_path / "room").stat()
    assert room.st_blocks * 512 >= room.st_size >= 4096
    assert sh(tmp_path, "exit 3").end()["exit"] == 3
    assert (tmp_path / "exit.json").stat().st_ino == room.st_ino
