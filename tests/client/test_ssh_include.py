"""The one line in the user's own SSH configuration: put in, taken out, and never at the price of that file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from users import let_in, nobody

from mlbox import cli
from mlbox.client import output, ssh_config, ssh_include, state
from mlbox.errors import MlboxError

LINE = "Include ~/state/mlbox/ssh_config"
OWN = "# mine\nHost gpu1\n\tUser ada\n  \n# no end of line"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path


@pytest.fixture
def config(home: Path) -> Path:
    path = home / ".ssh/config"
    path.parent.mkdir(mode=0o700)
    path.write_text(OWN)
    return path


def said() -> object:
    return state.load("asked.json").get("ssh-config")


def test_it_comes_first_and_goes_without_a_trace(config: Path) -> None:
    config.chmod(0o640)
    change = ssh_include.install()
    assert config.read_text() == f"{LINE}\n{OWN}"
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert ssh_config.included() and said() == "installed"
    assert f"+{LINE}" in change and " # mine" in change and str(config) in change
    assert ssh_include.install() == ""
    assert config.read_text() == f"{LINE}\n{OWN}"
    assert f"-{LINE}" in ssh_include.remove()
    assert config.read_text() == OWN and not ssh_config.included()
    assert [p.name for p in config.parent.iterdir()] == ["config"]


@pytest.mark.parametrize("block", ["Host gpu1\n  User ada\n", "Match exec true\n"])
def test_one_that_counts_for_some_hosts_only_is_none(config: Path, block: str) -> None:
    """As it is where somebody adds the line at the file's end."""
    config.write_text(f"{block}{ssh_include.line()}\n")
    assert not ssh_config.included()
    ssh_include.install()
    assert config.read_text() == f"{ssh_include.line()}\n{block}" and ssh_config.included()


def test_one_for_all_hosts_holds_where_it_is(config: Path) -> None:
    config.write_text(f"Host gpu1\n  User ada\nMatch all\n{ssh_include.line()}\n")
    assert ssh_config.included() and ssh_include.install() == ""


def test_one_in_a_file_that_is_included_holds(config: Path) -> None:
    (config.parent / "more").mkdir()
    (config.parent / "more/mlbox").write_text(f"{ssh_include.line()}\nHost x\n")
    config.write_text("Host gpu1\n  Include more/*\n")
    assert not ssh_config.included()
    config.write_text("Include more/*\nHost gpu1\n")
    assert ssh_config.included() and ssh_include.install() == ""


def test_bytes_that_are_no_text_stay(config: Path) -> None:
    content = b"# caf\xe9\r\nHost x\r\n"
    config.write_bytes(content)
    ssh_include.install()
    assert config.read_bytes() == LINE.encode() + b"\n" + content
    ssh_include.remove()
    assert config.read_bytes() == content


def test_where_there_is_none_yet(home: Path) -> None:
    assert f"+{LINE}" in ssh_include.install()
    assert (home / ".ssh/config").read_text() == f"{LINE}\n"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (home / ".ssh", home / ".ssh/config")]
    assert modes == [0o700, 0o600]


def test_a_dry_run_changes_nothing(config: Path) -> None:
    assert f"+{LINE}" in ssh_include.install(dry=True)
    assert config.read_text() == OWN and said() is None


def test_a_link_is_followed_and_stays_one(home: Path, config: Path) -> None:
    real = home / "dotfiles/ssh"
    real.parent.mkdir()
    config.rename(real)
    config.symlink_to("../dotfiles/ssh")
    ssh_include.install()
    assert config.is_symlink() and real.read_text() == f"{LINE}\n{OWN}"


@pytest.mark.parametrize("case", ["read-only", "link to a read-only file", "dangling", "folder", "hard link", "closed"])
def test_what_is_not_ours_to_write_is_said_and_left(home: Path, config: Path, case: str) -> None:
    other = home / "other"
    if case == "read-only":
        config.chmod(0o444)
    elif case == "folder":
        config.unlink()
        config.mkdir()
    elif case == "hard link":
        other.hardlink_to(config) if hasattr(other, "hardlink_to") else os.link(config, other)
    elif case == "closed":
        let_in(home)
        config.parent.chmod(0o755)
        config.chmod(0o644)
    else:
        config.unlink()
        config.symlink_to(other)
        if case.startswith("link"):
            other.write_text(OWN)
            other.chmod(0o400)
    with pytest.raises(MlboxError) as caught:
        if case == "closed":
            with nobody():
                ssh_include.install(dry=True)
        else:
            ssh_include.install()
    assert LINE in caught.value.hint
    assert not ssh_config.included()
    assert not any(path.name.startswith(".config") for path in config.parent.iterdir())
    if case not in ("folder", "dangling"):
        assert config.read_text() == OWN


def test_somebody_who_writes_at_the_same_time_wins(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = ssh_include._check

    def edited_meanwhile(path: Path) -> None:
        check(path)
        config.write_text("Host theirs\n")

    monkeypatch.setattr(ssh_include, "_check", edited_meanwhile)
    with pytest.raises(MlboxError, match="was changed"):
        ssh_include.install()
    assert config.read_text() == "Host theirs\n"


class Person:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: str, there: bool = True) -> None:
        self.asked = 0
        self._answer = answer
        monkeypatch.setattr(output, "may_ask", lambda: there)
        monkeypatch.setattr(output, "ask", self.ask)

    def ask(self, question: str, answers: tuple[str, ...], default: str) -> str:
        self.asked += 1
        return self._answer


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_it_is_asked_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    person = Person(monkeypatch, answer)
    ssh_include.offer(yes=False)
    told = capsys.readouterr().err
    assert f"+{LINE}" in told and (f"added to {config}" in told) is (answer == "yes")
    assert ssh_config.included() == (answer == "yes")
    ssh_include.remove()
    ssh_include.offer(yes=False)
    ssh_include.offer(yes=True)
    assert person.asked == 1 and not ssh_config.included()


def test_nobody_is_asked_without_a_terminal_and_yes_answers(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    person = Person(monkeypatch, "yes", there=False)
    ssh_include.offer(yes=False)
    assert config.read_text() == OWN and said() is None
    ssh_include.offer(yes=True)
    assert ssh_config.included() and person.asked == 0
    assert f"added to {config}" in capsys.readouterr().err


def test_whether_it_was_written_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("install", "remove"):
        for dry, words in ((["--dry-run"], f"{config} would be changed like this\n"), ([], f"{config} was changed\n")):
            assert cli.main(["ssh-config", verb, *dry]) == 0
            told = capsys.readouterr()
            assert told.err == words and LINE in told.out
        assert cli.main(["ssh-config", verb]) == 0
        assert capsys.readouterr() == (f"{config} is as it should be\n", "")


def test_a_file_that_can_not_be_changed_is_no_reason_to_fail(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.chmod(0o444)
    person = Person(monkeypatch, "yes")
    ssh_include.offer(yes=False)
    assert "is read-only; it was left as it is" in capsys.readouterr().err
    ssh_include.offer(yes=False)
    assert capsys.readouterr().err == "" and person.asked == 0
