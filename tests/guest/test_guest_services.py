"""A service is ready when it answered a real request: small real servers on unix sockets."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from queuebox import until

from mlbox.guest import logs, main, services
from mlbox.guest.services import Running, Service, start_all

Json = dict[str, Any]
# argv: the socket, and what it answers: a status, or "silence", or "ignore" (a server that ignores SIGTERM)
_SERVER = """
import http.server, os, signal, socketserver, sys, time
path, answer = sys.argv[1:]
if answer == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("serving", os.environ.get("GREETING", ""), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if answer == "silence":
            time.sleep(1000)
        if self.path == "/die":
            os._exit(7)
        self.send_response(int(answer) if answer.isdigit() else 200)
        self.end_headers()
    def address_string(self):
        return "unix"
class Server(socketserver.ThreadingUnixStreamServer):
    pass
Server(path, Handler).serve_forever()
"""


@pytest.fixture
def config(run: Path) -> Json:
    return {
        "run": str(run), "folder": str(run), "timeout": 20,
        "jupyter": None, "vscode": None, "ssh": None,
    }  # fmt: skip


def server(config: Json, answer: str, name: str = "jupyter") -> list[str]:
    return [sys.executable, "-c", _SERVER, f"{config['run']}/s/{name}.sock", answer]


@pytest.fixture
def started(config: Json) -> Iterator[Callable[[list[str]], Service]]:
    made: list[Service] = []

    def start(argv: list[str]) -> Service:
        service = Service("jupyter", argv, config, "/api")
        service.start({**os.environ, "GREETING": "hello"})
        made.append(service)
        return service

    yield start
    for service in made:
        if service.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait()


@pytest.mark.parametrize("status", ["200", "302", "403", "404"])
def test_ready_when_it_answers(config: Json, started: Callable[[list[str]], Service], status: str) -> None:
    service = started(server(config, status))
    assert service.await_answer(threading.Event()) == {"state": "ready"}
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600
    assert "serving hello" in service.log.read_text()


def test_an_end_before_it_answers_is_said_with_the_log(config: Json, started: Callable[[list[str]], Service]) -> None:
    service = started(["/bin/sh", "-c", "echo first; seq 30; echo No module named jupyterlab >&2; exit 3"])
    state = service.await_answer(threading.Event())
    assert (state["state"], state["why"]) == ("failed", "ended with exit code 3")
    assert state["log"].splitlines()[-1] == "No module named jupyterlab"
    assert len(state["log"].splitlines()) == 15


@pytest.mark.parametrize("answer", ["500", "503", None], ids=["500", "503", "no socket"])
def test_one_that_never_answers_uses_up_its_time(
    config: Json, started: Callable[[list[str]], Service], answer: str | None
) -> None:
    config["timeout"] = 0.5
    argv = server(config, answer) if answer else ["/bin/sh", "-c", "echo still loading; sleep 1000"]
    service = started(argv)
    state = service.await_answer(threading.Event())
    assert (state["state"], state["why"]) == ("failed", "did not answer within 0.5 s")


def test_one_that_is_connected_to_and_silent(
    config: Json, started: Callable[[list[str]], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    config["timeout"] = 0.5
    monkeypatch.setattr(services._UnixConnection, "connect", _impatient(services._UnixConnection.connect))
    service = started(server(config, "silence"))
    until(lambda: "serving" in service.log.read_text())
    state = service.await_answer(threading.Event())
    assert (state["state"], "serving" in state["log"]) == ("failed", True)


def _impatient(connect: Callable[[Any], None]) -> Callable[[Any], None]:
    def quick(self: Any) -> None:
        self.timeout = 0.2
        connect(self)

    return quick


def test_stopping_ends_the_wait(config: Json, started: Callable[[list[str]], Service]) -> None:
    stopping = threading.Event()
    stopping.set()
    assert started(["sleep", "1000"]).await_answer(stopping) == {"state": "stopped"}


# ---- all together --------------------------------------------------------------------------------


class Said:
    """What the guest tells its keeper."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[str, Json]] = queue.Queue()

    def __call__(self, name: str, state: Json) -> None:
        self._queue.put((name, state))

    def next(self) -> tuple[str, Json]:
        return self._queue.get(timeout=20)


def stopped(running: Running) -> int:
    running.stop()
    return running.wait()


def test_a_service_that_ends_later_is_told(config: Json) -> None:
    said = Said()
    config["jupyter"] = server(config, "200")
    running = start_all(config, dict(os.environ), said)
    assert said.next() == ("jupyter", {"state": "ready"})
    assert [s.name for s in running.ready] == ["jupyter"]
    connection = services._UnixConnection(f"{config['run']}/s/jupyter.sock")
    connection.request("GET", "/die")
    name, state = said.next()
    connection.close()
    assert (name, state["state"], state["why"]) == ("jupyter", "failed", "ended with exit code 7")
    assert "serving" in state["log"]
    assert running.ready == []
    assert stopped(running) == 0


def test_a_program_that_is_not_there_is_said_and_the_rest_goes_on(config: Json) -> None:
    said = Said()
    config["jupyter"], config["vscode"] = ["/no/such/program"], server(config, "200", "vscode")
    running = start_all(config, dict(os.environ), said)
    told = dict([said.next(), said.next()])
    assert told["jupyter"]["state"] == "failed" and "can't be started" in told["jupyter"]["why"]
    assert told["vscode"] == {"state": "ready"}
    stopped(running)


@pytest.mark.parametrize("answer", ["200", "ignore"], ids=["in its own time", "forced"])
def test_stop_ends_every_service(config: Json, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(services, "_GRACE", 0.1 if answer == "ignore" else 20.0)
    said = Said()
    config["jupyter"] = server(config, answer)
    running = start_all(config, dict(os.environ), said)
    assert said.next()[1] == {"state": "ready"}
    process = running.ready[0].process
    assert process is not None
    assert stopped(running) == 0
    assert process.wait(20) == (-9 if answer == "ignore" else -15)
    assert running._stopping.is_set()


# A second SIGTERM at each line of what the first does: without a container the guest gets one from whoever ends the
# session and one from its own init.
_TWICE = """
import sys
from mlbox.guest.services import Running
running, within = Running([], print), False
def at_a_line(frame, event, argument):
    global within
    if event == "line" and not within:
        within = True
        running.stop()
        within = False
    return at_a_line
sys.settrace(at_a_line)
running.stop()
sys.settrace(None)
sys.exit(running.wait())
"""


def test_a_second_sigterm_amid_the_first_hangs_nothing() -> None:
    done = subprocess.run((sys.executable, "-c", _TWICE), timeout=20, check=False)
    assert done.returncode == 0


def test_a_log_is_shortened_while_its_session_lives(
    config: Json, started: Callable[[list[str]], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = started(server(config, "200"))
    shortened: queue.Queue[Path] = queue.Queue()
    running = Running([service], lambda name, state: None)
    monkeypatch.setattr(services, "_SHORTEN_EVERY", 0.01)
    monkeypatch.setattr(logs, "shorten", shortened.put)
    waiting = threading.Thread(target=running.wait)
    waiting.start()
    try:
        assert shortened.get(timeout=20) == service.log
    finally:
        running.stop()
        waiting.join()


def test_nobody_s_variable_hides_a_session_s_processes(config: Json) -> None:
    asked = {"GREETING": "hi", "HOME": "/elsewhere", "MLBOX_SESSION": "x"}
    given = {**config, "home": "/home/ada", "shell": "/bin/sh", "path": "", "session": "01J0", "env": asked}
    found = main._environment(given)
    assert (found["GREETING"], found["HOME"], found["MLBOX_SESSION"]) == ("hi", "/elsewhere", "01J0")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_the_owner_is_whose_the_folder_is_as_seen_in_here(config: Json, run: Path) -> None:
    os.chown(run, 65534, 65533)
    assert services.owner(config) == (65534, 65533)
