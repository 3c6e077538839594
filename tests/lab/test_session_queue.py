"""A session that waits in a queue: why, until it comes up like any other; and one that does not wait any longer."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from labbox import SESSION_IMAGE, SSH_CONFIG, Attached, token
from labkit.inventory import CODE_SERVER
from notebook import Notebook
from queuelab import Lab
from vsix import extension

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1", "gpu2")]

A100 = ("--gpus", "A100")  # one, on gpu1
WAITS = r"1st in queue default; asks for 1 A100 GPU, 0 are free on gpu1 \(GPU 3 held by ada's job"


def queued(lab: Lab, *words: str) -> tuple[Attached, str]:
    """A session in line behind a job, and its id."""
    attached = lab.laptop.attach("session", "--queue", "default", *A100, "--image", SESSION_IMAGE, *words)
    job = attached.wait_for(r"is in line \(job (\w+)\)")[1]
    attached.wait_for(WAITS)
    return attached, job


def occupied(lab: Lab) -> str:
    job = lab.one(*A100, "--", "sleep", "1000")
    lab.until(job, "started")
    return job


def test_it_waits_and_comes_up(lab: Lab) -> None:
    job = occupied(lab)
    attached, session = queued(lab, "--no-vscode")
    lab.run("cancel", job)
    block = attached.block()
    assert block["id"] == session
    with urllib.request.urlopen(block["jupyter"]) as answer:
        assert answer.status == 200
    api = block["jupyter"].partition("/lab")[0] + "/api/kernels?token="
    with urllib.request.urlopen(api + token(block["jupyter"])) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{api}guessed")
    assert attached.stop(signal.SIGINT) == 0
    assert [one["id"] for one in lab.laptop.sessions("gpu1")] == [session]
    assert "has ended; 1 GPU free again" in lab.run("session", "shutdown", block["name"]).out
    assert lab.laptop.sessions("gpu1") == []
    occupied(lab)


def test_it_is_taken_out_of_the_line(lab: Lab) -> None:
    """By ^C; or, once its laptop is gone, by its id from any other."""
    occupied(lab)
    attached, session = queued(lab)
    assert attached.stop(signal.SIGINT) == 130
    attached.wait_for("stopped; it is out of the line")
    assert lab.state(session) == "cancelled"

    attached, session = queued(lab)
    attached.stop(signal.SIGKILL)
    other = lab.another_laptop()
    assert re.search(f"{session} .*waiting", other.run("jobs").out)
    assert other.run("cancel", session).out.endswith("cancelled\n")
    assert lab.state(session) == "cancelled" and lab.laptop.sessions("gpu1", "gpu2") == []


def test_it_asks_of_a_host_what_a_job_asks(lab: Lab) -> None:
    """And has its part of a GPU beside a job with another."""
    share = ("--on", "gpu2", "--gpu-share", "4G", "--cpus", "0")
    job = lab.one(*share, "--", "sleep", "1000")
    words = (*share, "--priority", "-1", "--image", SESSION_IMAGE, "--no-vscode", "--name", "half", "--detach")
    lab.run("session", "--queue", "default", *words, timeout=300)
    [session] = lab.laptop.sessions("gpu2")
    assert session["gpus"] == lab.until(job, "started")["gpus"]
    assert lab.laptop.sessions("gpu1") == []
    lab.run("session", "shutdown", "half")


def test_a_colleague_joins_it_by_its_owner_s_word(lab: Lab) -> None:
    bob = lab.another_laptop("bob")
    bob.laptop.env["XDG_RUNTIME_DIR"] = str(short := Path(tempfile.mkdtemp(prefix="mb")))  # or it joins ada's tunnels
    mine = lab.laptop.attach("session", "--queue", "default", "--gpus", "0", "--image", SESSION_IMAGE, "--no-vscode")
    block = mine.block()
    bob.run("attach", block["id"], code=6)
    lab.run("session", "share", block["id"], "bob")
    theirs = bob.laptop.attach("attach", block["id"])
    with Notebook(theirs.block()["jupyter"]) as notebook:
        assert notebook.run("1 + 1") == "2"
    lab.run("session", "shutdown", block["id"])
    theirs.wait_for("of yours, or shared with you, is running")
    assert theirs.process.wait(60) == 0
    shutil.rmtree(short, ignore_errors=True)


def test_its_extension_files_come_along(lab: Lab, tmp_path: Path) -> None:
    file = extension(tmp_path / "tiny-0.0.7.vsix")
    sources = ("--sources", "/share/sources", "--vscode-version", CODE_SERVER)
    words = ("--gpus", "0", "--image", SESSION_IMAGE, *sources, "--vscode-extensions", str(file), "--name", "tinied")
    lab.run("session", "--queue", "default", *words, "--detach", timeout=300)
    config = str(lab.laptop.home / ".local/state/mlbox/ssh_config")
    argv = ("ssh", "-F", config, "-o", "BatchMode=yes", "tinied", "ls /opt/mlbox/extensions")
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert "mlbox-lab.tiny-0.0.7" in done.stdout, done
    lab.run("session", "shutdown", "tinied")


def test_on_a_host_that_this_laptop_calls_otherwise(lab: Lab) -> None:
    """Than lab.yaml does: its names lead nowhere here, and the laptop's own are asked who has the session."""
    other = lab.another_laptop()
    config = other.laptop.home / "ssh_config"
    renamed = re.sub(r"(?m)^(Host .*)", lambda line: re.sub(r"\bgpu(\d)\b", r"my-\1", line[0]), SSH_CONFIG.read_text())
    config.write_text(renamed)
    other.laptop.env["MLBOX_SSH_CONFIG"] = str(config)
    other.asks("my-1", "my-2")
    words = ("--on", "gpu2", "--gpus", "0", "--image", SESSION_IMAGE, "--no-jupyter", "--no-vscode")
    attached = other.laptop.attach("session", "--queue", "default", *words, "--name", "renamed", "--detach")
    attached.wait_for("is in line")
    other.run("queue", "process", "--host", "my-2")  # as its cron would
    assert attached.block()["name"] == "renamed" and attached.process.wait(60) == 0
    [session] = other.laptop.sessions("my-2")
    assert session["name"] == "renamed"
    other.run("session", "shutdown", "renamed")
