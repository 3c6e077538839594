"""Fixtures over the real lab: a fresh laptop for each test, and a look at what the test left on its hosts."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from labbox import ARTIFACTS, LAB, PYZ, Laptop, blame, left_behind
from labkit import engine as engines
from labkit import gpus as false_gpus
from labkit import laptop as laptops
from labkit.inventory import HOSTS, RUN, Copy
from outage import await_share
from queuelab import Lab, opened

GPU_HOSTS = ("gpu1", "gpu2", "noeng")
# Files are handed out in this order, so that no worker is left with a long one at the end.
LONG = (
    "engines", "bad_days", "tunnels_background", "chaos", "network", "queue", "session", "layers", "kills", "reverse",
    "ssh_name", "policies", "roots", "reboot", "process_runtime", "share", "laptops", "own_ssh",
)  # fmt: skip


def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Each worker's hosts are another copy of the lab, and it has a laptop to itself."""
    for number, spec in enumerate(specs, 1):
        spec.python = shlex.join((*laptops.command(Copy(number)), sys.executable))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # its /tmp is not the one in which its folder was made
        Path(config.option.basetemp).parent.mkdir(parents=True, exist_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
        items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def lab_is_up() -> Iterator[None]:
    if not PYZ.exists():
        pytest.exit("dist/mlbox.pyz is missing: make pyz", returncode=2)
    state = subprocess.run([sys.executable, str(LAB), "status", "--json"], capture_output=True, text=True)
    if state.returncode != 0 or not json.loads(state.stdout)["up"]:
        pytest.exit(f"the lab is not up: scripts/lab up\n{state.stderr}", returncode=2)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with (RUN / "tests.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.exit(f"other tests run in the lab of {RUN}, and each ends what it finds there: wait", returncode=2)
        yield


@pytest.fixture(scope="module", autouse=True)
def share_is_there(lab_is_up: None) -> None:
    """The file before this one may have cut hosts off from it."""
    engine = engines.known()
    running = engine.containers("status=running") if engine else []
    with ThreadPoolExecutor() as pool:
        list(pool.map(await_share, (h.name for h in HOSTS.values() if h.share and h.container in running)))


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    made = Laptop(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A queue over gpu1 and gpu2, with a ROOT of its own on their share."""
    with opened(tmp_path / "home", "/share/lab-" + re.sub(r"\W", "", request.node.name)[:40]) as made:
        yield made


@pytest.fixture(autouse=True)
def clean_hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """After each test: its hosts' GPUs are idle, its sessions are ended, and nothing else was left."""
    marker = request.node.get_closest_marker("hosts")
    hosts = marker.args if marker else GPU_HOSTS
    yield
    with ThreadPoolExecutor() as pool:
        left = dict(zip(hosts, pool.map(lambda host: _cleaned(host, tmp_path), hosts)))
    assert not any(left.values()), f"left behind: {left}"


def _cleaned(host: str, folder: Path) -> list[str]:
    if host in HOSTS:  # or a user's name for one
        false_gpus.set_gpus(host, false_gpus.default_gpus(host))
    if not left_behind(host):  # a session leaves its folder at least
        return []
    sweeper = Laptop(folder / f"sweeper-{host}")
    for session in sweeper.sessions(host):
        sweeper.run("session", "shutdown", str(session["id"]), "--host", host)
    return blame(host)
