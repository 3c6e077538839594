"""Bad input and bad days: one clear message with what to try, the documented exit code, and nothing left behind."""

from __future__ import annotations

import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from aftermath import watched
from labbox import BUSYBOX_IMAGE, SESSION_IMAGE, Laptop, Result, as_root, left_behind, ssh
from labkit import gpus as false_gpus
from labkit.inventory import HOSTS

pytestmark = [pytest.mark.lab, pytest.mark.hosts("gpu1")]

USAGE, REFUSED, UNREACHABLE, UNREADY, FAILED, NOT_UP = 2, 3, 4, 5, 1, 7
UUIDS = [HOSTS["gpu1"].gpu_uuid(index) for index in range(4)]


# ---- a laptop that is looked at afterwards -----------------------------------------------------------


@pytest.fixture
def laptop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Laptop]:
    """Afterwards: no tunnel, no socket folder, and no trace on the hosts that the test uses."""
    marker = request.node.get_closest_marker("hosts")
    with watched(tmp_path / "home", *(marker.args if marker else ())) as made:
        yield made


def session(laptop: Laptop, host: str, *arguments: str) -> Result:
    """A start that should not succeed; it never stays in the foreground."""
    image = () if any(word in ("--image", "--runtime", "-f") for word in arguments) else ("--image", SESSION_IMAGE)
    return laptop.run("session", host, *image, "--detach", *arguments)


def assert_clear(result: Result, code: int, *words: str) -> None:
    """One message, the words in it, what to try, the exit code; never a traceback."""
    assert result.code == code, result.all
    assert [line[:6] for line in result.err.splitlines()].count("mlbox:") == 1, result.all
    for word in words:
        assert word in result.err, f"{word!r} is not in:\n{result.all}"
    assert "Traceback" not in result.all and "  File " not in result.all
    assert "this is a bug" not in result.all and "a bug in mlbox" not in result.all


# ---- the way to the host -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no-such-host", ("there is no such host", "try: check the name")),
        ("unreachable", ("it can't be reached", "try: is it switched on")),
        ("changed", ("another host key", "ssh-keygen -R changed")),
        ("unknown-key", ("host key is not known", "try: run `ssh unknown-key` once")),
    ],
)
def test_a_host_that_is_not_reached(laptop: Laptop, host: str, words: tuple[str, ...]) -> None:
    assert_clear(session(laptop, host), UNREACHABLE, *words)
    known = Path(laptop.home, ".local/state/mlbox/hosts.json")
    assert not known.exists()  # a typing error is not a host to ask from now on


def test_list_and_status_of_an_unreachable_host_say_so(laptop: Laptop) -> None:
    for verb in (("status",), ("session", "list")):
        done = laptop.run(*verb, "unreachable")
        assert done.code == UNREACHABLE
        assert "can't be reached" in done.all and "Traceback" not in done.all
    assert_clear(laptop.run("session", "attach", "--host", "unreachable"), UNREACHABLE, "can't be reached")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("old", ("python3 on old is 2.7.", "needs 3.9 or newer", "try: install a newer python3")),
        ("old-bob", ("there is no python3 on old-bob", "try: install python3")),
        ("old-nopy", ("there is no python3 on old-nopy", "try: install python3")),
        ("old-noisy", ("there is no python3 on old-noisy", "try: install python3")),
        ("gpu1-bob", ("bob may not use Docker here", "usermod -aG docker bob", "--runtime process")),
    ],
)
def test_a_host_that_is_not_ready(laptop: Laptop, host: str, words: tuple[str, ...]) -> None:
    assert_clear(session(laptop, host), UNREADY, *words)


