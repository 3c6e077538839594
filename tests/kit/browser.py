"""A headless Chromium, driven through its DevTools protocol: real pages, real keys, pictures of them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import websocket

_PATIENCE = 90.0  # s for a page to come to show something
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-default-browser-check",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "--window-size=1400,900",
)  # fmt: skip
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "`": ("Backquote", 192, ""),
    "a": ("KeyA", 65, ""),
}
_MODIFIERS = {"Alt": 1, "Control": 2, "Shift": 8}


class Browser:
    """One Chromium with a profile of its own, from `with` to its end."""

    def __init__(self, folder: Path, patience: float = _PATIENCE) -> None:
        self._folder, self._patience = folder, patience
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    def __enter__(self) -> Browser:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            pytest.fail("there is no Chromium on this machine: apt-get install chromium")
        argv = [program, *_FLAGS, f"--user-data-dir={self._folder}", "about:blank"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            found = re.search(r"DevTools listening on ws://([^/]+)/", line)
            if found:
                self._address = found[1]
                return self
        raise AssertionError("Chromium ended:\n" + "".join(said))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=30)  # reads its stderr to the end, too

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def open(self, url: str) -> Page:
        request = urllib.request.Request(f"http://{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            target = json.load(answer)
        page = Page(target["webSocketDebuggerUrl"], self._patience)
        page.call("Page.enable")
        page.call("Page.bringToFront")  # what is behind is not drawn
        page.call("Page.navigate", url=url)
        return page


class Page:
    """A tab."""

    def __init__(self, address: str, patience: float) -> None:
        self._socket: Any = websocket.create_connection(address, timeout=patience + 10)
        self._number, self._patience = 0, patience

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            heard = json.loads(self._socket.recv())
            if heard.get("id") != self._number:
                continue  # an event
            if "error" in heard:
                raise RuntimeError(f"{method}: {heard['error']['message']}")
            return heard["result"]

    def value(self, expression: str, wait: bool = False) -> Any:
        """What a JavaScript expression is in the page; with `wait`, what its promise comes to."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=wait, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", str(result)))
        return result["result"].get("value")

    def wait_for(self, expression: str, picture: Path | None = None) -> Any:
        """Until the expression is true; its value. The page looks whenever its document changes."""
        look = f"""new Promise((resolve, reject) => {{
          const end = Date.now() + {int(self._patience * 1000)};
          const look = () => {{
            let found = null;
            try {{ found = ({expression}); }} catch (error) {{ }}
            if (found) resolve(found instanceof Node ? true : found);
            else if (Date.now() > end) reject(new Error("time is up"));
            else setTimeout(look, 50);
          }};
          look();
        }})"""
        for _ in range(5):
            try:
                return self.value(look, wait=True)
            except RuntimeError as error:
                # a page that goes on to another one takes the promise with it
                if "context" in str(error) or "navigated" in str(error):
                    continue
                if picture is not None:
                    self.picture(picture)
                raise AssertionError(f"never came true in the page: {expression} ({error})") from None
        raise AssertionError(f"the page never settled: {expression}")

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first element that the selector finds."""
        spot = self.wait_for(
            f"(box => box && box.width ? [box.x + box.width / 2, box.y + box.height / 2] : null)"
            f"(document.querySelector({json.dumps(selector)})?.getBoundingClientRect())"
        )
        at = {"x": spot[0], "y": spot[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def type(self, words: str) -> None:
        self.call("Input.insertText", text=words)

    def press(self, combination: str) -> None:
        """`Enter`, `Shift+Enter`, `Control+`` …"""
        *modifiers, name = combination.split("+")
        code, number, text = _KEYS[name]
        key = {
            "modifiers": sum(_MODIFIERS[m] for m in modifiers), "key": name, "code": code,
            "windowsVirtualKeyCode": number, "nativeVirtualKeyCode": number,
        }  # fmt: skip
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def picture(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
