"""Sessions without a container: on a host without an engine, and on this machine."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from eavesdrop import EAR
from labbox import SSH_CONFIG, Attached, Laptop, left_behind, ssh
from labkit import gpus as false_gpus
from labkit.inventory import CODE_SERVER, HOSTS
from notebook import Notebook

pytestmark = [pytest.mark.lab, pytest.mark.hosts("noeng")]

HOST = "noeng"
UUIDS = [HOSTS[HOST].gpu_uuid(0), HOSTS[HOST].gpu_uuid(1)]
ENVIRONMENTS = "~/.local/share/mlbox/users/ada/environments"
# A process that leaves its session, its group, its terminal and its parent.
ESCAPES = "import subprocess; subprocess.Popen(['setsid', '-f', 'sleep', '4711'])"
PLAIN = ("--no-vscode", "--gpus", "0")


def inside(laptop: Laptop, name: str, command: str) -> str:
    argv = ["ssh", "-F", str(laptop.home / ".local/state/mlbox/ssh_config"), "-o", "BatchMode=yes", name, command]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass(frozen=True)
class Here:
    laptop: Laptop
    session: Attached
    block: dict[str, str]

    @property
    def name(self) -> str:
        return self.block["name"]


@pytest.fixture(scope="class")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """The first session ever on this host, with everything."""
    ssh(HOST, f"rm -rf {ENVIRONMENTS}")
    laptop = Laptop(tmp_path_factory.mktemp("process") / "home")
    try:
        session = laptop.attach(
            "session", HOST, "--runtime", "process", "--gpus", UUIDS[1], "--packages", "tabulate",
            "--sources", "/share/sources", "--vscode-version", CODE_SERVER,
        )  # fmt: skip
        yield Here(laptop, session, session.block())
    finally:
        laptop.close()
        false_gpus.set_gpus(HOST, false_gpus.default_gpus(HOST))
        for left in laptop.sessions(HOST):
            laptop.run("session", "shutdown", str(left["id"]), "--host", HOST)
        ssh(HOST, f"rm -rf {ENVIRONMENTS}")
    assert left_behind(HOST) == []


class TestOneSession:
    @pytest.fixture(autouse=True)
    def clean_hosts(self) -> None:
        """Not between these tests: fixture `here` ends the session and looks after it."""

    def test_the_environment_is_built_and_told(self, here: Here) -> None:
        here.session.wait_for(r"1/2 installing jupyterlab, ipykernel, tabulate")
        here.session.wait_for(r"2/2 adding VS Code")
        assert {"jupyter", "vscode", "ssh"} <= set(here.block)

    def test_a_kernel_sees_the_leased_gpu_and_the_environment(self, here: Here) -> None:
        with Notebook(here.block["jupyter"]) as notebook:
            assert notebook.run("import os; os.environ['CUDA_VISIBLE_DEVICES']") == repr(UUIDS[1])
            assert notebook.run("import tabulate, sys; sys.prefix").strip("'").endswith("/venv")
            assert notebook.run("os.getuid(), os.getcwd()") == "(1001, '/home/ada/mlbox')"

    def test_a_shell_does_too(self, here: Here) -> None:
        said = inside(here.laptop, here.name, "echo $CUDA_VISIBLE_DEVICES; whoami; pwd; command -v python").split()
        assert said[:3] == [UUIDS[1], "ada", "/home/ada/mlbox"]
        assert said[3].startswith("/home/ada/.local/share/mlbox/users/ada/environments/")

    def test_what_computes_on_the_gpu_is_known_as_the_sessions_users(self, here: Here) -> None:
        with Notebook(here.block["jupyter"]) as notebook:
            pid = int(notebook.run("import os; os.getpid()"))
            false_gpus.change(HOST, UUIDS[1], lambda gpu: replace(gpu, procs=(false_gpus.Proc(pid, 4096),)))
            reply = here.laptop.run("status", HOST, "--json").json()
            false_gpus.set_gpus(HOST, false_gpus.default_gpus(HOST))
        assert isinstance(reply, list)
        gpu = reply[0]["gpus"][1]
        assert gpu["holder"]["name"] == here.name
        [process] = gpu["processes"]
        assert (process["pid"], process["user"], process["memory"]) == (pid, "ada", 4096)
        assert process["command"].startswith("python")

    def test_nothing_listens_on_the_hosts_network(self, here: Here) -> None:
        listening = ssh(HOST, "ss -Hltn | awk '{print $4}'").split()
        assert listening
        assert all(address in ("0.0.0.0:22", "[::]:22") or address.startswith("127.") for address in listening)

    def test_another_user_hears_nothing_of_what_its_cells_print(self, here: Here) -> None:
        listen = ("ssh", "-F", str(SSH_CONFIG), f"{HOST}-bob", f"python3 -c {shlex.quote(EAR)}")
        with Notebook(here.block["jupyter"]) as notebook:
            notebook.run("1")  # it publishes by now
            with subprocess.Popen(listen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bob:
                assert bob.stdout is not None and bob.stdout.readline() == "listening\n"
                notebook.run("for _ in range(100): print('fritillary-7702', flush=True)")
                assert "fritillary" not in bob.communicate()[0]

    def test_the_next_session_reuses_the_environment(self, here: Here) -> None:
        before = ssh(HOST, f"ls -i {ENVIRONMENTS}")
        again = here.laptop.run("session", HOST, "--new", "--name", "next", "--gpus", "1", "--detach")
        assert again.code == 0, again.all
        assert "installing" not in again.all and "adding" not in again.all
        assert ssh(HOST, f"ls -i {ENVIRONMENTS}") == before and len(before.splitlines()) == 1
        third = here.laptop.run("session", HOST, "--new", "--gpus", "1", "--detach")
        assert third.code == 3 and "leased to ada's session next" in third.err
        assert here.laptop.run("session", "shutdown", "next").code == 0

    def test_shutdown_leaves_no_process(self, here: Here) -> None:
        """The last look: not the kernel, nor what a kernel, a terminal or a shell left running."""
        with Notebook(here.block["jupyter"]) as notebook:
            notebook.run(ESCAPES)
            inside(here.laptop, here.name, "setsid -f sleep 4711 >/dev/null 2>&1; nohup sleep 4711 >/dev/null 2>&1 &")
            running = f"pgrep -u ada -fc {shlex.quote('^sleep 4711$')} || true"
            assert ssh(HOST, running).strip() == "3"
            assert here.laptop.run("session", "shutdown", here.name).code == 0
            assert ssh(HOST, running).strip() == "0"
            notebook.forget()
        mine = ssh(HOST, "ps -u ada -o args=").splitlines()
        assert not [line for line in mine if "jupyter" in line or "code-server" in line or "ipykernel" in line], mine
        assert here.session.process.wait(60) == 0


def test_what_needs_a_container_is_refused(laptop: Laptop) -> None:
    for words in (["--user", "root"], ["--mount", "~/:/look"], ["--engine-args", "--cpus 1"]):
        refused = laptop.run("session", HOST, "--runtime", "process", *PLAIN, *words, "--detach")
        assert refused.code == 3 and "need" in refused.err and "container" in refused.err, refused.all
    contrary = laptop.run("session", HOST, "--runtime", "process", "--image", "some/image", "--detach")
    assert contrary.code == 2, contrary.all


# ---- this machine ----------------------------------------------------------------------------------------


@pytest.mark.hosts()
def test_this_machine_without_ssh_or_engine(laptop: Laptop) -> None:
    """The embedded default, from a HOME that has seen nothing."""
    laptop.env["PATH"] = _path_without(laptop.home.parent / "bin", "ssh", "docker")
    started = laptop.run("session", "local", "--no-vscode", "--detach", "--json")
    assert started.code == 0, started.all
    facts = started.json()
    assert isinstance(facts, dict)
    try:
        assert (facts["host"], facts["runtime"], facts["gpus"]) == ("local", "process", [])
        attached = laptop.attach("session", "attach")
        block = attached.block()
        assert block["id"] == facts["id"]
        with Notebook(block["jupyter"]) as notebook:
            # One text: a long tuple is shown in lines, and how long a test's folder is changes from run to run.
            assert notebook.run("import os; f'{os.getuid()} {os.getcwd()}'") == f"'{os.getuid()} {laptop.home}/mlbox'"
            notebook.run(ESCAPES)
        assert attached.stop() == 0
        [listed] = laptop.sessions("local")
        assert listed["id"] == facts["id"]
    finally:
        ended = laptop.run("session", "shutdown", str(facts["id"]), "--host", "local")
    assert ended.code == 0, ended.all
    assert _processes_of(str(facts["id"])) == []
    assert not Path(f"/tmp/mlbox-{os.getuid()}/{str(facts['id'])[-8:].lower()}").exists()
    assert laptop.sessions("local") == []


def _path_without(folder: Path, *absent: str) -> str:
    """A PATH with all that this machine has, but these programs."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            link = folder / program.name
            link.unlink(missing_ok=True)
            if program.name not in absent:
                link.symlink_to(program)
    return str(folder)


def _processes_of(session: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"MLBOX_SESSION={session}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found