def test_a_host_that_talks_at_every_login(laptop: Laptop) -> None:
    """A banner, and a .bashrc that prints on both streams, also lines that look like replies."""
    attached = laptop.attach("session", "gpu1-noisy", "--gpus", "1", "--image", SESSION_IMAGE)
    block = attached.block()
    with urllib.request.urlopen(block["jupyter"]) as answer:
        assert answer.status == 200
    assert [one["name"] for one in laptop.sessions("gpu1-noisy")] == [block["name"]]
    info = laptop.run("session", "info", block["name"], "--host", "gpu1-noisy", "--json").json()
    assert isinstance(info, dict) and info["state"] == "started"
    assert "good day" not in attached.text and "loud computing" not in attached.text
    done = laptop.run("session", "shutdown", block["name"])
    assert done.code == 0, done.all
    attached.wait_for("has ended")
    assert attached.process.wait(30) == 0


# ---- what can't be had -----------------------------------------------------------------------------------


def test_an_image_that_is_nowhere(laptop: Laptop) -> None:
    done = session(laptop, "gpu1", "--gpus", "1", "--image", "nosuch/image:1")
    assert_clear(done, REFUSED, "nosuch/image:1 is not on this host and can't be pulled", "check the name")


def test_an_image_without_python_or_a_way_to_add_it(laptop: Laptop) -> None:
    assert_clear(session(laptop, "gpu1", "--image", BUSYBOX_IMAGE), REFUSED, "no python3", "try: use another image")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("9", ("you asked for 9 GPUs, and there are 4",)),
        ("H100", ("you asked for 1 H100 GPU, and there are 0",)),
        ("A100:2", ("you asked for 2 A100 GPUs, and there are 1",)),
        ("GPU-00000000-0000-0000-0000-000000000000", ("no GPU GPU-00000000",)),
    ],
)
def test_gpus_that_are_not_there(laptop: Laptop, wish: str, words: tuple[str, ...]) -> None:
    fits = ("what would fit:", "3 of 3 NVIDIA GeForce RTX 4090 free", "1 of 1 NVIDIA A100-SXM4-80GB free")
    assert_clear(session(laptop, "gpu1", "--gpus", wish), REFUSED, *words, *fits)


@contextmanager
def _bobs_process() -> Iterator[int]:
    pid = int(ssh("gpu1-bob", "sleep 600 >/dev/null 2>&1 & echo $!"))
    try:
        yield pid
    finally:
        ssh("gpu1-bob", f"kill {pid}", check=False)


def test_gpus_that_are_busy_or_lost_are_not_chosen(laptop: Laptop) -> None:
    with _bobs_process() as pid:
        gpus = false_gpus.default_gpus("gpu1")
        gpus[0] = replace(gpus[0], procs=(false_gpus.Proc(pid, 2048),))
        gpus[1] = replace(gpus[1], lost=True)
        false_gpus.set_gpus("gpu1", gpus)
        used = f"used by bob's sleep (pid {pid})"
        fits = "1 of 2 NVIDIA GeForce RTX 4090 free"
        assert_clear(session(laptop, "gpu1", "--gpus", "4090:2"), REFUSED, "you asked for 2", used, fits)
        assert_clear(session(laptop, "gpu1", "--gpus", UUIDS[0]), REFUSED, "GPU 0 (NVIDIA GeForce RTX 4090", used)
        assert_clear(session(laptop, "gpu1", "--gpus", "4"), REFUSED, "out of order", used)
        assert "out of order" in laptop.run("status", "gpu1").out
        assert session(laptop, "gpu1", "--gpus", "4090:1", "--name", "left").code == 0
        (found,) = laptop.sessions("gpu1")
        assert found["gpus"] == [UUIDS[2]]
        assert laptop.run("session", "shutdown", "left").code == 0


def test_a_gpu_driver_that_fails(laptop: Laptop) -> None:
    false_gpus.set_gpus("gpu1", false_gpus.default_gpus("gpu1"), fail=999)
    done = session(laptop, "gpu1", "--gpus", "1")
    assert_clear(done, REFUSED, "you asked for 1 GPU", "Unknown Error")  # its GPUs are known where a tick has told
    assert "Unknown Error" in laptop.run("status", "gpu1").out


def test_all_that_is_wrong_is_said_at_once(laptop: Laptop) -> None:
    false_gpus.set_gpus("gpu1", [])
    done = session(laptop, "gpu1-bob", "--gpus", "1", "--user-folder", "/no/such/folder")
    words = ("bob may not use Docker", "no GPU was found", "there is no folder /no/such/folder")
    assert_clear(done, UNREADY, "3 things are in the way", *words)


