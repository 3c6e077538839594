"""`mlbox open`: the user's own programs, here scripts that note how they were called, and the pages that they show."""

from __future__ import annotations

import re
import shlex
import time
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
from labbox import SESSION_IMAGE, Attached, Laptop, left_behind

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
_PROGRAM = """#!/bin/sh
[ "$#" = 0 ] || { echo "$0"; for word; do echo "$word"; [ -f "$word" ] && cat "$word"; done; } >"$HOME/called.new"
mv "$HOME/called.new" "$HOME/called"
"""


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """With a session that runs, and programs to open it in."""
    made = Laptop(tmp_path_factory.mktemp("open") / "home")
    programs = made.home / "bin"
    programs.mkdir()
    for name in ("code", "cursor", "windsurf", "zed", "xdg-open"):
        (programs / name).write_text(_PROGRAM)
        (programs / name).chmod(0o700)
    made.env.update(PATH=f"{programs}:{made.env['PATH']}", DISPLAY=":9")
    try:
        started = made.run("session", HOST, "--image", SESSION_IMAGE, "--gpus", "0", "--name", "opened", "--detach")
        assert started.code == 0, started.all
        yield made
    finally:
        made.run("session", "shutdown", "opened", "--host", HOST)
        made.close()
    assert left_behind(HOST) == []


@pytest.fixture(autouse=True)
def clean_hosts() -> None:
    """The session is this file's; fixture `laptop` looks after it."""


def called(laptop: Laptop) -> list[str]:
    noted = laptop.home / "called"
    lines = noted.read_text().splitlines()
    noted.unlink()
    return [Path(lines[0]).name, *lines[1:]]


def test_an_editor_needs_the_line(laptop: Laptop) -> None:
    done = laptop.run("open", "opened")
    assert done.code == 3 and "mlbox ssh-config install" in done.err
    assert laptop.run("ssh-config", "install").code == 0


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("vscode", ["code", "--remote", "ssh-remote+opened", "/workspace"]),
        ("cursor", ["cursor", "--remote", "ssh-remote+opened", "/workspace"]),
        ("windsurf", ["windsurf", "--remote", "ssh-remote+opened", "/workspace"]),
        ("zed", ["zed", "ssh://opened/workspace"]),
    ],
)
def test_an_editor_is_started(laptop: Laptop, tool: str, words: list[str]) -> None:
    done = laptop.run("open", "opened", "--in", tool)
    assert done.code == 0, done.all
    assert called(laptop) == words
    bare = laptop.run("open", "opened", "--in", tool, DISPLAY="")
    assert shlex.split(bare.out) == words and "there is no display here" in bare.err
    way = "ssh/" if tool == "zed" else "vscode-remote/ssh-remote+"
    assert bare.err.rstrip().endswith(f"the address: {tool}://{way}opened/workspace")
    without = laptop.run("open", "opened", "--in", tool, PATH="/usr/bin:/bin")
    assert shlex.split(without.out) == words and f"there is no program {words[0]} here" in without.err
    assert not (laptop.home / "called").exists()


def page(laptop: Laptop, tool: str, **env: str) -> Attached:
    started = laptop.attach("open", "opened", "--in", tool, **env)
    started.block()
    return started


@pytest.mark.parametrize(("tool", "sign"), [("jupyter", "JupyterLab"), ("browser", "workbench")])
def test_a_page_is_shown(laptop: Laptop, tool: str, sign: str) -> None:
    started = page(laptop, tool)
    while not (laptop.home / "called").exists():
        assert started.process.poll() is None, started.text
        time.sleep(0.05)
    program, file, content = called(laptop)
    assert program == "xdg-open" and "token=" not in file and "tkn=" not in file
    found = re.search(r'url=([^"]+)"', content)
    assert found is not None
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    with browser.open(found[1].replace("&amp;", "&"), timeout=60) as answer:
        assert sign in answer.read().decode()
    started.wait_for("a snap or a flatpak may not see that file: open the address above")
    assert started.stop() == 0
    assert not Path(file).exists()


def test_without_a_display_the_address_is_printed(laptop: Laptop) -> None:
    started = page(laptop, "jupyter", DISPLAY="")
    started.wait_for("there is no display here; open the address above yourself")
    assert started.stop() == 0


def test_a_session_that_is_not_there(laptop: Laptop) -> None:
    done = laptop.run("open", "no-such-session", "--host", HOST)
    assert done.code == 6 and "no session 'no-such-session' of yours" in done.err
