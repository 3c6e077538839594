"""Part b: a session start with a cached image, beside the least that a person could do by hand.

the floor   at once: `ssh HOST docker run -d … jupyter lab --ServerApp.sock=…` (and code-server, where mlbox starts it)
            and `ssh -N -L PORT:…sock HOST`; then asking every 20 ms, through that, until all answer
attached    mlbox session …, until its block is printed: all services answered through the tunnels
detached    mlbox session … --detach, until it returns: the same, and the tunnels stay in the background
warm, cold  over a shared connection that is up, for both; or without any
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from functools import partial

from benchkit.laptop import Laptop, free_port
from benchkit.measure import Row, Subject, at_most, in_turn, tell

RUNS = 5
IMAGE = "mlbox-lab/session:1"
RUNNING = b"Interactive session is running"
_ASK_EVERY = 0.02  # s
_LIMIT = 120.0  # s


def run(host: str, runs: int | None) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    with contextlib.closing(Laptop(host)) as laptop, _floor(laptop) as floor:
        laptop.share()
        tell("warming up")
        detached(laptop)
        floor.start(vscode=True, shared=True)
        for vscode in (False, True):
            for warm in (True, False):
                what = f"{'warm' if warm else 'cold'}, {'all services' if vscode else 'no VS Code'}"
                subjects: dict[str, Subject] = {
                    "attached": partial(attached, laptop, vscode, warm),
                    "the floor": partial(floor.start, vscode, warm),
                    "detached": partial(detached, laptop, vscode, warm),
                }
                found = in_turn(runs or RUNS, subjects, f"session start, {what}")
                for name in ("attached", "detached"):
                    row = Row("b", f"session start {name}, {what}", "s", found[name], found["the floor"], "the floor")
                    rows.append(at_most(row, 1.10, or_more=0.5))
    return rows, []


# ---- mlbox -------------------------------------------------------------------------------------------


def words(laptop: Laptop, vscode: bool = True) -> tuple[str, ...]:
    """The command, under a name by which the laptop finds its sessions again."""
    start = ("session", laptop.host, "--gpus", "1", "--image", IMAGE, "--name", f"{laptop.tag}-s", "--new", "--fresh")
    return (*start, "--yes", "--vscode" if vscode else "--no-vscode")


def detached(laptop: Laptop, vscode: bool = True, warm: bool = True) -> float:
    if not warm:
        laptop.hang_up()
    before = time.perf_counter()
    laptop.mlbox(*words(laptop, vscode), "--detach")
    took = time.perf_counter() - before
    laptop.mlbox("session", "shutdown", f"{laptop.tag}-s", "--host", laptop.host)
    return took


def attached(laptop: Laptop, vscode: bool = True, warm: bool = True) -> float:
    if not warm:
        laptop.hang_up()
    before = time.perf_counter()
    process = until_running(laptop, laptop.argv(*words(laptop, vscode)))
    took = time.perf_counter() - before
    laptop.end(process)
    laptop.mlbox("session", "shutdown", f"{laptop.tag}-s", "--host", laptop.host)
    return took


def until_running(laptop: Laptop, argv: tuple[str, ...], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start it, and come back when its block is there."""
    process = laptop.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env or laptop.env)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith(RUNNING):
            return process
    said = process.stderr.read().decode(errors="replace").strip()
    laptop.end(process)
    raise RuntimeError(f"mlbox session did not start: {said[-600:]}")


# ---- the floor ---------------------------------------------------------------------------------------


class Floor:
    """`folder` is on the host, and as warm as mlbox's own: the home in it stays from run to run."""

    def __init__(self, laptop: Laptop, gpu: str) -> None:
        self._laptop, self._gpu = laptop, gpu
        self.folder = f"/tmp/{laptop.tag}"
        laptop.on_host(f"umask 077; mkdir {self.folder} && cd {self.folder} && mkdir home run work")

    def start(self, vscode: bool, shared: bool) -> float:
        ports = {"jupyter": free_port(), **({"vscode": free_port()} if vscode else {})}
        forwards = {port: f"{self.folder}/run/{name}.sock" for name, port in ports.items()}
        before = time.perf_counter()
        engine = self._laptop.start(
            self._laptop.ssh(self._command(vscode), shared=shared), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with self._laptop.forwarding(forwards, shared=shared):
                for name, port in ports.items():
                    _await_answer(port, "/api" if name == "jupyter" else "/healthz", before + _LIMIT)
                return time.perf_counter() - before
        finally:
            self._laptop.end(engine)
            self.stop()

    def _command(self, vscode: bool) -> str:
        name, run = self._laptop.tag, "/run/bench"
        jupyter = f"python3 -m jupyterlab --no-browser --ServerApp.sock={run}/jupyter.sock --ServerApp.sock_mode=0600"
        jupyter += " --ServerApp.root_dir=/workspace --ServerApp.allow_root=True --IdentityProvider.token=0123456789"
        code = f"code-server --socket {run}/vscode.sock --socket-mode 600 --auth none --disable-telemetry"
        code += " --disable-update-check --disable-workspace-trust"
        inside = f"{code} & exec {jupyter}" if vscode else f"exec {jupyter}"
        mounts = f"-v {self.folder}/run:{run} -v {self.folder}/home:/home/bench -v {self.folder}/work:/workspace"
        command = f"docker run -d --name {name} --label mlbox.bench={name} --user $(id -u):$(id -g)"
        command += f" --gpus '\"device={self._gpu}\"' --security-opt no-new-privileges"
        command += f" {mounts} --env HOME=/home/bench --workdir /workspace --entrypoint /bin/sh {IMAGE} -c"
        return f"{command} {shlex.quote(inside)}"

    def stop(self) -> None:
        label = f"label=mlbox.bench={self._laptop.tag}"
        rm = f"docker ps -aq --filter {label} | xargs -r docker rm -f >/dev/null; rm -f {self.folder}/run/*"
        self._laptop.on_host(rm, check=False)

    def close(self) -> None:
        self.stop()
        self._laptop.on_host(f"rm -rf {self.folder}", check=False)


@contextlib.contextmanager
def _floor(laptop: Laptop) -> Iterator[Floor]:
    gpus = json.loads(laptop.mlbox("status", laptop.host, "--json"))[0]["gpus"]
    if not gpus:
        raise RuntimeError(f"{laptop.host} has no GPU")
    floor = Floor(laptop, str(gpus[-1]["uuid"]))
    with contextlib.closing(floor):
        yield floor


def _await_answer(port: int, path: str, deadline: float) -> None:
    while not _answers(port, path):
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the floor's {path} never answered")
        time.sleep(_ASK_EVERY)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": f"localhost:{port}"})
        return connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
