"""Running other programs, and finding one's own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from queuebox import until

from mlbox.host import processes, run
from mlbox.host.run import Cancel, Cancelled, capture, stream

NEVER = Cancel()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("true", []),
        ("echo one; echo two >&2; echo three", ["one", "two", "three"]),
        ("printf 'no end'", ["no end"]),
        ("printf 'a\\rb\\n\\nc\\n'", ["a", "b", "", "c"]),
        ("printf '\\377\\n'", ["�"]),
        ("cat", []),
    ],
    ids=["nothing", "both streams", "open line", "carriage return", "not utf-8", "no stdin"],
)
def test_stream_hands_on_each_line(script: str, lines: list[str]) -> None:
    heard: list[str] = []
    result = stream(("/bin/sh", "-c", script), heard.append, NEVER)
    assert (result.code, heard, list(result.lines)) == (0, lines, lines)


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", -9)])
def test_stream_gives_the_exit_code(script: str, code: int) -> None:
    assert stream(("/bin/sh", "-c", script), lambda line: None, NEVER).code == code


def test_stream_keeps_the_end() -> None:
    result = stream(("seq", str(run.KEPT_LINES + 50)), lambda line: None, NEVER)
    assert (len(result.lines), result.lines[-1]) == (run.KEPT_LINES, str(run.KEPT_LINES + 50))
    assert result.tail.splitlines() == [str(n) for n in range(236, 251)]


def test_stream_gives_the_environment() -> None:
    result = stream(("/bin/sh", "-c", "echo $A"), lambda line: None, NEVER, {"A": "b"})
    assert result.lines == ("b",)


def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(FileNotFoundError):
        stream(("/no/such/program",), lambda line: None, NEVER)


@pytest.mark.parametrize("how", ["a byte", "the end"])
def test_cancel_ends_the_whole_group(tmp_path: Path, pipe: tuple[int, int], how: str) -> None:
    """What the program started itself goes too: it holds the FIFO, whose end is awaited here."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    alive = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(alive, True)

    def on_line(line: str) -> None:
        assert line == "ready"
        if how == "a byte":
            os.write(pipe[1], b"x")
        else:
            os.close(pipe[1])

    with pytest.raises(Cancelled):
        stream(("/bin/sh", "-c", f"exec 3>{fifo}; sleep 1000 & echo ready; wait"), on_line, Cancel((pipe[0],)))
    assert select.select([alive], [], [], 20)[0] and os.read(alive, 1) == b""
    os.close(alive)


def test_cancelled_before_the_start(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    with pytest.raises(Cancelled):
        stream(("sleep", "1000"), lambda line: None, Cancel((pipe[0],)))


def test_an_error_of_the_listener_ends_the_program(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    alive = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(alive, True)

    def on_line(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="ready"):
        stream(("/bin/sh", "-c", f"exec 3>{fifo}; echo ready; sleep 1000"), on_line, NEVER)
    assert select.select([alive], [], [], 20)[0] and os.read(alive, 1) == b""
    os.close(alive)


def test_cancel_ends_one_that_ignores_sigterm(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PATIENCE", 0.01)
    with pytest.raises(Cancelled):
        stream(
            ("/bin/sh", "-c", "trap '' TERM; echo ready; exec sleep 1000"),
            lambda line: os.close(pipe[1]),
            Cancel((pipe[0],)),
        )


def test_cancel_is_level_triggered(pipe: tuple[int, int]) -> None:
    cancel = Cancel((pipe[0],))
    cancel.check()
    assert not cancel.wait(0)
    os.write(pipe[1], b"x")
    for _ in range(2):
        assert cancel.wait(None)
        with pytest.raises(Cancelled):
            cancel.check()
    assert not NEVER.wait(0)


def test_capture() -> None:
    assert capture(("/bin/sh", "-c", "echo out; echo err >&2; exit 4")) == (4, "out\n", "err")
    assert capture(("sleep", "1000"), timeout=0.01)[0] == 124


# ---- processes -----------------------------------------------------------------------------------


def test_marked_finds_what_was_reparented(pipe: tuple[int, int]) -> None:
    """A session's orphan (its parent has ended) is found by its environment, and ended."""
    environment = {**os.environ, "MLBOX_SESSION": f"test-{os.getpid()}"}
    orphan = subprocess.run(
        ("/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"),
        env=environment,
        pass_fds=(pipe[1],),
        capture_output=True,
    )
    os.close(pipe[1])
    pid = int(orphan.stdout)
    until(lambda: processes.marked(environment["MLBOX_SESSION"]) == [pid])  # it may be in the middle of its exec
    assert processes.marked(f"test-{os.getpid()}0") == processes.marked("test") == []
    processes.send([pid], signal.SIGKILL)
    assert select.select([pipe[0]], [], [], 20)[0] and os.read(pipe[0], 1) == b""
    processes.send([2**22 + 1], signal.SIGKILL)  # one that has gone is no error


def test_a_process_is_known_by_its_start() -> None:
    with subprocess.Popen(("sleep", "1000")) as one:
        first = processes.started(one.pid)
        assert first.isdigit() and first == processes.started(one.pid)
        assert processes.started(1) != first
        one.kill()
    assert processes.started(one.pid) == ""


def test_describe() -> None:
    with subprocess.Popen((sys.executable, "-c", "import time; time.sleep(1000)")) as one:
        user, command = processes.describe(one.pid)
        assert user and command.startswith("python")
        one.kill()
    assert processes.describe(one.pid) == ("", "")


def test_boot_id_stays() -> None:
    assert processes.boot_id() and processes.boot_id() == processes.boot_id()


def test_boot_id_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "BOOT_ID", tmp_path / "none")
    assert processes.boot_id() == ""


def test_this_system_is_as_old_as_its_first_process() -> None:
    """A container that was restarted is young on an old machine."""
    first, now = processes.started(1), time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 < processes.uptime() < now + 1
    assert not first or processes.uptime() == pytest.approx(now - int(first) / os.sysconf("SC_CLK_TCK"), abs=60)
