"""Cells run as a notebook runs them: a kernel of Jupyter's own, spoken to through its WebSocket."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from types import TracebackType
from typing import Any

import websocket
from jupyter_client.session import Session

_PATIENCE = 60.0  # s


def ask(url: str, path: str, data: bytes | None = None, method: str | None = None) -> Any:
    """Jupyter's REST API behind a session's URL, with the URL's token."""
    parts = urllib.parse.urlsplit(url)
    token = urllib.parse.parse_qs(parts.query)["token"][0]
    request = urllib.request.Request(
        f"http://{parts.netloc}{path}", data, {"Authorization": f"token {token}"}, method=method
    )
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
        body = answer.read()
    return json.loads(body) if body else None


class Notebook:
    """One kernel, from `with` to its end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = Session()
        self._socket: Any = None
        self.kernel = ""

    def __enter__(self) -> Notebook:
        self.kernel = str(ask(self._url, "/api/kernels", b"{}")["id"])
        self.connect()
        return self

    def connect(self, patience: float = _PATIENCE) -> None:
        """(Again) to the same kernel, as a page does whose connection broke. `patience`: s, with each answer."""
        parts = urllib.parse.urlsplit(self._url)
        query = f"session_id={self._session.session}&{parts.query}"
        address = f"ws://{parts.netloc}/api/kernels/{self.kernel}/channels?{query}"
        self._socket = websocket.create_connection(address, timeout=patience)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()
        if self.kernel:
            ask(self._url, f"/api/kernels/{self.kernel}", method="DELETE")

    def forget(self) -> None:
        """Its session has ended, and the kernel with it."""
        self.kernel = ""

    def run(self, code: str) -> str:
        """What the cell printed, and its value; fails with the cell's traceback."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
        message = self._session.msg("execute_request", content)
        del message["msg_id"], message["msg_type"]
        self._socket.send(json.dumps({**message, "channel": "shell", "buffers": []}, default=str))
        said: list[str] = []
        while True:
            heard = json.loads(self._socket.recv())
            if heard.get("parent_header", {}).get("msg_id") != message["header"]["msg_id"]:
                continue
            kind, content = heard["header"]["msg_type"], heard["content"]
            if kind == "stream":
                said.append(content["text"])
            elif kind == "execute_result":
                said.append(content["data"]["text/plain"])
            elif kind == "error":
                raise AssertionError("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(said)
