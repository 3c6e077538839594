"""config.toml as people write it: read, or said what is wrong with it; never passed over."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import homes
import pytest

from mlbox import cli, errors
from mlbox.client import state


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    homes.fresh(tmp_path / "home", monkeypatch)
    state.config_file().parent.mkdir(parents=True)
    return state.config_file()


def test_absent_it_says_nothing(file: Path) -> None:
    assert state.config().hosts == ()
    file.parent.rmdir()
    file.parent.touch()
    assert state.config().hosts == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'hosts = "gpu1"', 'hosts must be a list of names: ["gpu1", "gpu2"]'),
        (b"hosts = [1]", "hosts must be a list of names"),
        (b"root = 5", "root must be a text"),
        (b'host = ["gpu1"]', "mlbox has no setting 'host'"),
        (b"ports = { jupyter = 99999 }", "ports takes jupyter, vscode and ssh"),
        (b"hosts = [", "config.toml: "),
        (b'image = "x"\nroot = "\xff"', "line 2 is not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_said(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(errors.Usage) as caught:
        state.config()
    assert said in caught.value.message and caught.value.message.startswith(str(file))


def test_one_that_can_t_be_read_is_not_one_that_says_nothing(file: Path) -> None:
    file.mkdir()
    with pytest.raises(errors.Usage, match="can't be read: Is a directory"):
        state.config()


@pytest.mark.parametrize("why", ["Read-only file system", "No space left on device", "Permission denied"])
def test_a_home_that_takes_nothing_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    code = next(number for number in errno.errorcode if os.strerror(number) == why)

    def fail(*_: object) -> None:
        raise OSError(code, why, "/home/ada/.ssh/config")

    monkeypatch.setattr(state, "config", fail)
    assert cli.main(["status"]) == errors.HostUnready.exit_code
    assert capsys.readouterr().err.startswith(f"mlbox: /home/ada/.ssh/config: {why}\n")
