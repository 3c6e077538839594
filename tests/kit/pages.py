"""What a person does in the pages of a session: JupyterLab's and VS Code's."""

from __future__ import annotations

from typing import Any

from browser import Browser, Page
from labbox import ARTIFACTS
from notebook import ask
from queuelab import awaited


def open_notebook(browser: Browser, jupyter: str) -> Page:
    """A new notebook by a click in the launcher, its kernel idle, its first cell under the cursor. Whatever tabs the
    page had the last time are not opened again."""
    page = browser.open(jupyter.replace("/lab?", "/lab?reset&"))
    page.wait_for("document.querySelector('.jp-DirListing')", ARTIFACTS / "jupyter-failed.png")
    page.click('.jp-LauncherCard[data-category="Notebook"]')
    page.wait_for("document.querySelector('.jp-Notebook .cm-content')", ARTIFACTS / "jupyter-failed.png")
    page.wait_for("document.querySelector('.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=\"idle\"]')")
    # The page is idle from its beginning; what it asks of a kernel that is still being connected it may forget.
    awaited(lambda: all(map(_is_connected, ask(jupyter, "/api/kernels"))))
    return page


def _is_connected(kernel: dict[str, Any]) -> bool:
    return bool(kernel["connections"]) and kernel["execution_state"] == "idle"


def _within(seconds: int, expression: str) -> str:
    """Whether that comes true by then."""
    return f"""new Promise(resolve => {{
      const end = Date.now() + {seconds * 1000};
      const look = () => {{
        if ({expression}) resolve(true);
        else if (Date.now() > end) resolve(false);
        else setTimeout(look, 50);
      }};
      look();
    }})"""


_CELLS = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]"
_LAST = f"{_CELLS}.at(-1).querySelector('.cm-content')"
# The cell before the last, which was made when that one was run.
_TAKEN_UP = f"/[*0-9]/.test(({_CELLS}.at(-2)?.querySelector('.jp-InputPrompt') ?? {{}}).innerText ?? '')"


def execute(page: Page, code: str, expected: str, picture: str) -> None:
    """In the last cell, which is empty."""
    failed = ARTIFACTS / f"{picture}-failed.png"
    for _ in range(6):  # a page that is just connecting anew may take the cursor away
        page.click(".jp-Notebook .jp-CodeCell:last-child .cm-content")
        if page.value(_within(10, f"{_LAST} === document.activeElement"), wait=True):
            break
    page.wait_for(f"{_LAST} === document.activeElement", failed)
    page.type(code)
    page.wait_for(f"{_LAST}.innerText.trim() !== ''", failed)
    page.press("Shift+Enter")
    if not page.value(_within(10, _TAKEN_UP), wait=True):
        ran_before = page.value("/\\[\\d+\\]/.test(document.querySelector('.jp-Notebook').innerText)")
        assert not ran_before, "the page forgot a cell"
        page.click(".jp-Notebook .jp-CodeCell:nth-last-child(2) .cm-content")
        page.press("Shift+Enter")  # the first one of a new notebook it may forget, while its own connection is made
    came = (
        f"[...document.querySelectorAll('.jp-OutputArea-output')].map(e => e.innerText.trim()).includes({expected!r})"
    )
    page.wait_for(came, failed)
    page.picture(ARTIFACTS / f"{picture}.png")


def open_workbench(browser: Browser, vscode: str) -> Page:
    page = browser.open(vscode)
    failed = ARTIFACTS / "vscode-failed.png"
    page.wait_for("document.querySelector('.monaco-workbench .part.statusbar')", failed)
    page.wait_for("document.querySelector('.monaco-workbench .explorer-folders-view')", failed)
    page.wait_for("!document.querySelector('.monaco-workbench .monaco-progress-container.active.infinite')", failed)
    return page


def open_terminal(page: Page) -> None:
    failed = ARTIFACTS / "vscode-failed.png"
    page.press("Control+`")
    page.wait_for("document.querySelector('.terminal-wrapper .xterm-screen')", failed)
