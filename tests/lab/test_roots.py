"""A ROOT on its bad days: full, read-only, hung. It is said, nothing is torn, and with ROOT all goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from labbox import as_root, ssh
from queuelab import Lab, awaited, opened

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

SMALL = "/srv/small"  # a filesystem of 4 MiB
NONE = ("--gpus", "0", "--cpus", "0")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Lab]:
    """A lab of one host, with ROOT on a filesystem of its own."""
    as_root("gpu1", "install", "-d", "-o", "ada", "-g", "ada", SMALL)
    as_root("gpu1", "mount", "-t", "tmpfs", "-o", "uid=1001,gid=1001,mode=755,size=4m", "tmpfs", SMALL)
    try:
        with opened(tmp_path / "home", f"{SMALL}/lab", ("gpu1",)) as made:
            yield made
    finally:
        as_root("gpu1", "umount", "--lazy", SMALL)
        as_root("gpu1", "rmdir", SMALL)


@contextmanager
def full(lab: Lab) -> Iterator[None]:
    ssh("gpu1", f"cat /dev/zero >{SMALL}/filler 2>/dev/null; true")
    try:
        yield
    finally:
        ssh("gpu1", f"rm {SMALL}/filler")


def files(lab: Lab) -> list[str]:
    return ssh("gpu1", f"cd {lab.root} && find . -type f | sort").splitlines()


def test_a_full_root(small: Lab) -> None:
    """A job that runs goes on, and tells how much output was lost; a submission is refused and leaves nothing."""
    script = "until [ -e /tmp/go ]; do sleep 0.1; done; head -c 300000 /dev/zero | tr '\\0' x; echo; exit 3"
    job = small.one(*NONE, "--", "sh", "-c", script)
    small.until(job, "started")
    before = files(small)
    try:
        with full(small):
            for words in (("submit", "--code", str(small.code)), ("run", "--no-code")):
                done = small.laptop.run(*words, *NONE, "--", "true")
                assert done.code in (3, 5) and "No space left on device" in done.err and "try: " in done.err
                assert "Traceback" not in done.all and "bug" not in done.all
            assert files(small) == before
            assert small.state(job) == "started"
            ssh("gpu1", "touch /tmp/go")
            awaited(lambda: "exit.json" in ssh("gpu1", f"ls /tmp/mlbox-1001/{job[-8:].lower()}"))
            assert small.state(job) == "started"  # its end finds no room
        assert small.until(job, "failed")["why"] == "exit code 3"
        lost = re.search(r"\[mlbox: (\d+) bytes of output were dropped: No space left on device\]", small.output(job))
        assert lost is not None and int(lost[1]) > 0
    finally:
        ssh("gpu1", "rm -f /tmp/go")
    small.until(small.one(*NONE, "--", "true"), "finished")


def test_a_read_only_root(small: Lab) -> None:
    small.run("queue", "pause", "default")
    job = small.one(*NONE, "--", "true")
    small.resume_silently()
    before = files(small)
    as_root("gpu1", "mount", "-o", "remount,ro", SMALL)
    try:
        for words in (("submit", "--no-code", *NONE, "--", "true"), ("cancel", job), ("queue", "pause", "default")):
            done = small.laptop.run(*words)
            assert done.code == 5 and "Read-only file system" in done.err and "try: " in done.err, done.all
            assert "Traceback" not in done.all and "bug" not in done.all
        assert job in small.run("jobs").out and small.state(job) == "submitted"  # what needs no writing works
        ticked = small.laptop.run("queue", "process")
        assert "Read-only file system" in ticked.all and "Traceback" not in ticked.all
        assert files(small) == before
    finally:
        as_root("gpu1", "mount", "-o", "remount,rw", SMALL)
    small.run("queue", "process")
    small.until(job, "finished")


@contextmanager
def frozen(host: str) -> Iterator[None]:
    """The client of the share on one host stands still, and whoever asks it for something, with it."""
    as_root(host, "pkill", "-STOP", "-x", "glusterfs")
    try:
        yield
    finally:
        as_root(host, "pkill", "-CONT", "-x", "glusterfs")


def test_a_hung_root(lab: Lab) -> None:
    """Every command says so instead of hanging too; the other hosts are not concerned; what ran goes on."""
    beats, go = "/tmp/hung-root.beats", "/tmp/hung-root.go"  # what asks for something in ROOT waits with it
    script = f"while [ ! -e {go} ]; do echo x >>{beats}; sleep 0.2; done; echo done"
    job = lab.one(*NONE, "--on", "gpu2", "--", "sh", "-c", script)
    lab.until(job, "started")
    tick = re.sub(r".*?exec (.*?) >>.*", r"\1", lab.run("cron", "install", "gpu2").out.splitlines()[0])
    lab.run("cron", "remove", "gpu2")
    asked = (
        ("submit", "--host", "gpu2", "--no-code", *NONE, "--", "true"), ("jobs", "--host", "gpu2"),
        ("logs", "-f", job, "--host", "gpu2"), ("cancel", job, "--host", "gpu2"),
        ("queue", "process", "--host", "gpu2"), ("session", "list", "gpu2", "--root", lab.root),
    )  # fmt: skip
    ours = "pgrep -u ada -f 'mlbox-[0-9a-f]*[.]pyz (host|tick)'"
    keepers = awaited(lambda: ssh("gpu2", ours))
    with frozen("gpu2"), ThreadPoolExecutor(len(asked) + 1) as pool:
        size = f"stat -c %s {beats}"
        then = ssh("gpu2", size)
        cron = pool.submit(ssh, "gpu2", f"{tick} 2>&1; echo code $?")
        calls = {words: pool.submit(lab.laptop.run, *words) for words in asked}
        assert job in lab.run("jobs").out  # by gpu1
        lab.until(lab.one(*NONE, "--on", "gpu1", "--", "true"), "finished")
        for words, call in calls.items():
            said = call.result().all
            assert "gpu2" in said and "has not answered for 15 s" in said and "Traceback" not in said, (words, said)
        assert re.search(f"mlbox: {lab.root} has not answered for 15 s.*\ncode 1$", cron.result().strip())
        status = lab.run("status").out
        assert "of 4 GPUs free" in status and "gpu2" in status and "has not answered" in status
        awaited(lambda: ssh("gpu2", size) != then)
        awaited(lambda: ssh("gpu2", ours) == keepers)  # nobody waits there
    lab.run("queue", "process")
    ssh("gpu2", f"touch {go}")
    lab.until(job, "finished")
    assert lab.output(job) == "done\n"
    ssh("gpu2", f"rm {beats} {go}")
