"""One contract for all that a session or a job can run in, each on a real host of its own."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from labbox import PYTHON_IMAGE, Attached, Laptop, Result, as_root, left_behind, ssh
from labkit import gpus as false_gpus
from labkit.inventory import CODE_SERVER, HOSTS
from notebook import Notebook

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu2", "gpu3", "noeng", "gpu3-root")]

Json = dict[str, Any]
NVML = (
    "import ctypes; n = ctypes.CDLL('libnvidia-ml.so.1'); n.nvmlInit_v2(); c = ctypes.c_uint(); "
    "n.nvmlDeviceGetCount_v2(ctypes.byref(c))\n"
    "for i in range(c.value):\n"
    "    d, u = ctypes.c_void_p(), ctypes.create_string_buffer(96)\n"
    "    n.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(d)); n.nvmlDeviceGetUUID(d, u, 96); print(u.value.decode())\n"
)
SECRET = "s3cret-that-no-other-user-sees"


@dataclass(frozen=True)
class Engine:
    """`ssh`: the name by which the host's user is reached; `program`: the engine's command, empty without one."""

    ssh: str
    machine: str
    runtime: str
    program: str = ""
    gpu: int = 1

    @property
    def words(self) -> tuple[str, ...]:
        return ("--runtime", self.runtime, *(("--image", PYTHON_IMAGE) if self.program else ()))

    @property
    def uuid(self) -> str:
        return HOSTS[self.machine].gpu_uuid(self.gpu)

    @property
    def data(self) -> str:
        """The user's folder in mlbox's data home there."""
        return ssh(self.ssh, "echo ~/.local/share/mlbox/users/$(id -un)").strip()

    def forget_layers(self) -> None:
        if self.program:
            tags = f"{self.program} images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' --filter label=mlbox.layer"
            ssh(self.ssh, f"{tags} | xargs -r {self.program} rmi >/dev/null")
        else:
            ssh(self.ssh, f"rm -rf {self.data}/environments")

    def containers(self) -> list[str]:
        return ssh(self.ssh, f"{self.program} ps -aq").split() if self.program else []


ENGINES = {
    "docker": Engine("gpu2", "gpu2", "docker", "docker"),
    "docker with CDI": Engine("gpu3", "gpu3", "docker", "docker", gpu=0),
    "podman rootless": Engine("gpu3", "gpu3", "podman", "podman"),
    "podman rootful": Engine("gpu3-root", "gpu3", "podman", "podman"),
    "process": Engine("noeng", "noeng", "process"),
}


@dataclass(frozen=True)
class Up:
    """A session in an engine."""

    engine: Engine
    laptop: Laptop
    arguments: tuple[str, ...]
    started: Result
    session: Attached
    block: dict[str, str]

    def inside(self, command: str) -> str:
        config = str(self.laptop.home / ".local/state/mlbox/ssh_config")
        argv = ["ssh", "-F", config, "-o", "BatchMode=yes", self.block["name"], command]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, *words: str) -> Result:
        """A job on that host, to its end."""
        command = ("run", "--host", self.engine.ssh, "--no-code", *self.engine.words, "--gpus", "0", *words)
        return self.laptop.run(*command)


@pytest.fixture(scope="class", params=list(ENGINES.values()), ids=list(ENGINES))
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    engine: Engine = request.param
    engine.forget_layers()
    laptop = Laptop(tmp_path_factory.mktemp("engine") / "home")
    arguments = (
        "session", engine.ssh, *engine.words, "--gpus", engine.uuid, "--packages", "six",
        "--sources", "/share/sources", "--vscode-version", CODE_SERVER, "--env", f"SECRET={SECRET}", "--detach",
    )  # fmt: skip
    try:
        started = laptop.run(*arguments, timeout=1200)  # five layers are built in this file
        assert started.code == 0, started.all
        session = laptop.attach("session", "attach")
        yield Up(engine, laptop, arguments, started, session, session.block())
    finally:
        laptop.close()
        false_gpus.set_gpus(engine.machine, false_gpus.default_gpus(engine.machine))
        for left in laptop.sessions(engine.ssh):
            laptop.run("session", "shutdown", str(left["id"]), "--host", engine.ssh)
        engine.forget_layers()
    assert left_behind(engine.ssh) == []
    assert engine.containers() == []


def awaited(look: Any, timeout: float = 60) -> Any:
    """What `look` finds in the end: a job's end on another machine has no event here."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.1)
    return found


