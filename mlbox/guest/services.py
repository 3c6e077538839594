"""The session's services: started together, each ready only after it answered a real request."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable

from mlbox.guest import control, logs, ssh

Json = dict[str, Any]
Say = Callable[[str, Json], None]
_GRACE = 5.0  # s between SIGTERM and SIGKILL
_SHORTEN_EVERY = 600.0  # s
_ASK_EVERY = 0.05  # s; another program's readiness has no event to await


def owner(config: Json) -> tuple[int, int]:
    """The session's owner, by number as in here: where the container's root is the user on the host, it is root."""
    found = os.stat(config["run"])
    return found.st_uid, found.st_gid


class Service:
    """One server process behind one socket."""

    def __init__(self, name: str, argv: list[str], config: Json, request: str) -> None:
        self.name, self.argv, self._config, self._request = name, argv, config, request
        self.socket = Path(config["run"]) / f"s/{name}.sock"
        self.log = Path(config["run"]) / f"log/{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            control.give(self.log, owner(self._config))
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                cwd=self._config["folder"], start_new_session=True,
            )  # fmt: skip

    def await_answer(self, stopping: threading.Event) -> Json:
        """Its state once it answered, ended, or used up its time."""
        deadline = time.monotonic() + float(self._config["timeout"])
        while not stopping.wait(_ASK_EVERY):
            if self.process is not None and self.process.poll() is not None:
                return self._failed(f"ended with exit code {self.process.returncode}")
            if self._answers():
                control.give(self.socket, owner(self._config))
                return {"state": "ready"}
            if time.monotonic() > deadline:
                return self._failed(f"did not answer within {self._config['timeout']} s")
        return {"state": "stopped"}

    def _answers(self) -> bool:
        connection = _UnixConnection(str(self.socket))
        try:
            connection.request("GET", self._request, headers={"Host": "localhost"})
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _failed(self, why: str) -> Json:
        return {"state": "failed", "why": why, "log": logs.tail(self.log)}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Running:
    """All services of this session, until it is told to stop."""

    def __init__(self, found: list[Service], say: Say) -> None:
        self._services, self._say = found, say
        self._stopping = threading.Event()
        self._told, self._tell = os.pipe()
        self.ready: list[Service] = []

    def watch(self, service: Service) -> None:
        state = service.await_answer(self._stopping)
        if state["state"] == "ready":
            self.ready.append(service)
        self._say(service.name, state)
        if state["state"] != "ready" or service.process is None:
            return
        code = service.process.wait()
        self.ready.remove(service)
        if not self._stopping.is_set():
            self._say(
                service.name, {"state": "failed", "why": f"ended with exit code {code}", "log": logs.tail(service.log)}
            )

    def stop(self) -> None:
        """A signal's handler, which another SIGTERM may interrupt: an Event's lock, taken twice, would never be had."""
        os.write(self._tell, b"x")

    def wait(self) -> int:
        """Until SIGTERM; then all services are ended, in their own time first."""
        while not select.select([self._told], [], [], _SHORTEN_EVERY)[0]:
            for service in self._services:
                logs.shorten(service.log)
        self._stopping.set()
        groups = [s.process for s in self._services if s.process is not None]
        for process in groups:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        for process in groups:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
        return 0


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def start_all(config: Json, environment: dict[str, str], say: Say) -> Running:
    found = []
    if config["jupyter"]:
        found.append(Service("jupyter", config["jupyter"], config, "/api"))
    if config["vscode"]:
        found.append(Service("vscode", config["vscode"], config, "/healthz"))
    running = Running(found, say)
    for service in found:
        try:
            service.start(environment)
        except OSError as error:
            say(service.name, {"state": "failed", "why": f"can't be started: {error}", "log": ""})
            continue
        threading.Thread(target=running.watch, args=(service,), name=service.name, daemon=True).start()
    if config["ssh"]:
        threading.Thread(
            target=ssh.serve, args=(config, environment, owner(config), say), name="ssh", daemon=True
        ).start()
    return running
