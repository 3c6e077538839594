"""What a person sees: Jupyter's page and VS Code's workbench in a real browser, through the tunnel."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
from browser import Browser, Page
from labbox import ARTIFACTS, SESSION_IMAGE, Attached, Laptop, left_behind, ssh
from notebook import ask
from pages import execute, open_notebook, open_terminal, open_workbench

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
# JupyterLab opens what was open the last time, also another test's notebook, and then no launcher.
TABS = "~/.local/share/mlbox/users/ada/home/.jupyter/lab/workspaces"
# Where code-server keeps its user's settings. Its walkthrough opens at its own time, and takes the keys then.
SETTINGS = "~/.local/share/mlbox/users/ada/home/.local/share/code-server/User"
QUIET = '{"workbench.startupEditor": "none", "security.workspace.trust.enabled": false}'


@dataclass(frozen=True)
class Desk:
    laptop: Laptop
    session: Attached
    block: dict[str, str]
    browser: Browser


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    laptop = Laptop(folder / "home")
    ssh(HOST, f"rm -rf {TABS}")
    try:
        with Browser(folder / "profile") as browser:
            session = laptop.attach("session", HOST, "--gpus", "1", "--image", SESSION_IMAGE, "--name", "desk")
            block = session.block()
            ssh(HOST, f"mkdir -p {SETTINGS} && echo '{QUIET}' >{SETTINGS}/settings.json")
            yield Desk(laptop, session, block, browser)
            assert session.stop() == 0
    finally:
        laptop.close()
        laptop.run("session", "shutdown", "desk", "--host", HOST)
        ssh(HOST, f"rm -rf ~/mlbox/*.ipynb ~/mlbox/.ipynb_checkpoints ~/mlbox/typed {SETTINGS}")
    assert left_behind(HOST) == []


@pytest.fixture(autouse=True)
def clean_hosts() -> None:
    """Not between these tests: fixture `desk` ends the session and looks after it."""


def kill_the_tunnel(desk: Desk) -> None:
    """On return it has come back."""
    tunnels = [
        child for child in psutil.Process(desk.session.process.pid).children(recursive=True) if child.name() == "ssh"
    ]
    assert tunnels
    seen = len(desk.session.lines)
    for tunnel in tunnels:
        os.kill(tunnel.pid, signal.SIGKILL)
    desk.session.wait_for("tunnel lost", after=seen)
    desk.session.wait_for("tunnel is back.*the ports are the same", after=seen)


def test_jupyters_page_opens(desk: Desk) -> None:
    page = desk.browser.open(desk.block["jupyter"])
    page.wait_for("document.querySelector('.jp-DirListing')", ARTIFACTS / "jupyter-failed.png")
    launcher = "document.querySelector('.jp-LauncherCard[data-category=\"Notebook\"] img, .jp-LauncherCard svg')"
    page.wait_for(launcher, ARTIFACTS / "jupyter-failed.png")
    page.picture(ARTIFACTS / "jupyter.png")
    assert "JupyterLab" in page.value("document.title")


def test_a_cell_typed_in_the_page_runs_in_the_session(desk: Desk) -> None:
    page = open_notebook(desk.browser, desk.block["jupyter"])
    execute(page, "import os; print(os.uname().nodename, 6 * 7)", "desk 42", "notebook")


def test_an_open_page_goes_on_after_the_tunnel_was_killed(desk: Desk) -> None:
    """Without a reload: the page's own WebSocket to its kernel comes back, and the kernel is the same."""
    page = open_notebook(desk.browser, desk.block["jupyter"])
    execute(page, "kept = 'still the same'; print('before')", "before", "recovery-before")
    page.value("window.neverReloaded = true")
    kill_the_tunnel(desk)
    execute(page, "print(kept)", "still the same", "recovery-after")
    assert page.value("window.neverReloaded") is True
    assert len(ask(desk.block["jupyter"], "/api/kernels")) >= 1


def type_in_terminal(page: Page, line: str, expected: str, picture: str) -> None:
    """Its answer is looked for on the host: whether a terminal's rows are text or a canvas is VS Code's choice."""
    failed = ARTIFACTS / f"{picture}-failed.png"
    page.click(".terminal-wrapper .xterm-screen")
    page.wait_for("document.querySelector('.xterm-helper-textarea') === document.activeElement", failed)
    page.type(f"{line} | tee typed")
    page.press("Enter")
    ssh(HOST, f"until grep -qx {expected} ~/mlbox/typed 2>/dev/null; do sleep 0.05; done", timeout=90)
    page.picture(ARTIFACTS / f"{picture}.png")


def test_vscodes_workbench_renders_and_its_terminal_types(desk: Desk) -> None:
    page = open_workbench(desk.browser, desk.block["vscode"].split()[0])
    page.picture(ARTIFACTS / "vscode.png")
    open_terminal(page)
    type_in_terminal(page, "echo $HOSTNAME-$((6*7))", "desk-42", "vscode-terminal")


def test_an_open_workbench_goes_on_after_the_tunnel_was_killed(desk: Desk) -> None:
    """Without a reload: the workbench's connection comes back, and the shell in its terminal is the same."""
    page = open_workbench(desk.browser, desk.block["vscode"].split()[0])
    open_terminal(page)
    type_in_terminal(page, "kept=same; echo $kept-before", "same-before", "vscode-recovery-before")
    page.value("window.neverReloaded = true")
    kill_the_tunnel(desk)
    type_in_terminal(page, "echo $kept-after-$((6*7))", "same-after-42", "vscode-recovery-after")
    assert page.value("window.neverReloaded") is True
