"""Images as people make them: whose they are, what they lack, and what they start by themselves."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from labbox import BUSYBOX_IMAGE, MUSL_IMAGE, NOPYTHON_IMAGE, PYTHON_IMAGE, SESSION_IMAGE, Laptop, as_root, ssh
from notebook import Notebook

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
PLAIN = ("--gpus", "0", "--no-vscode")


def made(name: str, base: str, script: str, *changes: str, options: str = "") -> Iterator[str]:
    """An image: what the script makes of `base`, in a container with these options."""
    image = f"lab-kind/{name}:1"
    flags = " ".join(f"--change '{change}'" for change in changes)
    run = f"docker run --name kind-{name} {options} --user 0:0 --entrypoint sh {base} -c '{script}'"
    as_root(HOST, "sh", "-c", f"{run} && "
            f"docker commit {flags} kind-{name} {image}; docker rm kind-{name}")  # fmt: skip
    try:
        yield image
    finally:
        layers = "docker images --format '{{.Repository}}:{{.Tag}}' --filter label=mlbox.layer"
        as_root(HOST, "sh", "-c", f"{layers} | xargs -r docker rmi >/dev/null; docker rmi {image}")


@pytest.fixture(scope="module")
def roots() -> Iterator[str]:
    """Everything in it that runs is closed to all but root, whose password is locked, as in Red Hat's images."""
    locked = "sed -i s/^root:[^:]*/root:!locked/ /etc/shadow"
    yield from made("roots", SESSION_IMAGE, f"chmod 700 /usr/bin/python3.11 /usr/local /opt; {locked}", "USER root")


@pytest.fixture(scope="module")
def closed() -> Iterator[str]:
    yield from made("closed", SESSION_IMAGE, "chmod 700 /usr", "USER root")


@pytest.fixture(scope="module")
def owned() -> Iterator[str]:
    """A user of its own, as many images of frameworks have."""
    script = "useradd -m -u 5000 app && touch /home/app/file"
    yield from made("owned", SESSION_IMAGE, script, "USER app", "WORKDIR /home/app", "ENV HOME=/home/app")


@pytest.fixture(scope="module")
def exiting() -> Iterator[str]:
    yield from made("exiting", SESSION_IMAGE, "true", 'ENTRYPOINT ["/bin/false"]', 'CMD ["--serve"]')


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """As images of servers are: asked for its health, and ended by a signal of its program's own."""
    yield from made(
        "served", SESSION_IMAGE, "true", options="--health-cmd true --health-interval 1s --stop-signal QUIT"
    )


@pytest.fixture(scope="module")
def outdated() -> Iterator[str]:
    """One of its sources of packages is no more."""
    gone = 'echo "deb file:/gone none main" >/etc/apt/sources.list.d/gone.list'
    yield from made("outdated", PYTHON_IMAGE, gone)


