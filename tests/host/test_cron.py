"""The line in the user's own crontab: what it calls, and that all other lines stay as they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import crontabs
import pytest
from queuebox import Box

from mlbox import errors
from mlbox.core.job import JobSpec
from mlbox.core.resources import Resources
from mlbox.core.session import Spec
from mlbox.host import cron as called
from mlbox.host import here, idle
from mlbox.host.handlers import cron, submit


@pytest.fixture(autouse=True)
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return crontabs.fresh(tmp_path, monkeypatch)


def test_others_lines_stay_as_they_are(box: Box, crontab: Path) -> None:
    others = b"# f\xfcr ada\n# one\x0cline, \xe2\x80\xa8one line\n\n0 4 * * * backup\x85\r\n"
    crontab.write_bytes(others)
    (line,) = box.call(cron, do="install")["lines"]
    assert crontab.read_bytes() == others + line.encode() + b"\n"
    assert box.call(cron, do="install")["changed"] is False
    assert box.call(cron, do="remove")["changed"] is True
    assert crontab.read_bytes() == others


def test_a_last_line_without_an_end_gets_one(box: Box, crontab: Path) -> None:
    crontab.write_text("0 4 * * * backup")
    box.call(cron, do="install")
    assert crontab.read_text().startswith("0 4 * * * backup\n* * * * * sleep ")


@pytest.mark.parametrize("said", ["no crontab for ada", "crontab: can't open 'ada': No such file or directory"])
def test_nobody_needs_to_have_a_crontab(said: str, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NONE", said)
    assert box.call(cron)["lines"] == []
    assert len(box.call(cron, do="install")["lines"]) == 1


def test_who_may_not_use_cron_is_told(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NONE", "You (ada) are not allowed to use this program (crontab)")
    with pytest.raises(errors.HostUnready, match="not allowed to use"):
        box.call(cron, do="install")


def test_what_starts_by_cron_has_the_path_of_what_starts_at_once(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command would be another program, or none, and the engine not be found."""
    monkeypatch.setenv("PATH", str(tmp_path / "a folder"), prepend=os.pathsep)
    monkeypatch.setenv("TEST_BOX_LEASES", str(tmp_path / "leases"))
    (line,) = box.call(cron, do="install")["lines"]
    (box.root / "paused").mkdir()
    (box.root / "paused/default").touch()
    job = box.sh("echo $PATH")
    (box.root / "paused/default").unlink()
    here.cache_home().mkdir(parents=True)
    command = line.partition("; ")[2]
    subprocess.run(("/bin/sh", "-c", command), env={**os.environ, "PATH": "/usr/bin:/bin"}, check=True)
    box.end(job)
    assert box.output(job) == os.environ["PATH"] + "\n"


@pytest.mark.parametrize("path", ["/a%b:/bin", "/bin:" + "/a" * 500])
def test_a_path_that_cron_could_not_take_stays_out(path: str, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cron, "_crontab", list)
    monkeypatch.setattr(cron, "_write", lambda lines: None)
    monkeypatch.setenv("PATH", path)
    (line,) = box.call(cron, do="install")["lines"]
    assert "PATH=" not in line and "; exec " in line


def test_a_log_that_cron_could_not_write_to_is_said(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "100%"))
    with pytest.raises(errors.Refused, match="%"):
        box.call(cron, do="install")


def test_each_host_of_one_home_has_a_log_of_its_own(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = set()
    for name in "gpu8", "gpu9":
        monkeypatch.setattr(here, "host_name", lambda name=name: name)
        (line,) = box.call(cron, do="install")["lines"]
        (log,) = {word[2:] for word in line.split() if word.startswith(">>")}
        assert Path(log).parent == here.cache_home() and name in log
        logs.add(log)
    assert len(logs) == 2


def test_the_line_of_an_older_mlbox_is_replaced_and_removed(box: Box, crontab: Path) -> None:
    (line,) = box.call(cron, do="install")["lines"]
    old = line.replace(called.log().name, "tick.log")
    for do, lines in (("install", [line]), ("remove", [])):
        crontab.write_text(f"{old}\n")
        assert box.call(cron)["lines"] == [old] != [line]
        assert box.call(cron, do=do)["changed"] and crontab.read_text().splitlines() == lines


def test_a_log_that_has_grown_long_starts_anew(box: Box) -> None:
    """Also that which an older line names; and no other host's."""
    here.cache_home().mkdir(parents=True)
    logs = [called.log(), here.cache_home() / "tick.log", here.cache_home() / "tick.gpu9.log"]
    for log in logs:
        log.write_text("mlbox: a line\n" * 100_000)
    assert called.main(["--root", str(box.root)]) == 0
    assert [log.stat().st_size < 300_000 for log in logs] == [True, True, False]
    assert logs[0].read_text().startswith("mlbox: a line\n")


def test_what_is_put_in_line_where_cron_does_not_call_is_said_to_be(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = box.found.boot_folder() / idle.HEARD
    monkeypatch.setattr(idle, "guard", lambda root: None)  # this process is not a tick
    spec = JobSpec(command=("true",), work=Spec(runtime="process"), resources=Resources(gpus="0")).to_wire()

    def said() -> str:
        (box.root / "paused/default").touch()
        return str(box.call(submit, spec=spec)["unattended"])

    (box.root / "paused").mkdir()
    assert "mlbox cron install" in said()
    box.call(cron, do="install")
    assert said() == ""
    for by_cron in (called.main, idle.may_pass):  # what follows on a look at whether there is anything to do, and that
        os.utime(mark, (0, 0))
        assert "mlbox cron install" in said()
        by_cron(["--root", str(box.root)])
        assert said() == ""
    mark.unlink()
    assert not idle.may_pass(["--root", str(box.root)])
