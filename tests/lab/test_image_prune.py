"""What is kept on a host for another time: told, and removed where nothing uses it, and never where something does."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from labbox import SESSION_IMAGE, Laptop, ssh

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2", "noeng")]

Json = dict[str, Any]
HOST, BARE = "gpu2", "noeng"
SIX = "import six, time; print(six.__name__, flush=True); time.sleep(600)"
LAYERED = ("--image", SESSION_IMAGE, "--no-vscode", "--packages", "six", "--gpus", "0", "--new", "--detach")
DATA = "~/.local/share/mlbox/users/ada"


def things(laptop: Laptop, host: str, kind: str, *words: str, what: str = "things") -> dict[str, Json]:
    done = laptop.run("image", *(words or ("list",)), host, "--json", *(("-y",) if "prune" in words else ()))
    assert done.code == 0, done.all
    found = done.json()
    assert isinstance(found, list)
    return {thing["name"]: thing for thing in found[0][what] if thing["kind"] == kind}


def prune(laptop: Laptop, host: str, kind: str, *words: str) -> set[str]:
    return set(things(laptop, host, kind, "prune", *(words or ("--all",)), what="removed"))


@pytest.fixture(autouse=True)
def nothing_kept(laptop: Laptop) -> Iterator[None]:
    for host in (HOST, BARE):
        laptop.run("image", "prune", "--all", "-y", host)
    yield


def test_a_layer_stays_while_a_session_runs_in_it_and_then_goes(laptop: Laptop) -> None:
    assert things(laptop, HOST, "layer") == {}
    started = laptop.run("session", HOST, *LAYERED, "--name", "layered")
    assert started.code == 0, started.all
    [(name, layer)] = things(laptop, HOST, "layer").items()
    assert layer["stays"] == "in use" and layer["about"] == f"docker {SESSION_IMAGE}"
    whole, base = (
        int(ssh(HOST, f"docker image inspect --format '{{{{.Size}}}}' {image}")) for image in (name, SESSION_IMAGE)
    )
    assert layer["size"] == whole - base > 0
    assert prune(laptop, HOST, "layer") == set()

    keeper = json.loads(ssh(HOST, "cat /tmp/mlbox-1001/*/keeper.pid"))["pid"]
    ssh(HOST, f"kill -KILL {keeper}; while kill -0 {keeper} 2>/dev/null; do sleep 0.05; done")
    assert prune(laptop, HOST, "layer") == set()  # its keeper's lock is gone, the session is not

    assert laptop.run("session", "shutdown", "layered").code == 0
    assert things(laptop, HOST, "layer")[name]["stays"] == ""
    assert prune(laptop, HOST, "layer", "--older-than", "30d") == set()
    assert prune(laptop, HOST, "layer", "--all", "--dry-run") == {name}
    said = laptop.run("image", "prune", "--all", "-y", HOST)
    assert re.search(r"1 thing, [\d.]+ [kM]B freed", said.out) and name in said.out, said.all
    assert re.search(r"/var/lib/docker: .* of .* free", said.out)
    assert things(laptop, HOST, "layer") == {} and ssh(HOST, "docker images -q mlbox-layer") == ""


def test_sessions_that_start_while_others_prune(laptop: Laptop) -> None:
    """Each finds its layer whole, or builds it again."""
    done = threading.Event()

    def keep_pruning() -> None:
        while not done.is_set():
            assert laptop.run("image", "prune", "--all", "-y", HOST).code == 0

    pruner = threading.Thread(target=keep_pruning)
    pruner.start()
    try:
        for _ in range(3):
            started = laptop.run("session", HOST, *LAYERED, "--name", "raced")
            assert started.code == 0, started.all
            assert laptop.run("session", "shutdown", "raced").code == 0
    finally:
        done.set()
        pruner.join()


def test_an_environment_without_a_container(laptop: Laptop) -> None:
    job = ("submit", "--host", BARE, "--no-code", "--runtime", "process", "--packages", "six", "--gpus", "0", "--json")
    submitted = laptop.run(*job, "--", "python3", "-c", SIX)
    id_ = json.loads(submitted.out)["jobs"][0]["id"]
    follow = laptop.attach("logs", "-f", id_, "--host", BARE)
    follow.wait_for("^six$")
    [(name, environment)] = things(laptop, BARE, "environment").items()
    assert environment["stays"] == "in use" and environment["size"] > 1 << 20
    assert prune(laptop, BARE, "environment") == set()
    assert laptop.run("cancel", id_, "--host", BARE).code == 0
    follow.process.wait(60)
    assert prune(laptop, BARE, "environment") == {name}
    assert ssh(BARE, f"ls -A {DATA}/environments") == ""


def test_the_code_of_jobs(laptop: Laptop) -> None:
    project = laptop.home / "project"
    project.mkdir()
    (project / "train.py").write_text(f"print({time.time()})\n")
    here = ("--host", HOST)
    assert laptop.run("run", *here, "--no-code", "--gpus", "0", "--", "true").code == 0  # which makes the queue
    assert laptop.run("queue", "pause", "default", *here).code == 0
    try:
        job = ("submit", *here, "--code", str(project), "--gpus", "0", "--json", "--", "python3", "train.py")
        before = set(things(laptop, HOST, "code"))
        id_ = json.loads(laptop.run(*job).out)["jobs"][0]["id"]
        assert laptop.run("cancel", id_, *here).code == 0
        [(code, new)] = [one for one in things(laptop, HOST, "code").items() if one[0] not in before]
        assert new["stays"] == "it has just come"
        waiting = json.loads(laptop.run(*job).out)["jobs"][0]["id"]
        ssh(HOST, f"touch -d '40 days ago' {DATA}/code/{code}.tgz")
        assert things(laptop, HOST, "code")[code]["stays"] == "a job needs it"
        assert code not in prune(laptop, HOST, "code")
        assert laptop.run("cancel", waiting, *here).code == 0
        assert code in prune(laptop, HOST, "code", "--older-than", "30d")
        refused = laptop.run("retry", waiting, *here)
        assert refused.code == 3 and "is not kept any more" in refused.err, refused.all
    finally:
        laptop.run("queue", "resume", "default", *here)


def test_mlboxs_own_files_of_other_versions(laptop: Laptop) -> None:
    names = [f"mlbox-{letter * 64}.pyz" for letter in "abc"]
    ssh(HOST, "cd ~/.cache/mlbox; for n in " + " ".join(names) + "; do echo x >$n; touch -d '40 days ago' $n; done; "
              f"touch {names[2]}; echo '0 0 1 1 * : ~/.cache/mlbox/{names[1]}' | crontab -")  # fmt: skip
    try:
        found = things(laptop, HOST, "program")
        assert [found[name]["stays"] for name in names] == ["", "in use", "it has just come"]
        assert "this one" in [thing["stays"] for thing in found.values()]
        removed = prune(laptop, HOST, "program", "--older-than", "30d")
        assert names[0] in removed and not removed & set(names[1:])
    finally:
        ssh(HOST, "crontab -r; cd ~/.cache/mlbox; rm -f " + " ".join(names))


def test_bad_words_and_a_host_that_does_not_answer(laptop: Laptop) -> None:
    bad = laptop.run("image", "prune", "--older-than", "soon", HOST)
    assert bad.code == 2 and "30d" in bad.err
    one_down = laptop.run("image", "list", HOST, "unreachable")
    assert one_down.code == 4 and "unreachable" in one_down.out and "free" in one_down.out
