"""The services' logs keep their ends."""

from __future__ import annotations

from pathlib import Path

from mlbox.guest import logs


def test_a_long_log_keeps_its_last_lines_and_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "ssh.log"
    with path.open("ab") as log:
        for number in range(logs.LIMIT // 10 + 1):
            log.write(b"%09d\n" % number)
        log.flush()
        logs.shorten(path)
        log.write(b"and on\n")
    first, *lines = path.read_bytes().splitlines()
    assert lines[-2:] == [b"%09d" % (logs.LIMIT // 10), b"and on"]
    assert len(first) == 9 and logs.LIMIT * 0.4 < path.stat().st_size < logs.LIMIT * 0.6


def test_a_short_log_and_none_are_left(tmp_path: Path) -> None:
    path = tmp_path / "ssh.log"
    logs.shorten(path)
    assert not path.exists()
    path.write_bytes(b"x" * logs.LIMIT)
    logs.shorten(path)
    assert path.stat().st_size == logs.LIMIT


def test_tail(tmp_path: Path) -> None:
    assert logs.tail(tmp_path / "none") == ""
    (tmp_path / "log").write_bytes(b"\xff" * 9000 + b"\nlast\n")
    assert logs.tail(tmp_path / "log").endswith("\nlast")