@pytest.fixture
def bait() -> Iterator[None]:
    """Folders and links on gpu1 that must not be mounted."""
    as_root("gpu1", "install", "-d", "-m", "700", "-o", "bob", "/home/bob/private")
    as_root("gpu1", "install", "-d", "-m", "755", "-o", "bob", "/home/bob/private/open")
    as_root("gpu1", "ln", "-sfn", "/run/docker.sock", "/home/ada/engine")
    as_root("gpu1", "ln", "-sfn", "/", "/home/ada/all")
    yield
    as_root("gpu1", "rm", "-rf", "/home/bob/private", "/home/ada/engine", "/home/ada/all")


@pytest.mark.usefixtures("bait")
def test_mounts_that_hand_out_the_host_or_others_files(laptop: Laptop) -> None:
    hold = "may not be mounted"
    for mount, words in (
        ("/:/host", hold),
        ("/etc:/host:ro", hold),
        ("/run/docker.sock:/s", hold),
        ("/var/run/docker.sock:/s", hold),
        ("~/engine:/s", hold),
        ("/home/ada/all:/host", hold),
        ("/home/ada/all/etc:/host:ro", hold),
        ("/home/bob/private:/b", "you may not write to"),
        ("/home/bob/private:/b:ro", "you may not read"),
        ("/home/bob/private/open:/b:ro", "there is no /home/bob/private/open"),
        ("/no/such/folder:/b", "there is no /no/such/folder"),
    ):
        assert_clear(session(laptop, "gpu1", "--gpus", "0", "--mount", mount), REFUSED, words)


# ---- what is wrong before any host is asked ----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["--privileged", "-v /:/h", "--volume=/:/h", "--network host", "--network=host", "--pid=host", "--cap-add=ALL",
     "--cap-add ALL", "--device /dev/sda", "--security-opt seccomp=unconfined", "--mount type=bind,src=/,dst=/h",
     "--label mlbox.session=x", "--user 0"],
)  # fmt: skip
@pytest.mark.hosts()
def test_engine_arguments_that_hand_out_the_host(laptop: Laptop, arguments: str) -> None:
    done = session(laptop, "gpu1", "--gpus", "0", f"--engine-args={arguments}")
    assert_clear(done, USAGE, "not allowed", "try:")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpus", "4090:two"), "can't be read"),
        (("--gpus", "1000"), "no host has so many"),
        (("--gpu", "1"), "unrecognized arguments: --gpu"),
        (("--start-timeout", "soon"), "takes a whole number"),
        (("--start-timeout", "1"), "5 to 3600"),
        (("--runtime", "lxc"), "--runtime can't be lxc"),
        (("--runtime", "process", "--image", SESSION_IMAGE), "takes no image"),
        (("--name", "Not A Name"), "can't be a name"),
        (("--image", "-it"), "expected one argument"),
        (("--image", "a b"), "is not an image's name"),
        (("--env", "NO_SUCH_VARIABLE_HERE"), "there is no such variable here"),
        (("--env", "1A=x"), "can't be a variable's name"),
        (("--mount", "relative:/x"), "can't be mounted"),
        (("--mount", "/tmp:/etc"), "nothing can be mounted at"),
        (("--packages=--index-url=http://elsewhere",), "is not a package"),
        (("--requirements", "/no/such/requirements.txt"), "/no/such/requirements.txt can't be read: No such file"),
        (("--init-script", "/"), "/ can't be read: Is a directory"),
        (("-f", "/no/such.yaml"), "/no/such.yaml can't be read: No such file"),
    ],
)
@pytest.mark.hosts()
def test_flags_that_are_wrong(laptop: Laptop, arguments: tuple[str, ...], words: str) -> None:
    assert_clear(session(laptop, "gpu1", *arguments), USAGE, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("gpus: 1\nimage: [unclosed\n", ("line 3, column 1", "try: mlbox session --help")),
        ("gpus: 1\n\timage: x\n", ("line 2, column 1",)),
        ("gpus: 1\nimmage: x\n", ("no setting 'immage'", "did you mean image?")),
        ("jupyter: perhaps\n", ("jupyter is true or false",)),
        ("start-timeout: long\n", ("start_timeout is a number of seconds",)),
        ("image: {name: x}\n", ("image is one value",)),
        ("- one\n- two\n", ("must be `name: value` lines",)),
        ("a: !!python/object/apply:os.system [touch /tmp/mlbox-owned]\n", ("could not determine a constructor",)),
    ],
)
@pytest.mark.hosts()
def test_a_broken_yaml(laptop: Laptop, tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "session.yaml"
    file.write_text(content)
    assert_clear(session(laptop, "gpu1", "-f", str(file)), USAGE, str(file), *words)
    assert not Path("/tmp/mlbox-owned").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image = 'x'\nports = {\n", "line"),
        ("colour = 'red'\n", "mlbox has no setting 'colour'"),
        ("image = 5\n", "image must be"),
        ("ports = {jupyter = 99999}\n", "1 to 65535"),
        ("transport = 'pigeon'\n", "there is no transport 'pigeon'"),
    ],
)
@pytest.mark.hosts()
def test_a_broken_config(laptop: Laptop, content: str, words: str) -> None:
    file = laptop.home / ".config/mlbox/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert_clear(session(laptop, "gpu1"), USAGE, words)


