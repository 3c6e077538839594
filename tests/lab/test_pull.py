"""Images from a registry: how far a pull is, a pull that is stopped, and a registry that wants a login."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from labbox import Laptop, ssh
from registry import OPEN, PASSWORD, PRIVATE, USER, Registry, registry
from terminal import at_terminal

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu3")]

HOST = "gpu3"
RATE = 2 << 20  # bytes per second: 12 MB take a while
ENGINES = ["docker", "podman"]
LOGIN = {"docker": "docker login", "podman": "podman login --authfile ~/.config/containers/auth.json"}


@pytest.fixture(scope="module")
def pulls() -> Iterator[Registry]:
    with registry(HOST) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_pulled() -> Iterator[None]:
    yield
    for engine in ENGINES:
        tags = f"{engine} images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' | grep ^localhost:"
        ssh(HOST, f"{tags} | xargs -r {engine} rmi -f >/dev/null; {engine} logout {PRIVATE} >/dev/null 2>&1; true")
    ssh(HOST, "rm -f ~/.config/containers/auth.json")


def words(engine: str, image: str) -> tuple[str, ...]:
    return ("session", HOST, "--runtime", engine, "--image", image, "--gpus", "0")


@pytest.mark.parametrize("engine", ENGINES)
def test_how_far_it_is_and_what_is_left(laptop: Laptop, pulls: Registry, engine: str) -> None:
    image = pulls.push(OPEN, f"shown-{engine}:1")
    pulls.rate(RATE)
    with at_terminal(laptop, *words(engine, image)) as terminal:
        terminal.wait_for("image must be pulled")
        terminal.wait_for(rf"pulling {image}.*: \d of \d layers, \d+ of \d+ MB, \d+ s left", 120)
        pulls.rate(1 << 30)
        terminal.wait_for("it has no python3, and no package manager", 120)  # it is here, and was looked at
        assert terminal.end() == 3
    assert ssh(HOST, f"{engine} image inspect --format here {image}").strip() == "here"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pull_that_is_stopped_leaves_nothing_and_can_be_made_again(
    laptop: Laptop, pulls: Registry, engine: str
) -> None:
    image = pulls.push(OPEN, f"stopped-{engine}:1")
    pulls.rate(RATE)
    with at_terminal(laptop, *words(engine, image)) as terminal:
        terminal.wait_for(rf"pulling {image}.*: \d of \d layers, [1-9]\d* of", 120)
        pulls.rate(0)
        terminal.interrupt()
        terminal.wait_for("stopped; nothing was left behind")
        assert terminal.end() == 130
    assert ssh(HOST, f"pgrep -u ada -f '{engine} [p]ull' || true") == ""
    assert ssh(HOST, f"{engine} image inspect {image} 2>/dev/null || true").strip() in ("", "[]")
    pulls.rate(1 << 30)
    again = laptop.run(*words(engine, image), "--detach")
    assert again.code == 3 and "it has no python3" in again.err, again.all


@pytest.mark.parametrize("engine", ENGINES)
def test_a_login_is_the_hosts_and_goes_nowhere(laptop: Laptop, pulls: Registry, engine: str) -> None:
    ssh("gpu3-root", f"docker login -u {USER} -p {PASSWORD} {PRIVATE} 2>/dev/null")
    image = pulls.push(PRIVATE, f"closed-{engine}:1")
    ssh("gpu3-root", f"docker logout {PRIVATE}")

    refused = laptop.run(*words(engine, image), "--detach")
    assert refused.code == 3, refused.all
    assert f"log in on {HOST} as ada: {LOGIN[engine]} {PRIVATE}" in refused.err

    ssh(HOST, f"mkdir -p ~/.config/containers; {LOGIN[engine]} -u {USER} -p {PASSWORD} {PRIVATE} 2>/dev/null")
    job = ("run", "--host", HOST, "--no-code", "--runtime", engine, "--image", image, "--gpus", "0", "--")
    done = laptop.run(*job, "sh", "-c", "wc -c /data-1; cat ~/.docker/config.json ~/.config/containers/auth.json")
    assert f"{6 << 20} /data-1" in done.out, done.all
    assert done.out.count("No such file") == 2
    assert ssh(HOST, f"grep -rl {PASSWORD} ~/.local/share/mlbox /tmp/mlbox-1001 2>/dev/null || true") == ""


def test_a_registry_that_is_not_there_is_told_from_one_that_wants_a_login(laptop: Laptop) -> None:
    refused = laptop.run(*words("docker", "localhost:5999/none:1"), "--detach")
    assert refused.code == 3 and f"{HOST} does not reach the registry" in refused.err, refused.all
    assert "log in" not in refused.err


def test_podman_takes_a_name_without_a_registry_as_docker_does(laptop: Laptop) -> None:
    refused = laptop.run(*words("podman", "lab-nobody/none:1"), "--detach")
    assert refused.code == 3 and "docker.io" in refused.err and "short-name" not in refused.err, refused.all