@pytest.fixture(scope="module")
def environed() -> Iterator[str]:
    """Its Python is in a virtual environment, as uv and Poetry make them."""
    script = "python3 -m venv --without-pip /opt/app && touch /opt/app/lib/python3.11/site-packages/theirs.py"
    yield from made("environed", SESSION_IMAGE, script, "ENV PATH=/opt/app/bin:/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture(scope="module")
def nosftp() -> Iterator[str]:
    yield from made("nosftp", SESSION_IMAGE, "dpkg -P --force-depends openssh-sftp-server")


@pytest.fixture(scope="module")
def musl() -> Iterator[str]:
    """As Alpine's: also with the link by which its libc6-compat lets some of glibc's programs run."""
    yield from made("musl", MUSL_IMAGE, "ln -s ld-musl-x86_64.so.1 /lib/ld-linux-x86-64.so.2")


def inside(laptop: Laptop, name: str, command: str) -> str:
    argv = ["ssh", "-F", str(laptop.home / ".local/state/mlbox/ssh_config"), "-o", "BatchMode=yes", name, command]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_sftp_works(laptop: Laptop, name: str, folder: Path) -> None:
    (folder / "file").write_bytes(b"bytes")
    (folder / "batch").write_text(f"put {folder}/file by-sftp\nget by-sftp {folder}/back\nrm by-sftp\n")
    config = laptop.home / ".local/state/mlbox/ssh_config"
    subprocess.run(("sftp", "-F", str(config), "-b", str(folder / "batch"), name), check=True, timeout=60)
    assert (folder / "back").read_bytes() == b"bytes"


@pytest.mark.parametrize("kind", ["roots", "closed"])
def test_roots_own_image_is_refused_to_others_before_anything_starts(
    laptop: Laptop, request: pytest.FixtureRequest, kind: str
) -> None:
    image = request.getfixturevalue(kind)
    refused = laptop.run("session", HOST, "--image", image, *PLAIN, "--detach")
    assert refused.code == 3, refused.all
    said = [line for line in refused.err.splitlines() if line.startswith("mlbox: ")]
    why = "its files are closed to everybody but root (--user root would do)"
    assert said == [f"mlbox: {image} can't run a session: {why}"]


@pytest.mark.parametrize("kind", ["roots", "closed"])
def test_roots_own_image_is_worked_in_as_root(laptop: Laptop, request: pytest.FixtureRequest, kind: str) -> None:
    image = request.getfixturevalue(kind)
    session = laptop.attach("session", HOST, "--image", image, "--user", "root", *PLAIN)
    block = session.block()
    assert "jupyter" in block
    assert inside(laptop, block["name"], "id -un; stat -c %a /usr").split() == [
        "root", "700" if kind == "closed" else "755",
    ]  # fmt: skip
    assert session.stop() == 0
    words = ("--image", image, "--user", "root", "--gpus", "0")
    job = laptop.run("run", "--host", HOST, "--no-code", *words, "--", "sh", "-c", "id -un")
    assert job.code == 0 and job.out.endswith("\nroot\n"), job.all


def test_an_image_with_a_user_of_its_own_is_worked_in_as_oneself(laptop: Laptop, owned: str) -> None:
    session = laptop.attach("session", HOST, "--image", owned, *PLAIN)
    block = session.block()
    assert inside(laptop, block["name"], "id -un; id -u; echo $HOME; pwd").split() == [
        "ada", "1001", "/home/ada", "/workspace",
    ]  # fmt: skip
    assert "jupyter" in block
    assert session.stop() == 0
    job = laptop.run("run", "--host", HOST, "--no-code", "--image", owned, "--gpus", "0", "--", "id", "-un")
    assert job.out.endswith("\nada\n"), job.all


def test_an_entrypoint_that_exits_is_not_asked(laptop: Laptop, exiting: str) -> None:
    session = laptop.attach("session", HOST, "--image", exiting, *PLAIN)
    assert "jupyter" in session.block()
    assert session.stop() == 0
    job = laptop.run("run", "--host", HOST, "--no-code", "--image", exiting, "--gpus", "0", "--", "echo", "ran")
    assert job.code == 0 and job.out.endswith("\nran\n")


def test_a_source_of_packages_that_is_gone_is_no_obstacle(laptop: Laptop, outdated: str) -> None:
    session = laptop.attach("session", HOST, "--image", outdated, *PLAIN, "--no-jupyter")
    assert inside(laptop, session.block()["name"], "command -v rsync") == "/usr/bin/rsync"
    assert session.stop() == 0


def test_what_is_added_sees_the_image_s_own_environment(laptop: Laptop, environed: str) -> None:
    added = ("--packages", "toolz", "--no-jupyter")
    session = laptop.attach("session", HOST, "--image", environed, *PLAIN, *added)
    shown = inside(laptop, session.block()["name"], "python -c 'import theirs, toolz; print(theirs.__file__)'")
    assert shown == "/opt/app/lib/python3.11/site-packages/theirs.py"
    assert session.stop() == 0


def test_an_image_s_own_jupyter_has_its_pages_with_packages_added(laptop: Laptop) -> None:
    session = laptop.attach("session", HOST, "--image", SESSION_IMAGE, *PLAIN, "--packages", "toolz")
    url = session.block()["jupyter"]
    with urllib.request.urlopen(url, timeout=60) as page:
        assert "jupyter-config-data" in page.read().decode()
    with Notebook(url) as notebook:
        assert notebook.run("import toolz; toolz.__name__") == "'toolz'"
    assert session.stop() == 0


def test_an_ssh_server_without_sftp_gets_it(laptop: Laptop, nosftp: str, tmp_path: Path) -> None:
    session = laptop.attach("session", HOST, "--image", nosftp, *PLAIN, "--no-jupyter")
    assert_sftp_works(laptop, session.block()["name"], tmp_path)
    assert session.stop() == 0


def test_what_an_image_says_of_its_own_server_is_not_for_the_guest(laptop: Laptop, served: str) -> None:
    def told(kind: str, name: str) -> list[str]:
        parts = ("HEALTHCHECK={{{{.{0}.Healthcheck}}}}", "STOPSIGNAL={{{{.{0}.StopSignal}}}}")
        shown = " ".join(part.format("Config") for part in parts)
        return ssh(HOST, f"docker {kind} inspect --format '{shown}' {name}").split("STOPSIGNAL=")

    assert told("image", served)[0] != "HEALTHCHECK=<nil> " and told("image", served)[1].strip() == "QUIT"
    session = laptop.attach("session", HOST, "--image", served, *PLAIN)
    id_ = session.block()["id"]
    (container,) = ssh(HOST, f"docker ps -q --filter label=mlbox.session={id_}").split()
    assert told("container", container)[1].strip() == "SIGTERM"
    assert ssh(HOST, f"docker inspect --format '{{{{json .State.Health}}}}' {container}").strip() == "null"
    assert session.stop() == 0


def test_musl_and_busybox(laptop: Laptop, musl: str, tmp_path: Path) -> None:
    """It has no package manager either, so all but the Python packages is its own."""
    session = laptop.attach("session", HOST, "--image", musl, "--gpus", "0")
    block = session.block()
    assert block["vscode"] == "not there: code-server has no build for musl (Alpine) images"
    shown = inside(laptop, block["name"], "id -un; pwd; echo $SHELL; readlink /proc/$$/exe; command -v python")
    assert shown.split() == [
        "ada", "/workspace", "/bin/sh", "/bin/busybox", "/opt/mlbox/venv/bin/python",
    ]  # fmt: skip
    with Notebook(block["jupyter"]) as notebook:
        assert "linux-musl" in notebook.run("import sysconfig; sysconfig.get_config_var('SOABI')")
    assert_sftp_works(laptop, block["name"], tmp_path)
    assert session.stop() == 0


def test_musl_and_busybox_as_root(laptop: Laptop, musl: str) -> None:
    session = laptop.attach("session", HOST, "--image", musl, "--user", "root", *PLAIN, "--no-jupyter")
    assert inside(laptop, session.block()["name"], "id -un; echo $HOME").split() == ["root", "/root"]
    assert session.stop() == 0


@pytest.mark.parametrize("image", [BUSYBOX_IMAGE, MUSL_IMAGE, NOPYTHON_IMAGE, PYTHON_IMAGE])
def test_a_job_needs_nothing_in_its_image_but_a_shell(laptop: Laptop, image: str) -> None:
    """Nothing is added to it, so nothing is fetched."""
    layers = ssh(HOST, "docker images -q mlbox-layer")
    job = laptop.run("run", "--host", HOST, "--no-code", "--image", image, "--gpus", "0", "--", "sh", "-c", "echo ran")
    assert job.code == 0 and job.out.endswith("\nran\n"), job.all
    assert ssh(HOST, "docker images -q mlbox-layer") == layers