# ---- what does not come up ---------------------------------------------------------------------------------


def test_requirements_that_fail_to_install(laptop: Laptop, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("six\nno-such-package-of-mlbox==1.2.3\n")
    before = ssh("gpu1", "docker images -q")
    done = session(laptop, "gpu1", "--gpus", "1", "--requirements", str(file))
    words = ("installing requirements failed", "the log ends with", "No matching distribution found for")
    assert_clear(done, NOT_UP, *words, "no-such-package-of-mlbox==1.2.3", "try: ")
    assert ssh("gpu1", "docker images -q") == before


def test_an_init_script_that_fails(laptop: Laptop, tmp_path: Path) -> None:
    file = tmp_path / "init.sh"
    file.write_text("#!/bin/sh\necho preparing the data >&2\necho it is not there\nexit 3\n")
    done = session(laptop, "gpu1", "--gpus", "1", "--init-script", str(file))
    end = "  preparing the data\n  it is not there\n"
    assert_clear(done, NOT_UP, "running the init script failed (exit 3)", end, "try: ")


_JUPYTER = "/usr/local/lib/python3.11/dist-packages/jupyterlab/__main__.py"
_PYTHON = """printf '#!/bin/sh\\ncase "$*" in *guest*) %s ;; esac\\nexec /usr/bin/python3 "$@"\\n' \
'{what}' >/usr/local/bin/python3 && chmod 755 /usr/local/bin/python3"""
VARIANTS = {
    "silent": f"echo 'import time; time.sleep(3600)' >{_JUPYTER}",
    "crashing": f"""echo 'import sys; sys.exit("no licence for Jupyter")' >{_JUPYTER}""",
    "segfault": _PYTHON.format(what='exec /usr/bin/python3 -c "import ctypes; ctypes.string_at(0)"'),
    "ending": _PYTHON.format(what="echo this python is a fake >&2; exit 4"),
}


@pytest.fixture
def broken_image(request: pytest.FixtureRequest) -> Iterator[str]:
    """The session image with something in it broken."""
    tag = f"mlbox-broken:{request.param}"
    ssh("gpu1", f"docker build -q -t {tag} - <<'EOF'\nFROM {SESSION_IMAGE}\nRUN {VARIANTS[request.param]}\nEOF")
    yield tag
    ssh("gpu1", f"docker rmi -f {tag}")


@pytest.mark.parametrize(
    ("broken_image", "patience", "words"),
    [
        ("silent", "5", ("jupyter did not answer within 5 s", "try: --no-jupyter")),
        ("crashing", "60", ("jupyter ended with exit code 1", "no licence for Jupyter", "try: --no-jupyter")),
        ("segfault", "60", ("the session ended at once (exit 139)", "try: another image")),
        ("ending", "60", ("the session ended at once (exit 4)", "this python is a fake", "try: another image")),
    ],
    indirect=["broken_image"],
)
def test_an_image_that_does_not_come_up(
    laptop: Laptop, broken_image: str, patience: str, words: tuple[str, ...]
) -> None:
    asked = ("--image", broken_image, "--no-vscode", "--start-timeout", patience)
    done = laptop.run("session", "gpu1", "--gpus", "1", *asked)
    assert_clear(done, NOT_UP, *words)


# ---- the laptop's ports ------------------------------------------------------------------------------------


def _take_ports(stack: ExitStack, count: int) -> int:
    """Hold `count` ports in a row (whoever holds some of them already is as good); the first one."""
    first = 21000
    for number in range(first, first + count):
        taken = stack.enter_context(socket.socket())
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier test's connections linger
        with suppress(OSError):
            taken.bind(("127.0.0.1", number))
            taken.listen(1)
    return first


def _want_jupyter_at(laptop: Laptop, port: int) -> None:
    file = laptop.home / ".config/mlbox/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"ports = {{ jupyter = {port} }}\n")


def test_a_local_port_in_use(laptop: Laptop) -> None:
    with ExitStack() as stack:
        port = _take_ports(stack, 1)
        _want_jupyter_at(laptop, port)
        attached = laptop.attach("session", "gpu1", "--gpus", "0", "--image", SESSION_IMAGE, "--no-vscode")
        got = attached.wait_for(rf"port {port} is taken here; Jupyter is on (\d+)")[1]
        url = attached.block()["jupyter"]
        assert f":{got}/" in url
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
        assert attached.stop(signal.SIGINT) == 0
    assert laptop.run("session", "shutdown").code == 0


def test_no_local_port_at_all(laptop: Laptop) -> None:
    with ExitStack() as stack:
        port = _take_ports(stack, 101)
        _want_jupyter_at(laptop, port)
        done = laptop.run("session", "gpu1", "--gpus", "1", "--image", SESSION_IMAGE)
    assert_clear(done, FAILED, f"{port} to {port + 100} are taken", "try: ")
    assert left_behind("gpu1") == []  # on return: not some time later


# ---- the host's disks --------------------------------------------------------------------------------------


@contextmanager
def _small(folder: str, options: str) -> Iterator[None]:
    """A tiny file system over one of ada's folders."""
    as_root("gpu1", "install", "-d", "-o", "ada", "-g", "ada", "-m", "700", folder)
    as_root("gpu1", "mount", "-t", "tmpfs", "-o", f"uid=1001,gid=1001,mode=700,{options}", "tmpfs", folder)
    try:
        yield
    finally:
        as_root("gpu1", "umount", "--lazy", folder)


def test_a_full_disk_under_mlboxs_folder(laptop: Laptop) -> None:
    with _small("/home/ada/.local/share/mlbox", "size=1m"):
        done = session(laptop, "gpu1", "--gpus", "1")
        assert_clear(done, REFUSED, "MiB free; a session needs 512 MiB", "try: make room there")


def test_a_full_disk_where_the_host_part_is_kept(laptop: Laptop) -> None:
    with _small("/home/ada/.cache/mlbox", "size=64k"):
        for verb in (("status", "gpu1"), ("session", "gpu1", "--image", SESSION_IMAGE, "--detach")):
            done = laptop.run(*verb)
            assert done.code == UNREADY
            assert "No space left" in done.all and "File " not in done.all and "Traceback" not in done.all
        assert_clear(done, UNREADY, "the host part could not be kept", "try: ", "~/.cache")
        assert ssh("gpu1", "ls -A ~/.cache/mlbox") == ""


@pytest.mark.parametrize("files", [4, 10, 14, 18, 22, 26])
def test_a_disk_that_fills_up_in_the_middle_of_a_start(laptop: Laptop, files: int) -> None:
    """Space enough for the checks, and names for a few files only: each write fails once, further on."""
    with _small("/home/ada/.local/share/mlbox", f"size=600m,nr_inodes={files}"):
        done = session(laptop, "gpu1", "--gpus", "1", "--no-vscode")
        assert done.code in (REFUSED, UNREADY, NOT_UP), done.all
        assert "No space left on device" in done.err and "try: " in done.err
        assert "a bug" not in done.err  # a traceback may be there: Jupyter's own, as its log's last lines
        # Its end may not fit on a full disk either. The first call that finds room records it.
        as_root("gpu1", "mount", "-o", "remount,nr_inodes=10000", "/home/ada/.local/share/mlbox")
        assert laptop.sessions("gpu1") == []
        assert left_behind("gpu1") == []


@pytest.mark.parametrize("files", [3, 8, 14, 20])
def test_a_temporary_folder_that_fills_up_in_the_middle_of_a_start(laptop: Laptop, files: int) -> None:
    with _small("/tmp/mlbox-1001", f"size=600m,nr_inodes={files}"):
        done = session(laptop, "gpu1", "--gpus", "1", "--no-vscode")
        assert done.code in (REFUSED, UNREADY, NOT_UP), done.all
        assert_clear(done, done.code, "No space left on device", "try: ")
        assert left_behind("gpu1") == []


def test_somebody_else_made_our_folder_in_tmp(laptop: Laptop) -> None:
    as_root("gpu1", "rm", "-rf", "/tmp/mlbox-1001")
    as_root("gpu1", "install", "-d", "-m", "777", "-o", "bob", "/tmp/mlbox-1001")
    try:
        done = session(laptop, "gpu1", "--gpus", "1")
        assert_clear(done, UNREADY, "/tmp/mlbox-1001 is not a folder of yours", "try: ask its owner")
        assert ssh("gpu1-bob", "ls -A /tmp/mlbox-1001") == ""
    finally:
        as_root("gpu1", "rm", "-rf", "/tmp/mlbox-1001")


def test_somebody_else_closed_the_lease_folder(laptop: Laptop) -> None:
    as_root("gpu1", "mv", "/tmp/mlbox-leases", "/tmp/mlbox-leases.kept")
    as_root("gpu1", "install", "-d", "-m", "755", "-o", "bob", "/tmp/mlbox-leases")
    try:
        assert_clear(session(laptop, "gpu1", "--gpus", "1"), UNREADY, "/tmp/mlbox-leases", "try: ")
    finally:
        as_root("gpu1", "rm", "-rf", "/tmp/mlbox-leases")
        as_root("gpu1", "mv", "/tmp/mlbox-leases.kept", "/tmp/mlbox-leases")


@pytest.mark.parametrize("root", ["/proc/mlbox", "/usr/share/mlbox", "/root/mlbox", "/etc/passwd"])
def test_a_root_that_is_not_writable(laptop: Laptop, root: str) -> None:
    done = session(laptop, "gpu1", "--gpus", "1", "--root", root)
    assert_clear(done, UNREADY, "can't be written", "try: choose another folder with --root")


def test_doctor_tells_of_each_host_what_it_lacks(laptop: Laptop) -> None:
    done = laptop.run("doctor", "gpu1", "noeng", "old", "nowhere.invalid")
    assert done.code == 5, done.all
    told = {part.partition("\n")[0]: part for part in done.out.split("\n\n")}
    assert list(told) == ["this machine", "gpu1", "noeng", "old", "nowhere.invalid"]
    assert "✗" not in told["this machine"] + told["gpu1"] + told["noeng"]
    assert re.search(r"✓ docker +works, and is yours to use", told["gpu1"])
    assert re.search(r"✓ GPUs +4 GPUs, 4 free; driver \d", told["gpu1"])
    assert re.search(r"· engine +no container engine", told["noeng"])
    assert re.search(r"✗ host +python3 on old is 2.7", told["old"])
    assert re.search(r"✗ ssh +.*resolve", told["nowhere.invalid"])
