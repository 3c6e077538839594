"""A driver that hangs, or takes its process with it, holds up nobody but who asked for a GPU."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from queuebox import Box, until

from mlbox.core.gpu import Gpu
from mlbox.host import driver, files, lease, nvml, processes, store

GPU = Gpu(0, "GPU-0", "NVIDIA A100-SXM4-80GB", 81920)
Answer = Callable[[], "tuple[list[Gpu], str]"]


def answers() -> tuple[list[Gpu], str]:
    return [GPU], "550"


def hangs() -> tuple[list[Gpu], str]:
    while True:
        time.sleep(1000)


def crashes() -> tuple[list[Gpu], str]:
    os._exit(1)


def fails() -> tuple[list[Gpu], str]:
    raise nvml.Failed("RM has detected an NVML/RM version mismatch.")


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    """With a per-boot folder of its own: in the other, the processes of tests beside this one ask too."""
    monkeypatch.setattr(store.Store, "boot_folder", lambda _: files.private_folder(tmp_path / "boot"))
    return store.Store(tmp_path / "root")


@pytest.fixture
def is_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], None]]:
    monkeypatch.setattr(nvml, "is_there", lambda: True)
    yield lambda answer: monkeypatch.setattr(nvml, "gpus", answer)
    monkeypatch.undo()
    until(all_are_buried)


def all_are_buried() -> bool:
    driver._bury(1)
    return not driver._unburied


@pytest.mark.parametrize(("answer", "said"), [(hangs, "does not answer"), (crashes, "crashed"), (fails, "mismatch")])
def test_what_is_wrong_is_said_and_the_next_asks_anew(
    found: store.Store, is_asked: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch, answer: Answer, said: str
) -> None:
    is_asked(answer)
    with monkeypatch.context() as short, pytest.raises(nvml.Failed, match=said):
        if answer is hangs:
            short.setattr(driver, "PATIENCE", 0.1)
        driver.gpus(found)
    is_asked(answers)
    assert driver.gpus(found) == ([GPU], "550")


def test_while_one_process_hangs_no_other_asks(found: store.Store, is_asked: Callable[[Answer], None]) -> None:
    """Not even SIGKILL ends one that waits in the kernel; a tick of each minute would leave one more."""
    is_asked(lambda: pytest.fail("it was asked"))
    with (found.boot_folder() / "driver.lock").open("w") as held:
        held.write(f"{processes.uptime() - driver.PATIENCE - 1:020.3f}")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(nvml.Failed, match="does not answer"):
            driver.gpus(found)


def test_one_that_has_just_begun_is_waited_for(
    found: store.Store, is_asked: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked(answers)
    with (found.boot_folder() / "driver.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        slept = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2:
                fcntl.flock(held, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", sleep)
        assert driver.gpus(found) == ([GPU], "550") and slept.count(driver._PAUSE) == 2


def test_one_that_has_not_said_yet_when_it_began_is_not_the_last_one(
    found: store.Store, is_asked: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked(answers)
    with (found.boot_folder() / "driver.lock").open("w") as held:
        held.write(f"{processes.uptime() - driver.PATIENCE - 1:020.3f}")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        acts: list[Callable[[], object]] = [
            lambda: os.pwrite(held.fileno(), f"{processes.uptime():020.3f}".encode(), 0),
            lambda: fcntl.flock(held, fcntl.LOCK_UN),
        ]
        monkeypatch.setattr(time, "sleep", lambda seconds: acts.pop(0)() if acts else None)
        assert driver.gpus(found) == ([GPU], "550")


def test_who_has_answered_is_buried(
    found: store.Store, is_asked: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session's request lives as long as its image is pulled, and asks more than once."""
    is_asked(answers)
    fork, asked = os.fork, list[int]()  # a test before may have left other children

    def forked() -> int:
        asked.append(fork())
        return asked[-1]

    monkeypatch.setattr(os, "fork", forked)
    driver.gpus(found)
    until(all_are_buried)
    assert len(asked) == 1
    with pytest.raises(ChildProcessError):
        os.waitpid(asked[0], os.WNOHANG)


def test_a_bug_is_not_said_to_be_the_drivers(found: store.Store, is_asked: Callable[[Answer], None]) -> None:

    def wrong() -> tuple[list[Gpu], str]:
        raise KeyError("name")

    is_asked(wrong)
    with pytest.raises(nvml.Failed, match="a bug in mlbox: KeyError: 'name'"):
        driver.gpus(found)


def test_who_asks_holds_nothing_of_ours(found: store.Store, is_asked: Callable[[Answer], None]) -> None:
    """A lock would never be free again, and ssh waits for the end of the output."""

    def tell() -> tuple[list[Gpu], str]:
        open_ = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        return [], " ".join(os.readlink(path) for path in open_ if path.is_symlink())  # the one that listed is closed

    is_asked(tell)
    kept = driver.gpus(found)[1].split()
    assert [path.rpartition("/")[2] for path in kept if not path.startswith("pipe:")] == ["driver.lock"]
    assert len(kept) == 2


def test_jobs_that_need_no_gpu_run_beside_a_driver_that_hangs(
    box: Box, is_asked: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked(answers)
    box.end(box.sh("true"))
    until(lambda: not box.keepers())  # whose last tick would ask the driver as it was
    is_asked(hangs)
    monkeypatch.setattr(driver, "PATIENCE", 0.1)
    waits, runs = box.sh("true", resources={"gpus": "1"}), box.sh("true")
    assert box.end(runs).name == "finished"
    told = box.found.on() / "waits.json"
    until(lambda: "out of order: the NVIDIA driver does not answer" in (files.read_json(told) or {}).get(waits.id, ""))


def test_other_users_do_not_wait_for_a_driver(box: Box, is_asked: Callable[[Answer], None]) -> None:
    """The lock by which ticks choose is the host's, and everybody's."""

    def answer() -> tuple[list[Gpu], str]:
        with open(lease.lock_file("choosing"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused, and told as a bug, if it is taken
        return [GPU], "550"

    is_asked(answer)
    assert box.end(box.sh("true")).name == "finished"
    told = files.read_json(box.found.on() / "host.json")
    assert [gpu["error"] for gpu in told["gpus"]] == [""]
