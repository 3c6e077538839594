"""The probe, run on this very machine, and what is made of its answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.core.facts import Facts
from mlbox.host import image
from mlbox.host.run import Result

ANSWERS = [
    "python=/usr/bin/python3", "python_version=3.11.2", "venv=1", "jupyter_module=0", "jupyter=", "code_server=",
    "sshd=/usr/sbin/sshd", "sftp_server=/usr/lib/openssh/sftp-server", "package_manager=apt-get", "shell=/bin/bash",
    "machine=x86_64", "kernel=Linux", "path=/usr/bin:/bin", "passwd=root:x:0:0:root:/root:/bin/bash",
    "passwd=odd=1:x:1:1::/:/bin/sh", "group=root:x:0:",
]  # fmt: skip
FACTS = Facts(
    id="sha256:1", arch="amd64", python="/usr/bin/python3", python_version=(3, 11, 2), venv=True, sshd="/usr/sbin/sshd",
    sftp_server="/usr/lib/openssh/sftp-server", package_manager="apt-get", shell="/bin/bash", path="/usr/bin:/bin",
    passwd="root:x:0:0:root:/root:/bin/bash\nodd=1:x:1:1::/:/bin/sh", group="root:x:0:",
)  # fmt: skip


def test_answers() -> None:
    assert image.parse("sha256:1", ANSWERS) == FACTS


def test_an_image_s_own_noise_is_passed_over() -> None:
    noise = ["== CUDA ==", "", "Container image Copyright (c)", "motd=hello", "python"]
    assert image.parse("sha256:1", [*noise, *ANSWERS, *noise]) == FACTS


def test_nothing_said_is_nothing_there() -> None:
    assert image.parse("i", []) == Facts(id="i", shell="/bin/sh")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("machine=aarch64", "arch", "arm64"),
        ("machine=riscv64", "arch", ""),
        ("kernel=Darwin", "system", "macos"),
        ("musl=1", "musl", True),
        ("python_version=3.9.0", "python_version", (3, 9, 0)),
        ("python_version=three", "python_version", ()),
        ("path=a=b", "path", "a=b"),
    ],
    ids=lambda v: v if isinstance(v, str) and "=" in v else "",
)
def test_single_answers(line: str, name: str, value: object) -> None:
    assert getattr(image.parse("i", [line]), name) == value


def probe(environment: dict[str, str] | None = None) -> Facts:
    done = subprocess.run(
        ("/bin/sh", "-c", image.PROBE), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        env=environment,
    )  # fmt: skip
    return image.parse("here", done.stdout.splitlines())


def test_probe_of_this_machine() -> None:
    found = probe()
    assert found.python == shutil.which("python3")
    assert len(found.python_version) == 3 and found.usable_python
    assert found.system == "linux" and found.arch in ("amd64", "arm64")
    assert found.musl == ("musl" in sysconfig.get_config_var("SOABI"))
    assert found.path == os.environ["PATH"]
    assert found.shell in ("/bin/bash", "/usr/bin/bash", "/bin/sh")
    assert found.sshd == (shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"]) or "")
    assert found.passwd.splitlines() == Path("/etc/passwd").read_text().splitlines()
    assert found.group.splitlines() == Path("/etc/group").read_text().splitlines()


def test_probe_where_there_is_nothing(tmp_path: Path) -> None:
    """An image of a shell and little more."""
    for name in ("uname",):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    found = probe({"PATH": str(tmp_path)})
    assert (found.python, found.python_version, found.jupyter, found.package_manager) == ("", (), "", "")
    assert found.path == str(tmp_path)


def test_probe_sees_this_python(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    found = probe({**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert found.python == str(tmp_path / "python3")
    assert found.python_version == sys.version_info[:3]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.3.2", (True, True)), ("3.0.0", (True, False)), ("4.4.10", (True, False)), ("", (False, False))],
)
def test_probe_sees_which_jupyter(tmp_path: Path, version: str, expected: tuple[bool, bool]) -> None:
    if version:
        (tmp_path / "jupyterlab").mkdir()
        (tmp_path / "jupyterlab/__init__.py").write_text("")
        (tmp_path / f"jupyterlab-{version}.dist-info").mkdir()
        about = f"Metadata-Version: 2.1\nName: jupyterlab\nVersion: {version}\n"
        (tmp_path / f"jupyterlab-{version}.dist-info/METADATA").write_text(about)
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    found = probe({"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)})
    assert (found.jupyter_module, found.jupyter_classic) == expected


# ---- the memo ------------------------------------------------------------------------------------


def test_an_image_is_asked_once(home: Path) -> None:
    identity = "sha256:" + "ab" * 32
    assert image.recall(identity, "uid") is None
    assert image.remember(identity, "uid", FACTS) == FACTS
    assert image.recall(identity, "uid") == FACTS
    assert image.recall("sha256:" + "cd" * 32, "uid") is None
    assert image.recall(identity, "root") is None  # who sees more of it


def test_answers_of_an_older_probe_are_asked_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image.remember("sha256:1", "uid", FACTS)
    monkeypatch.setattr(image, "_VERSION", image._VERSION + 1)
    assert image.recall("sha256:1", "uid") is None


# ---- the builder's surroundings ------------------------------------------------------------------


def test_the_builder_s_environment_is_a_file_of_the_owner_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://ada:s3cret@proxy:3128/'$(id)")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pypi.lab/simple")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no business of a builder")
    image.write_environment(tmp_path, {"PREFIX": "/opt/mlbox", "BUILD": str(tmp_path)}, "/ca.pem", "/pip.conf")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "layer.sh").write_text('printf "%s\\n" "$PREFIX" "$https_proxy" "$PIP_INDEX_URL" "$SSL_CERT_FILE"\n')
    done = subprocess.run((str(tmp_path / "run"),), env={}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "/opt/mlbox", "http://ada:s3cret@proxy:3128/'$(id)", "https://pypi.lab/simple", "/ca.pem",
    ]  # fmt: skip
    assert "AWS" not in (tmp_path / "run").read_text()


def test_the_user_s_pip_settings_hold_in_the_builder(tmp_path: Path, home: Path) -> None:
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text("[global]\n")
    image.write_environment(tmp_path, {}, "", "/in/pip.conf")
    assert (tmp_path / "pip.conf").read_text() == "[global]\n"
    assert "export PIP_CONFIG_FILE=/in/pip.conf\n" in (tmp_path / "run").read_text()


def test_progress_says_the_step_and_its_last_line() -> None:
    said: list[tuple[str, str]] = []
    on_line = image.step_progress(lambda text, detail="": said.append((text, detail)))
    for line in (
        "noise before",
        "@step 1/2 installing a",
        "Collecting a",
        "",
        "@step 2/2 running the init script",
        "x" * 200,
    ):
        on_line(line)
    assert said == [
        ("1/2 installing a", ""), ("1/2 installing a", "Collecting a"), ("2/2 running the init script", ""),
        ("2/2 running the init script", "x" * 100),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ("@step 1/2 installing a", "ok", "@step 2/2 running the init script", "boom"),
            "running the init script failed",
        ),
        (("boom",), "preparing the layer failed"),
    ],
    ids=["in a step", "before any"],
)
def test_a_failed_build_says_where(lines: tuple[str, ...], words: str) -> None:
    found = image.build_failed(Result(3, lines))
    assert isinstance(found, errors.StartFailed)
    assert found.message.startswith(f"{words} (exit 3)") and found.message.endswith("  boom")


def test_what_pip_says_of_a_conflict_is_shown_whole() -> None:
    conflict = (
        *("ERROR: Cannot install a==1 and b==2 because these package versions have conflicting dependencies.", ""),
        *(
            "The conflict is caused by:",
            "    a 1 depends on c<2",
            "    b 2 depends on c>=2",
            "    d 1 depends on c",
            "",
        ),
        *("Additionally, some packages in these conflicts have no matching distributions available:", "    c", ""),
        *("To fix this you could try to:", "1. loosen the range of package versions you've specified"),
        *("2. remove package versions to allow pip to attempt to solve the dependency conflict", ""),
        "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io",
    )
    shown = image.build_failed(Result(1, ("@step 1/1 installing a", *("Collecting c",) * 50, *conflict))).message
    assert all(line in shown for line in conflict)
