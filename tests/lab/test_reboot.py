"""A host that goes down with its jobs: at its first tick they run again or have failed, and nobody does anything."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Machine
from labbox import PYTHON_IMAGE, SESSION_IMAGE, Laptop, as_root

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

ROOT = "/share/reboot"
AGAIN = ("sh", "-c", "[ $MLBOX_ATTEMPT = 2 ] || sleep 1000")
CRON = 200.0  # s: a minute, its jitter, and what a loaded machine adds


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    """gpu1 answers for the lab; the jobs are on gpu2."""
    made = Laptop(tmp_path / "home")
    config = made.home / ".config/mlbox/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'hosts = ["gpu1", "gpu2"]\nroot = "{ROOT}"\n')
    for words in (("init", "gpu1", "gpu2"), ("cron", "install")):
        done = made.run(*words)
        assert done.code == 0, done.all
    yield made
    made.run("cron", "remove")
    made.close()
    as_root("gpu1", "rm", "-rf", ROOT)


def _show(laptop: Laptop, job: str) -> Any:
    done = laptop.run("show", job, "--host", "gpu1", "--json")
    assert done.code == 0, done.all
    return done.json()


def _until(true: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(1)


def test_a_host_that_reboots_runs_its_jobs_again(laptop: Laptop) -> None:
    def submit(*words: str) -> str:
        done = laptop.run("submit", "--json", "--no-code", "--cpus", "0", "--on", "gpu2", "--host", "gpu2", *words)
        return str(json.loads(done.out)["jobs"][0]["id"])

    def state(job: str) -> str:
        return str(_show(laptop, job)["job"]["state"])

    job = submit("--gpus", "1", "--", *AGAIN)
    contained = submit("--gpus", "0", "--image", PYTHON_IMAGE, "--", *AGAIN)
    kept = submit("--gpus", "1", "--on-host-loss", "hold", "--", "sleep", "1000")
    for one in (job, contained, kept):
        _until(lambda one=one: state(one) == "started", 90)  # type: ignore[misc]
    assert Machine("gpu2").make("off", 1, 0)
    _until(lambda: state(kept) == "failed", CRON)
    assert _show(laptop, kept)["job"]["why"] == "the host was restarted"
    for one in (job, contained):
        _until(lambda one=one: state(one) == "finished", CRON)  # type: ignore[misc]
        events = [event["event"] for event in _show(laptop, one)["events"]]
        assert events == ["submitted", "claimed", "started", "lost", "claimed", "started", "finished"]


def test_a_session_of_a_queue_comes_back_with_its_tunnels(laptop: Laptop) -> None:
    """The host that reboots starts it anew: the background's tunnels wait for that, and then lead there on the same
    ports, by its new keys."""

    def tunnels() -> dict[str, Any]:
        [found] = json.loads(laptop.run("tunnels", "list", "--json").out)
        return dict(found)

    bare = ("--image", SESSION_IMAGE, "--gpus", "0", "--no-jupyter", "--no-vscode")
    words = ("--queue", "default", "--on", "gpu2", *bare, "--name", "returns", "--detach", "--json")
    session, before = json.loads(laptop.run("session", *words).out), tunnels()
    assert before["state"] == "up"
    assert Machine("gpu2").make("off", 1, 0)
    _until(lambda: [e["event"] for e in _show(laptop, session["id"])["events"]].count("started") == 2, CRON)
    _until(lambda: tunnels()["state"] == "up" and tunnels()["since"] > before["since"], CRON)
    assert (tunnels()["pid"], tunnels()["ports"]) == (before["pid"], before["ports"])
    config = str(laptop.home / ".local/state/mlbox/ssh_config")
    for way in (("returns",), ("-p", str(before["ports"]["ssh"]), "ada@localhost")):
        argv = ("ssh", "-F", config, "-o", "BatchMode=yes", *way, "hostname")
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        assert done.stdout == "returns\n", done
    place = json.loads((laptop.home / f".local/state/mlbox/ssh.d/{session['id']}.json").read_text())
    assert Path(place["find"][1]).name == "mlbox.pyz"  # what ssh starts where it has moved once more
    assert laptop.run("session", "shutdown", "returns").code == 0
    _until(lambda: laptop.run("tunnels", "list", "--json").out == "[]\n", 60)
