"""The program on other laptops: other Pythons, one that is too old, and installed by pip."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from labbox import PYZ, ROOT, SSH_CONFIG, Laptop, Result
from labkit.inventory import HOSTS

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

HOST_PYZ = ROOT / "build/mlbox-host.pyz"
PYTHONS = {"gpu1": (3, 9), "gpu2": (3, 11)}
FOLDERS = "ls -d /tmp/mlbox-$(id -u)/* 2>/dev/null | grep -vE '[.](lock|heard)$'"  # of sessions


class Login:
    """A normal user of another machine, who has copied the file there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, command: str, content: Path | None = None) -> Result:
        argv = ["ssh", "-F", str(SSH_CONFIG), "-o", "BatchMode=yes", self.name, command]
        done = subprocess.run(argv, input=content.read_bytes() if content else b"", capture_output=True, timeout=300)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def copy(self, file: Path) -> None:
        assert self.run(f"mkdir -p laptop && cat >laptop/{file.name}", file).code == 0

    def mlbox(self, words: str) -> Result:
        return self.run(f"python3 laptop/mlbox.pyz {words}")


@pytest.fixture(params=PYTHONS)
def login(request: pytest.FixtureRequest) -> Iterator[Login]:
    """bob, who may not use Docker there; nothing of his is left."""
    made = Login(f"{request.param}-bob")
    made.copy(PYZ)
    yield made
    made.mlbox("session shutdown --host local")
    left = made.run(f"{FOLDERS}; pgrep -u $(id -u) -fa '[m]lbox|[j]upyter'").out
    made.run("rm -rf laptop mlbox .local .cache .config; rm -rf /tmp/mlbox-$(id -u)")
    assert left == ""


def test_version_and_a_dry_run(login: Login) -> None:
    found = login.run("python3 -c 'import sys; print(*sys.version_info[:2])'").out.split()
    assert tuple(map(int, found)) == PYTHONS[login.name.partition("-")[0]]
    version = login.mlbox("--version")
    assert version.code == 0 and re.fullmatch(r"mlbox \d+\.\d+\S*\n", version.out), version.all
    dry = login.mlbox("session local --dry-run --json")
    assert dry.code == 0, dry.all
    document = json.loads(dry.out)
    assert document["host"] == "local" and document["spec"]["image"] == ""
    assert login.run(FOLDERS).out == ""  # nothing was started


JUPYTER = {"gpu1"}  # where it is installed with it: on the oldest Python; elsewhere for less than half the time


def test_a_whole_local_session(login: Login) -> None:
    machine = login.name.partition("-")[0]
    without = "" if machine in JUPYTER else "--no-jupyter"
    started = login.mlbox(f"session local --no-vscode {without} --name here --detach --json")
    assert started.code == 0, started.all
    facts = json.loads(started.out)
    gpu = HOSTS[machine].gpu_uuid(0)
    assert (facts["host"], facts["runtime"], facts["gpus"]) == ("local", "process", [gpu])
    if machine in JUPYTER:
        socket = f"/tmp/mlbox-$(id -u)/{facts['id'][-8:].lower()}/s/jupyter.sock"
        answered = login.run(f"curl --silent --fail --unix-socket {socket} http://localhost/api")
        assert answered.code == 0 and "version" in answered.out, answered.all
    [listed] = json.loads(login.mlbox("session list --json").out)
    assert (listed["id"], listed["name"], listed["state"]) == (facts["id"], "here", "started")
    ended = login.mlbox("session shutdown here")
    assert ended.code == 0 and "here has ended; 1 GPU free again" in ended.out, ended.all
    assert json.loads(login.mlbox("session list --json").out) == []


# ---- a Python that is too old -----------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "code"), [(PYZ, 2), (HOST_PYZ, 95)], ids=["mlbox", "mlbox-host"])
@pytest.mark.parametrize("words", ["--version", "session local", "host"])
@pytest.mark.hosts()
def test_python_2_is_refused_in_one_sentence(file: Path, code: int, words: str) -> None:
    old = Login("old")
    old.copy(file)
    try:
        refused = old.run(f"python3 laptop/{file.name} {words}")
    finally:
        old.run("rm -rf laptop")
    assert refused.code == code, refused.all
    assert re.fullmatch(r"mlbox: this python is 2\.7 \(\S+\); mlbox needs 3\.9 or newer\n", refused.err), refused.all


# ---- installed by pip -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install .` of what is checked out, in an environment of its own; its bin folder."""
    folder = tmp_path_factory.mktemp("installed")
    listed = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in listed.split("\0"):
        if (ROOT / name).is_file():
            (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "checkout" / name)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, str(folder / "checkout")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(folder / "checkout")  # nothing may be taken from it
    return folder / "venv/bin"


def run_installed(binaries: Path, home: Path, *words: str) -> Result:
    env = {"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(["mlbox", *words], cwd=home, env=env, capture_output=True, text=True, timeout=120)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.hosts()
def test_installed_by_pip(installed: Path, laptop: Laptop) -> None:
    version = run_installed(installed, laptop.home, "--version")
    assert (version.code, version.out) == (0, laptop.run("--version").out)
    dry = run_installed(installed, laptop.home, "session", "local", "--dry-run")
    assert dry.code == 0 and "would start on local" in dry.out, dry.all


@pytest.mark.hosts()
def test_what_pip_installed_carries_the_host_part_and_starts_it(installed: Path, laptop: Laptop) -> None:
    status = run_installed(installed, laptop.home, "status", "local", "--json")
    assert status.code == 0, status.all
    [document] = json.loads(status.out)
    assert document["cpus"] == os.cpu_count() and document["sessions"] == []
