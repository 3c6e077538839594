"""Tables: a row is a line on a pipe, and readable on a terminal that is too narrow for it."""

from __future__ import annotations

import io
import time

import pytest

from mlbox.client import output

HEAD, ROW = ("ID", "STATE", "WHY"), ("01K", "failed", "image torch is not on this host and can't be pulled")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (0, "01K  failed  image torch is not on this host and can't be pulled"),
        (80, "01K  failed  image torch is not on this host and can't be pulled"),
        (45, "01K  failed  image torch is not on this host\n             and can't be pulled"),
        (32, "01K  failed\n    image torch is not on this\n    host and can't be pulled"),
        (10, "01K  failed\n    image torch is not on\n    this host and can't be\n    pulled"),
    ],
)
def test_a_row_that_is_too_long(columns: int, shown: str) -> None:
    assert output._row(ROW, (3, 6, 51), columns) == shown


@pytest.mark.parametrize(("columns", "shown"), [(0, "ID   STATE   WHY"), (16, "ID   STATE   WHY"), (15, "ID   STATE")])
def test_a_head_is_one_line(columns: int, shown: str) -> None:
    assert output._head(HEAD, (3, 6, 51), columns) == shown


def test_on_a_pipe_a_row_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(HEAD, [ROW, ("01L", "running", "")])
    assert capsys.readouterr().out.splitlines() == [
        "ID   STATE    WHY",
        "01K  failed   image torch is not on this host and can't be pulled",
        "01L  running",
    ]


@pytest.mark.parametrize(("term", "shown"), [("xterm", "\033[1mgpu1\033[0m"), ("dumb", "gpu1"), ("", "gpu1")])
def test_colour_is_for_terminals_that_know_it(term: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", Screen())
    monkeypatch.setenv("TERM", term) if term else monkeypatch.delenv("TERM", raising=False)
    assert output.bold("gpu1") == shown


# ---- what is waited for ------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TERM", "xterm")
    return monkeypatch


def at_terminal(patch: pytest.MonkeyPatch) -> Screen:
    """In the test itself: between a fixture and its test pytest puts its own stderr back."""
    screen = Screen()
    patch.setattr("sys.stderr", screen)
    return screen


def until(screen: Screen, words: str) -> None:
    deadline = time.monotonic() + 30
    while words not in screen.getvalue():
        assert time.monotonic() < deadline, screen.getvalue()
        time.sleep(0.01)


def test_a_wait_is_told_while_it_lasts(patch: pytest.MonkeyPatch) -> None:
    screen = at_terminal(patch)
    with output.Progress("asking gpu1"):
        until(screen, "asking gpu1")
    assert screen.getvalue().endswith("\r\033[K")


def test_what_is_answered_at_once_needs_no_word(patch: pytest.MonkeyPatch) -> None:
    screen = at_terminal(patch)
    patch.setattr(output, "_SOON", 600)
    with output.Progress("asking gpu1"):
        pass
    assert screen.getvalue() == ""


def test_a_wait_within_a_wait_is_not_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(output, "_SOON", 0)
    screen = at_terminal(patch)
    with output.Progress() as outer:
        outer.say("looking for kind-otter")
        with output.Progress("asking gpu1") as inner:
            inner.say("waiting for gpu1")
            for _ in range(3):  # frames
                screen.truncate(0)
                until(screen, "looking for kind-otter")
                assert "gpu1" not in screen.getvalue()
        screen.truncate(0)
        until(screen, "looking for kind-otter")  # and goes on


def test_nothing_is_drawn_over_what_another_program_asks(patch: pytest.MonkeyPatch) -> None:
    screen = at_terminal(patch)
    with output.Progress() as progress:
        progress.say("connecting to gpu1")
        with output.still():
            screen.truncate(0)
            progress._stop.wait(0.5)  # several frames
            assert screen.getvalue() == ""
        until(screen, "connecting to gpu1")


def test_on_a_pipe_only_what_is_long_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Progress("asking gpu1") as brief:
        brief.say("waiting for gpu1")
    with output.Progress() as progress:
        progress.say("starting the container")
    assert capsys.readouterr().err == "  starting the container\n"
