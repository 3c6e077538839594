"""Images as they are: what they lack is added once, in layers keyed by their content."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from labbox import (
    BUSYBOX_IMAGE,
    NOPYTHON_IMAGE,
    PYTHON_IMAGE,
    SESSION_IMAGE,
    Attached,
    Laptop,
    as_root,
    left_behind,
    ssh,
)
from labkit.inventory import CODE_SERVER
from notebook import Notebook
from vsix import extension

from mlbox.core import layer, release

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2")]

HOST = "gpu2"
JUPYTERLAB = "4.3.8"
VSCODE = ("--sources", "/share/sources", "--vscode-version", CODE_SERVER)
ARCHIVE = f"code-server-{CODE_SERVER}-linux-amd64.tar.gz"
INIT = """\
#!/bin/sh
set -eu
echo ran >>/etc/init-ran
id -u >/etc/init-user
command -v python >/etc/init-python
"""
LAYERS = "docker images --format '{{.ID}}' mlbox-layer | sort -u"


@pytest.fixture(scope="module", autouse=True)
def no_layers() -> Iterator[None]:
    """What earlier runs built is not there; what these build does not stay."""
    forget = "docker images --format '{{.Repository}}:{{.Tag}}' mlbox-layer | xargs -r docker rmi >/dev/null"
    ssh(HOST, forget)
    yield
    ssh(HOST, forget)


def inside(laptop: Laptop, name: str, command: str) -> str:
    argv = ["ssh", "-F", str(laptop.home / ".local/state/mlbox/ssh_config"), "-o", "BatchMode=yes", name, command]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def image_of(session: str) -> str:
    form = shlex.quote("{{.Image}}")
    return ssh(HOST, f"docker inspect --format {form} $(docker ps -aq --filter label=mlbox.session={session})").strip()


@dataclass(frozen=True)
class Built:
    laptop: Laptop
    arguments: tuple[str, ...]
    session: Attached
    block: dict[str, str]
    image: str


@pytest.fixture(scope="class")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A session in the bare Python image, with everything added that can be."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "requirements.txt").write_text("toolz>=0.12\n")
    (folder / "init.sh").write_text(INIT)
    laptop = Laptop(folder / "home")
    arguments = (
        "session", HOST, "--image", PYTHON_IMAGE, "--gpus", "1", *VSCODE, "--packages", "tabulate,six",
        "--jupyter-version", JUPYTERLAB,
        "--requirements", str(folder / "requirements.txt"), "--init-script", str(folder / "init.sh"),
        "--vscode-extensions", str(extension(folder / "tiny-0.0.7.vsix")),
    )  # fmt: skip
    try:
        session = laptop.attach(*arguments)
        block = session.block()
        yield Built(laptop, arguments, session, block, image_of(block["id"]))
    finally:
        laptop.close()
        for left in laptop.sessions(HOST):
            laptop.run("session", "shutdown", str(left["id"]), "--host", HOST)
    assert left_behind(HOST) == []


class TestABuiltLayer:
    @pytest.fixture(autouse=True)
    def clean_hosts(self) -> None:
        """Not between these tests: fixture `built` ends its sessions and looks after them."""

    def test_its_building_is_told_step_by_step(self, built: Built) -> None:
        steps = [
            line.strip() for line in built.session.lines if line.strip()[:3] in ("1/5", "2/5", "3/5", "4/5", "5/5")
        ]
        assert [step.split()[1] for step in steps] == ["installing", "installing", "adding", "adding", "running"]
        assert "openssh-server" in steps[0]
        assert all(word in steps[1] for word in ("jupyterlab", "tabulate", "six", "requirements"))
        assert ARCHIVE in steps[2] and "tiny-0.0.7.vsix" in steps[3]
        assert "saving the layer" in built.session.text

    def test_all_services_are_there(self, built: Built) -> None:
        assert {"jupyter", "vscode", "ssh"} <= set(built.block)

    def test_they_are_of_the_versions_asked_for(self, built: Built) -> None:
        assert JUPYTERLAB != layer.JUPYTERLAB and CODE_SERVER != release.CODE_SERVER  # nor what would be taken anyway
        with Notebook(built.block["jupyter"]) as notebook:
            assert notebook.run("import jupyterlab; jupyterlab.__version__") == f"'{JUPYTERLAB}'"
        told = inside(built.laptop, built.block["name"], "/opt/mlbox/code-server/bin/code-server --version")
        assert told.split()[0] == CODE_SERVER

    def test_packages_are_importable(self, built: Built) -> None:
        with Notebook(built.block["jupyter"]) as notebook:
            assert notebook.run("import tabulate, six, toolz; toolz.first('abc')") == "'a'"
            assert notebook.run("import sys; sys.prefix") == "'/opt/mlbox/venv'"
        assert inside(built.laptop, built.block["name"], "python3 -c 'import tabulate, toolz; print(6 * 7)'") == "42"

    def test_the_init_script_ran_once_as_root(self, built: Built) -> None:
        shown = inside(built.laptop, built.block["name"], "cat /etc/init-ran /etc/init-user /etc/init-python")
        assert shown.split() == ["ran", "0", "/opt/mlbox/venv/bin/python"]

    def test_the_extension_is_installed(self, built: Built) -> None:
        listed = inside(built.laptop, built.block["name"], "ls /opt/mlbox/extensions; cat /opt/mlbox/extensions/*.json")
        assert "mlbox-lab.tiny-0.0.7" in listed
        argv = "/opt/mlbox/code-server/bin/code-server --extensions-dir /opt/mlbox/extensions --list-extensions"
        assert "mlbox-lab.tiny" in inside(built.laptop, built.block["name"], argv)

    def test_the_user_inside_may_add_packages_of_their_own_home_but_not_change_the_layer(self, built: Built) -> None:
        assert inside(
            built.laptop, built.block["name"], "id -u; test -w /opt/mlbox/venv && echo writable || echo not"
        ) == ("1001\nnot")

    def test_the_second_start_takes_the_same_layer(self, built: Built) -> None:
        layers = ssh(HOST, LAYERS)
        again = built.laptop.attach(*built.arguments, "--new")
        block = again.block()
        assert image_of(block["id"]) == built.image
        assert not [line for line in again.lines if "installing" in line or "adding" in line or "saving" in line]
        assert ssh(HOST, LAYERS) == layers and len(layers.split()) == 1
        assert inside(built.laptop, block["name"], "cat /etc/init-ran") == "ran"
        assert again.stop() == 0

    def test_the_builder_is_gone(self, built: Built) -> None:
        assert ssh(HOST, "docker ps -aq --filter name=mlbox-builder") == ""
        assert ssh(HOST, "ls -d /tmp/mlbox-layer-* 2>/dev/null || true") == ""

    def test_the_image_itself_is_unchanged(self, built: Built) -> None:
        assert ssh(HOST, f"docker run --rm {PYTHON_IMAGE} sh -c 'ls /opt; ls /etc/init-ran 2>/dev/null; true'") == ""
        form = shlex.quote("{{json .Config.Cmd}} {{json .Config.Entrypoint}} {{.Config.User}}")
        configured, layered = (ssh(HOST, f"docker inspect --format {form} {i}") for i in (PYTHON_IMAGE, built.image))
        assert json.loads(layered.split(" ")[0]) == json.loads(configured.split(" ")[0]) == ["/bin/bash"]


def test_an_image_without_python_gets_one(laptop: Laptop) -> None:
    session = laptop.attach("session", HOST, "--image", NOPYTHON_IMAGE, "--gpus", "0", "--no-vscode")
    block = session.block()
    session.wait_for(r"installing python3, python3-venv")
    with Notebook(block["jupyter"]) as notebook:
        assert notebook.run("import os, sys; os.getuid(), sys.version_info >= (3, 9)") == "(1001, True)"
    assert inside(laptop, block["name"], "whoami") == "ada"
    assert session.stop() == 0


def test_an_image_that_can_take_no_python_is_refused(laptop: Laptop) -> None:
    refused = laptop.run("session", HOST, "--image", BUSYBOX_IMAGE, "--gpus", "0", "--detach")
    assert refused.code == 3, refused.all
    said = [line for line in refused.err.splitlines() if line.startswith("mlbox: ")]
    assert said == [
        f"mlbox: {BUSYBOX_IMAGE} can't run a session: it has no python3, "
        "and no package manager (apt-get, apk, dnf) that could add one"
    ]


@pytest.fixture
def damaged() -> Iterator[str]:
    """A folder of sources whose archive is not what its SHA256SUMS says."""
    folder = "/home/ada/damaged"
    as_root(HOST, "sh", "-c", f"mkdir -p {folder} && echo not an archive >{folder}/{ARCHIVE} && "
            f"cp /share/sources/SHA256SUMS {folder}/ && chown -R ada: {folder}")  # fmt: skip
    yield folder
    ssh(HOST, f"rm -rf {folder}")


def test_a_damaged_archive_is_refused_where_vs_code_was_insisted_on(laptop: Laptop, damaged: str) -> None:
    wanted = ("--sources", damaged, "--vscode-version", CODE_SERVER, "--gpus", "0", "--detach")
    refused = laptop.run("session", HOST, "--image", SESSION_IMAGE, *wanted, "--vscode")
    assert refused.code == 7, refused.all
    assert f"{ARCHIVE} is damaged or not what it should be" in refused.err
    assert f"remove or replace {damaged}/{ARCHIVE}" in refused.err
    assert laptop.sessions(HOST) == []


def test_a_damaged_archive_costs_vs_code_only_where_it_was_not(laptop: Laptop, damaged: str) -> None:
    session = laptop.attach(
        "session", HOST, "--image", SESSION_IMAGE, "--sources", damaged, "--vscode-version", CODE_SERVER, "--gpus", "0"
    )
    block = session.block()
    assert block["vscode"].startswith("not there:") and "damaged or not what it should be" in block["vscode"]
    assert f"remove or replace {damaged}/{ARCHIVE}" in block["vscode"]
    with Notebook(block["jupyter"]) as notebook:
        assert notebook.run("6 * 7") == "42"
    assert session.stop() == 0


@pytest.fixture
def wheels(tmp_path: Path) -> Iterator[str]:
    """A folder of sources with one package, which no index has."""
    about = "only_here-1.0.dist-info"
    package = {
        "only_here.py": "where = 'the lab'\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: only-here\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*package, f"{about}/RECORD"))
    with zipfile.ZipFile(tmp_path / "whl", "w") as file:
        for name, content in {**package, f"{about}/RECORD": record}.items():
            file.writestr(name, content)
    folder, name = "/home/ada/wheels", "only_here-1.0-py3-none-any.whl"
    packed = base64.b64encode((tmp_path / "whl").read_bytes()).decode()
    ssh(HOST, f"mkdir {folder} && cd {folder} && echo {packed} | base64 -d >{name} && sha256sum *.whl >SHA256SUMS")
    yield folder
    ssh(HOST, f"rm -rf {folder}")


def test_a_lab_without_internet_has_its_packages_from_a_folder(laptop: Laptop, wheels: str) -> None:
    words = ("session", HOST, "--gpus", "0", "--sources", wheels, "--no-jupyter", "--no-vscode", "--detach", "--fresh")
    started = laptop.run(*words, "--image", SESSION_IMAGE, "--packages", "only-here", "--name", "offline")
    assert started.code == 0, started.all
    assert inside(laptop, "offline", "python -c 'import only_here; print(only_here.where)'") == "the lab"
    assert laptop.run("session", "shutdown", "offline").code == 0
    refused = laptop.run(*words, "--image", SESSION_IMAGE, "--packages", "einops")  # which an index has
    assert refused.code == 7 and "No matching distribution found for einops" in refused.err, refused.all
    ssh(HOST, f"echo more >>{wheels}/only_here-1.0-py3-none-any.whl")
    refused = laptop.run(*words, "--image", SESSION_IMAGE, "--packages", "only-here==1.0")
    assert refused.code == 7 and "is damaged or not what it should be" in refused.err, refused.all
    assert laptop.sessions(HOST) == []


def test_sources_that_lack_the_version_say_what_they_have(laptop: Laptop) -> None:
    refused = laptop.run(
        "session", HOST, "--image", SESSION_IMAGE, "--sources", "/share/sources", "--vscode-version", "1.2.3",
        "--vscode", "--gpus", "0", "--detach",
    )  # fmt: skip
    assert refused.code == 7, refused.all
    assert f"it holds {ARCHIVE}: choose with --vscode-version" in refused.err