class TestTheContract:
    @pytest.fixture(autouse=True)
    def clean_hosts(self) -> None:
        """Not between these tests: fixture `up` ends its session and looks after it."""

    def test_all_services_are_ready(self, up: Up) -> None:
        assert {"jupyter", "vscode", "ssh"} <= set(up.block)
        assert up.inside("echo ready") == "ready"

    def test_of_its_boot_folder_it_writes_only_to_its_own(self, up: Up) -> None:
        """What the host believes is in there too. Without a container all of it is the user's own."""
        if not up.engine.program:
            return
        mine = "for one in . conf s log kernels guest; do touch $one/.mine && echo $one && rm $one/.mine; done"
        words = f"cd /run/mlbox; {{ {mine}; }} 2>/dev/null; true"
        assert up.inside(words).split() == ["s", "log", "kernels", "guest"]
        assert "Read-only file system" in up.inside("{ echo >>/run/mlbox/mlbox-host.pyz; } 2>&1 || true")
        assert up.run("--", "sh", "-c", f"{words}; echo no more").out.splitlines()[1:] == ["no more"]

    def test_only_the_chosen_gpu_is_there(self, up: Up) -> None:
        with Notebook(up.block["jupyter"]) as notebook:
            if up.engine.program:
                assert notebook.run(NVML + "''").splitlines()[0] == up.engine.uuid
                assert len(re.findall("GPU-", notebook.run(NVML + "''"))) == 1
            else:
                assert notebook.run("import os; os.environ['CUDA_VISIBLE_DEVICES']") == repr(up.engine.uuid)

    def test_what_it_writes_is_the_users(self, up: Up) -> None:
        """In the workspace, in the home inside, and by a root inside too where that is the user's."""
        assert up.inside("id -u") == ssh(up.engine.ssh, "id -u").strip()
        name = f"from-{up.block['name']}"
        up.inside(f"touch ~/{name}; cd {'/workspace' if up.engine.program else '~/mlbox'} && touch {name}")
        paths = [f"~/mlbox/{name}"]
        if up.engine.ssh != "gpu3-root":  # root's home is the container's
            paths.append(f"{up.engine.data}/home/{name}" if up.engine.program else f"~/{name}")
        owners = ssh(up.engine.ssh, f"stat -c %u:%g {' '.join(paths)}; rm -f {' '.join(paths)}").split()
        assert owners == len(paths) * [ssh(up.engine.ssh, 'echo "$(id -u):$(id -g)"').strip()]

    def test_the_environment_is_there_and_nobody_sees_it(self, up: Up) -> None:
        assert up.inside("echo $SECRET") == SECRET
        assert SECRET not in as_root(up.engine.machine, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        if up.engine.program:
            assert SECRET not in ssh(up.engine.ssh, f"{up.engine.program} inspect $({up.engine.program} ps -aq)")

    def test_the_layer_is_built_once(self, up: Up) -> None:
        built = "installing jupyterlab, ipykernel, six"
        assert built in up.started.err
        again = up.laptop.run(*up.arguments, "--gpus", "0", "--new", "--name", "again")
        assert again.code == 0 and not re.search("installing|adding|saving", again.err), again.all
        assert up.laptop.run("session", "shutdown", "again").code == 0

    def test_images_that_mlbox_did_not_make_are_counted(self, up: Up) -> None:
        listed: Any = up.laptop.run("image", "list", up.engine.ssh, "--json").json()
        others = {other["engine"]: other for other in listed[0]["others"]}
        program = up.engine.program
        assert program or others == {}
        if program:
            made = set(ssh(up.engine.ssh, f"{program} images -q --no-trunc --filter label=mlbox.layer").split())
            there = set(ssh(up.engine.ssh, f"{program} images -q --no-trunc").split()) - made
            sizes = ssh(up.engine.ssh, f"{program} image inspect --format '{{{{.Size}}}}' {' '.join(there)}").split()
            assert made and others[program]["count"] == len(there) > 0
            assert others[program]["size"] == sum(map(int, sizes))

    def test_a_killed_keeper_is_replaced(self, up: Up) -> None:
        folder = f"/tmp/mlbox-$(id -u)/{up.block['id'][-8:].lower()}"
        first = json.loads(ssh(up.engine.ssh, f"cat {folder}/keeper.pid"))["pid"]
        ssh(up.engine.ssh, f"kill -KILL {first}; while kill -0 {first} 2>/dev/null; do sleep 0.05; done")
        found = up.laptop.sessions(up.engine.ssh)  # that call sees to it
        assert [one["state"] for one in found] == ["started"]
        again = f"while grep -q '\"pid\": {first},' {folder}/keeper.pid; do sleep 0.05; done"
        ssh(up.engine.ssh, again)
        assert up.inside("echo on") == "on"

    @pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)])
    def test_a_job_ends_as_its_command_did(self, up: Up, script: str, code: int) -> None:
        done = up.run("--env", f"SECRET={SECRET}", "--", "sh", "-c", f"echo $SECRET; {script}")
        assert SECRET in done.out
        assert done.code == code, done.all
        assert (f"signal {code - 128}" if code > 128 else f"exit code {code}") in done.err

    def test_a_job_is_told_from_one_that_had_no_memory_left(self, up: Up) -> None:
        if not up.engine.program:
            pytest.skip("without a container there is no limit of its own")
        done = up.run("--engine-args", "--memory 64m", "--", "python3", "-c", "x = b'a' * 400_000_000")
        if up.engine is ENGINES["podman rootless"]:
            assert "podman without root can't limit anything on this host (cgroups v1): --memory" in done.all
            assert done.code != 0
        else:
            assert "memory" in done.err and done.code == 137, done.all

    def test_cancel_ends_all_that_the_job_started(self, up: Up) -> None:
        mark = "4711" + str(up.session.process.pid)
        script = f"setsid sleep {mark} & trap '' TERM; echo up; while :; do sleep 1; done"
        words = ("--host", up.engine.ssh, "--no-code", *up.engine.words, "--gpus", "0", "--grace", "1s")
        done = up.laptop.run("submit", "--json", *words, "--", "sh", "-c", script)
        job = json.loads(done.out)["jobs"][0]["id"]
        awaited(lambda: "up" in up.laptop.run("logs", job, "--host", up.engine.ssh).out)
        assert ssh(up.engine.ssh, f"pgrep -f 'sleep {mark}' || true")
        assert up.laptop.run("cancel", job, "--host", up.engine.ssh).code == 0
        show = ("show", job, "--json", "--host", up.engine.ssh)
        awaited(lambda: json.loads(up.laptop.run(*show).out)["job"]["state"] == "cancelled")
        assert ssh(up.engine.ssh, f"pgrep -f '[s]leep {mark}' || true") == ""

    def test_its_end_leaves_nothing(self, up: Up) -> None:
        """The last: the fixture looks too."""
        done = up.laptop.run("session", "shutdown", up.block["id"])
        assert done.code == 0 and "1 GPU free again" in done.out, done.all
        awaited(lambda: left_behind(up.engine.ssh) == [])
        assert up.engine.containers() == []


@pytest.mark.parametrize("engine", [ENGINES["docker"], ENGINES["podman rootless"]], ids=["docker", "podman rootless"])
def test_a_session_of_the_container_s_root_is_reached(laptop: Laptop, engine: Engine) -> None:
    """Which with rootless podman is the user, and else the host's root."""
    bare = ("--user", "root", "--gpus", "0", "--no-jupyter", "--no-vscode", "--detach")
    try:
        started = laptop.run("session", engine.ssh, *engine.words, *bare, "--name", "as-root", timeout=600)
        assert started.code == 0, started.all
        argv = (
            "ssh",
            "-F",
            str(laptop.home / ".local/state/mlbox/ssh_config"),
            "-o",
            "BatchMode=yes",
            "as-root",
            "id -u",
        )
        assert (
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60).stdout == "0\n"
        )
        assert laptop.run("session", "shutdown", "as-root").code == 0
    finally:
        engine.forget_layers()
