"""What an image lacks, as steps: decided without an image."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core import layer, release
from mlbox.core.facts import Facts
from mlbox.core.layer import Layer, plan, script, titles
from mlbox.core.session import Spec
from mlbox.errors import Usage

FULL = Facts(
    id="sha256:1", arch="amd64", python="/usr/bin/python3", python_version=(3, 11, 2), venv=True, jupyter_module=True,
    code_server="/usr/bin/code-server", sshd="/usr/sbin/sshd", sftp_server="/usr/lib/openssh/sftp-server",
    package_manager="apt-get", shell="/bin/bash", path="/usr/bin:/bin",
)  # fmt: skip
BARE = Facts(id="sha256:2", arch="amd64", package_manager="apt-get", path="/usr/bin:/bin")
PYTHON = replace(BARE, python="/usr/bin/python3", python_version=(3, 9), venv=True)
RELEASE = "code-server-4.108.1-linux-amd64.tar.gz"
VSCODE = f"adding VS Code ({RELEASE})"
JUPYTER = "installing jupyterlab, ipykernel"
IMAGE = Spec(image="x", runtime="docker")
PROCESS = Spec(runtime="process")


def have(spec: Spec, **more: Any) -> Spec:
    return replace(spec, **more)


@pytest.mark.parametrize(
    ("spec", "facts", "root", "steps", "problems", "absent"),
    [
        (IMAGE, FULL, True, [], [], []),
        (IMAGE, replace(FULL, jupyter_module=False, jupyter="/conda/bin/jupyter-lab"), True, [], [], []),
        (have(IMAGE, jupyter="no", vscode="no"), replace(PYTHON, sshd="/s", sftp_server="/f"), True, [], [], []),
        (IMAGE, replace(FULL, sftp_server=""), True, ["installing openssh-sftp-server"], [], []),
        (IMAGE, replace(FULL, sftp_server="", package_manager=""), True, [], [], []),
        (IMAGE, PYTHON, True, ["installing openssh-server, rsync", JUPYTER, VSCODE], [], []),
        (IMAGE, BARE, True,
         ["installing python3, python3-venv, ca-certificates, openssh-server, rsync", JUPYTER, VSCODE], [], []),
        (IMAGE, replace(BARE, package_manager="dnf"), True,
         ["installing python3, python3-pip, openssh-server, openssh-clients", JUPYTER, VSCODE], [], []),
        (IMAGE, replace(PYTHON, venv=False), True,
         ["installing openssh-server, rsync, python3-venv", JUPYTER, VSCODE], [], []),
        (IMAGE, replace(BARE, package_manager="apk", musl=True), True,
         ["installing python3, py3-pip, openssh, rsync", JUPYTER], [], ["vscode"]),
        (IMAGE, replace(FULL, code_server="", arch=""), True, [], [], ["vscode"]),
        (IMAGE, replace(PYTHON, package_manager=""), True, [JUPYTER, VSCODE], [], ["ssh"]),
        (IMAGE, replace(BARE, package_manager=""), True, [VSCODE],
         ["it has no python3, and no package manager (apt-get, apk, dnf) that could add one"], ["ssh"]),
        (IMAGE, replace(FULL, python_version=(3, 8, 10)), True, [],
         ["its python3 is 3.8.10; mlbox needs 3.9 or newer"], []),
        (have(IMAGE, vscode="yes"), replace(FULL, musl=True, code_server=""), True, [],
         ["vscode: code-server has no build for musl (Alpine) images"], ["vscode"]),
        (PROCESS, replace(PYTHON, id="host:1"), False, [JUPYTER, VSCODE], [], ["ssh"]),
        (PROCESS, replace(BARE, id="host:1"), False, [VSCODE],
         ["it has no python3, and no package manager (apt-get, apk, dnf) that could add one"], ["ssh"]),
        (have(PROCESS, packages=("einops",), jupyter="no", vscode="no"), replace(PYTHON, venv=False), False, [],
         ["/usr/bin/python3 can't make virtual environments (python3-venv, pip)"], ["ssh"]),
        (have(IMAGE, packages=("einops", "numpy==2.0")), FULL, True, ["installing einops, numpy"], [], []),
        (have(IMAGE, packages=("einops",)), replace(PYTHON, sshd="/s", sftp_server="/f"), True,
         ["installing jupyterlab, ipykernel, einops", VSCODE], [], []),
        (have(IMAGE, requirements="torch\n"), FULL, True, ["installing requirements"], [], []),
        (have(IMAGE, packages=("einops",), requirements="torch\n"), FULL, True,
         ["installing einops, requirements"], [], []),
        (have(IMAGE, jupyter_version="4.3.0"), FULL, True, [JUPYTER], [], []),
        (have(IMAGE, jupyter_version="4.3.0", jupyter="no"), FULL, True, [], [], []),
        (have(IMAGE, vscode_version="4.99.0"), FULL, True,
         ["adding VS Code (code-server-4.99.0-linux-amd64.tar.gz)"], [], []),
        (have(IMAGE, init_script="true"), FULL, True, ["running the init script"], [], []),
        (have(IMAGE, vscode_extensions=("a.b",), extension_files={"c.vsix": "eA=="}), FULL, True,
         ["adding a.b, c.vsix"], [], []),
        (have(IMAGE, vscode_extensions=("a.b",), vscode="no"), FULL, True, [], [], []),
    ],
    ids=["everything is there", "jupyter of another python", "nothing wanted", "no sftp",
         "no sftp, no manager", "python only", "no python, apt",
         "no python, dnf", "no venv, apt", "alpine", "unknown processor", "no manager, no sshd",
         "no python, no manager", "old python", "vscode insisted on", "process", "process without python",
         "process without venv", "packages", "packages bring jupyter", "requirements", "both", "jupyter version",
         "jupyter version, no jupyter", "vscode version", "init script", "extensions", "extensions without vscode"],
)  # fmt: skip
def test_plan(spec: Spec, facts: Facts, root: bool, steps: list[str], problems: list[str], absent: list[str]) -> None:
    found = plan(spec, facts, root=root)
    assert [s.title for s in found.steps] == steps
    assert list(found.problems) == problems
    assert sorted(found.absent) == absent


def test_a_host_without_venv_still_gives_a_session() -> None:
    found = plan(PROCESS, replace(PYTHON, venv=False), root=False)
    assert found.problems == ()
    assert "jupyter" in found.absent


@pytest.mark.parametrize(
    ("spec", "facts", "steps", "problems"),
    [
        (IMAGE, BARE, [], []),
        (IMAGE, replace(BARE, package_manager=""), [], []),
        (IMAGE, replace(PYTHON, python_version=(3, 6)), [], []),
        (have(IMAGE, packages=("einops",)), BARE,
         ["installing python3, python3-venv, ca-certificates", "installing einops"], []),
        (have(IMAGE, packages=("einops",)), replace(BARE, package_manager=""), [],
         ["it has no python3, and no package manager (apt-get, apk, dnf) that could add one"]),
        (have(IMAGE, init_script="true"), BARE, ["running the init script"], []),
    ],
    ids=["bare", "busybox", "old python", "packages", "packages in busybox", "init script"],
)  # fmt: skip
def test_a_job_gets_what_was_asked_for_and_no_session_s_tools(
    spec: Spec, facts: Facts, steps: list[str], problems: list[str]
) -> None:
    found = plan(have(spec, jupyter="no", vscode="no"), facts, guest=False)
    assert [s.title for s in found.steps] == steps
    assert list(found.problems) == problems
    assert found.absent == {}


def test_as_it_is_when_nothing_is_missing() -> None:
    found = plan(IMAGE, FULL)
    assert (found.steps, found.after, found.files, found.code_server) == ((), FULL, {}, "")


def test_what_is_there_afterwards() -> None:
    after = plan(IMAGE, BARE).after
    assert after.python == "/opt/mlbox/venv/bin/python"
    assert after.jupyter_module and after.usable_python
    assert (after.sshd, after.sftp_server) == ("/usr/sbin/sshd", "/usr/lib/openssh/sftp-server")
    assert after.code_server == "/opt/mlbox/code-server/bin/code-server"
    assert after.path == "/opt/mlbox/venv/bin:/usr/bin:/bin"
    assert after.id == BARE.id


@pytest.mark.parametrize(("manager", "sftp"), [("apt-get", "/usr/lib/openssh/"), ("apk", "/usr/lib/ssh/")])
def test_an_ssh_server_of_the_image_s_own_gets_the_sftp_it_lacks(manager: str, sftp: str) -> None:
    after = plan(IMAGE, replace(FULL, sshd="/opt/sshd", sftp_server="", package_manager=manager)).after
    assert (after.sshd, after.sftp_server) == ("/opt/sshd", f"{sftp}sftp-server")


def test_a_folder_of_the_user_s_for_the_process_runtime() -> None:
    found = plan(PROCESS, PYTHON, "/home/ada/env", root=False)
    assert found.after.python == "/home/ada/env/venv/bin/python"
    assert found.after.code_server == "/home/ada/env/code-server/bin/code-server"
    assert not any(word in script(found) for word in ("apt-get", "apk", "dnf"))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (IMAGE, f"jupyterlab=={layer.JUPYTERLAB}"),
        (have(IMAGE, jupyter_version="4.3.0"), "jupyterlab==4.3.0"),
        (have(IMAGE, packages=("einops>=0.8",)), "einops>=0.8"),
    ],
    ids=["the pin", "another version", "a package"],
)
def test_packages_travel_as_a_file(spec: Spec, line: str) -> None:
    assert line in plan(spec, PYTHON).files["packages.txt"].splitlines()


def test_a_python_that_is_too_old_is_said_before_anything_wants_a_newer_one(tmp_path: Path) -> None:
    """Ubuntu 20.04 has 3.8."""
    installed = plan(IMAGE, BARE).steps[0].script
    old, check = tmp_path / "python3", installed[installed.index("\n/usr/bin/python3") :]
    for minor, code in ((8, 1), (9, 0)):
        old.write_text(f"#!{sys.executable}\nimport sys\nsys.version_info = (3, {minor})\n"
                       "print('Python 3.8.10') if sys.argv[1] == '--version' else exec(sys.argv[2])\n")  # fmt: skip
        old.chmod(0o755)
        script = f"set -eu\n({check.replace('/usr/bin/python3', str(old))}\n)"
        done = subprocess.run(("/bin/sh", "-c", script), capture_output=True, text=True)
        assert (done.returncode, "has Python 3.8.10 only" in done.stdout) == (code, bool(code))
    assert "python3" not in plan(IMAGE, PYTHON).steps[0].script


def test_a_jupyter_of_another_version_is_no_longer_the_image_s_old_one() -> None:
    old = replace(FULL, jupyter_classic=True)
    assert plan(have(IMAGE, packages=("x",)), old).after.jupyter_classic
    assert not plan(have(IMAGE, jupyter_version="4.4.10"), old).after.jupyter_classic


def test_requirements_and_script_travel_as_they_are() -> None:
    found = plan(have(IMAGE, requirements="a\r\nb", init_script="#!/bin/bash\necho é\n"), FULL)
    assert found.files["requirements.txt"] == "a\r\nb"
    assert found.files["init-script"] == "#!/bin/bash\necho é\n"


@pytest.mark.parametrize("line", ["a==1 --hash=sha256:0", "a==1 \\\n  --hash sha256:0", "--require-hashes"])
def test_requirements_with_hashes_come_first_and_hold(line: str) -> None:
    """Beside them pip would ask for a hash of every package."""
    spec = have(IMAGE, requirements=f"{line}\n", vscode="no")
    _, first, locked, last = plan(spec, replace(PYTHON, sshd="/s", sftp_server="/f")).steps[0].script.splitlines()
    assert first.endswith(
        'pip install --no-input --progress-bar off --disable-pip-version-check -r "$BUILD/requirements.txt"'
    )
    assert locked.endswith('pip freeze --local >"$PREFIX/locked.txt"')
    assert last.endswith('-c "$PREFIX/locked.txt" -r "$BUILD/packages.txt"')
    _, alone = plan(have(spec, jupyter="no"), replace(PYTHON, sshd="/s", sftp_server="/f")).steps[0].script.splitlines()
    assert alone == first


@pytest.mark.parametrize(
    ("text", "says"),
    [(f"#!{sys.executable}\nprint(6 * 7)\n", "42"), ("echo $((6 * 7))\n", "42")],
    ids=["shebang", "plain"],
)
def test_the_init_script_is_run_by_what_it_names(text: str, says: str, tmp_path: Path) -> None:
    """Also where it can't be executed, as on a filesystem that is mounted noexec."""
    made = plan(have(IMAGE, init_script=text), FULL)
    for name, content in {**made.files, **titles(made), "run": script(made)}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    environment = {"PREFIX": str(tmp_path / "prefix"), "BUILD": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(("/bin/sh", tmp_path / "run"), env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == says and not list((tmp_path / "prefix").iterdir())


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (FULL, RELEASE),
        (replace(FULL, arch="arm64"), "code-server-4.108.1-linux-arm64.tar.gz"),
        (replace(FULL, arch="arm64", system="macos"), "code-server-4.108.1-macos-arm64.tar.gz"),
    ],
    ids=["amd64", "arm64", "macos"],
)
def test_release_files_are_those_with_a_checksum(facts: Facts, name: str) -> None:
    assert release.file(IMAGE, facts) == name
    assert name[len("code-server-") : -len(".tar.gz")] in release.CODE_SERVER_SHA256


def test_facts_go_over_the_wire_and_come_back() -> None:
    assert Facts.from_wire(FULL.to_wire()) == FULL


# ---- the key -------------------------------------------------------------------------------------

EVERYTHING = have(
    IMAGE, packages=("a",), requirements="b", init_script="c", vscode_extensions=("d.e",),
    extension_files={"f.vsix": "eA=="},
)  # fmt: skip


def test_a_version_of_another_checksum_has_another_key() -> None:
    versions = ("4.99.0", "4.99.0@sha256:" + "1" * 64, "4.99.0@sha256:" + "2" * 64)
    made = [plan(have(EVERYTHING, vscode_version=version), PYTHON) for version in versions]
    assert len({layer.key for layer in made}) == 3
    assert len({layer.code_server for layer in made}) == 1 and "@" not in made[1].code_server


@pytest.mark.parametrize(
    "change",
    [
        {"packages": ("a", "b")}, {"packages": ("b",)}, {"requirements": "b "}, {"init_script": "#!c"},
        {"vscode_extensions": ("d.f",)}, {"extension_files": {"f.vsix": "eQ=="}},
        {"extension_files": {"g.vsix": "eA=="}}, {"jupyter_version": "4.3.0"}, {"vscode_version": "4.99.0"},
        {"jupyter": "no"}, {"vscode": "no"},
    ],
    ids=str,
)  # fmt: skip
def test_other_content_has_another_key(change: dict[str, Any]) -> None:
    assert plan(have(EVERYTHING, **change), PYTHON).key != plan(EVERYTHING, PYTHON).key


@pytest.mark.parametrize(
    "facts",
    [replace(PYTHON, id="sha256:9"), BARE, replace(PYTHON, arch="arm64"), replace(PYTHON, python="/opt/python3")],
    ids=["image", "no python", "processor", "python elsewhere"],
)
def test_another_image_has_another_key(facts: Facts) -> None:
    assert plan(EVERYTHING, facts).key != plan(EVERYTHING, PYTHON).key


@pytest.mark.parametrize(
    "change",
    [
        {"name": "kind-otter"}, {"gpus": "2"}, {"env": {"A": "b"}}, {"user": "root"}, {"user_folder": "~/x"},
        {"engine_args": ("--init",)}, {"authorized_keys": ("k",)}, {"start_timeout": 60}, {"jupyter": "yes"},
        {"image": "another-name-of-it"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_in_the_layer_leaves_its_key(change: dict[str, Any]) -> None:
    assert plan(have(EVERYTHING, **change), PYTHON).key == plan(EVERYTHING, PYTHON).key


def test_a_changed_recipe_changes_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan(EVERYTHING, PYTHON).key
    monkeypatch.setattr(layer, "RECIPE", layer.RECIPE + 1)
    assert plan(EVERYTHING, PYTHON).key != before


# ---- the script ----------------------------------------------------------------------------------

CANARY = "zqxj"
_NASTY = st.lists(
    st.sampled_from(
        ["'", '"', "`", "$(", ")", ";", "\n", "\r", "$BUILD", "&&", "\\", " ", "é", "\x00", "#!", "-", "EOF"]
    ),
    max_size=8,
).map(lambda parts: CANARY + "".join(parts) + CANARY)


def built(spec: Spec) -> Layer:
    return plan(spec, PYTHON)


@given(packages=st.lists(_NASTY, max_size=3), requirements=_NASTY, init=_NASTY)
def test_user_text_never_becomes_shell_text(packages: list[str], requirements: str, init: str) -> None:
    try:
        spec = have(IMAGE, packages=tuple(packages), requirements=requirements, init_script=init)
    except Usage:
        return
    found = built(spec)
    assert CANARY not in script(found)
    assert script(found) == script(built(have(IMAGE, packages=("x",), requirements="x", init_script="x")))
    assert found.files["requirements.txt"] == requirements
    assert found.files["init-script"] == init
    if packages:
        assert found.files["packages.txt"].endswith("\n".join(packages) + "\n")


@given(st.text(max_size=20), st.text(max_size=20).map(lambda t: t + ".vsix"))
def test_names_in_the_script_are_plain_words(extension: str, file_name: str) -> None:
    """The ids and files of extensions are the only words of the user's in it: whatever passes is harmless."""
    for change in ({"vscode_extensions": (extension,)}, {"extension_files": {file_name: ""}}):
        try:
            have(IMAGE, **change)
        except Usage:
            continue
        name = file_name if "extension_files" in change else extension
        assert name.isascii() and not set(name) & set("'\"`$();&|<>\\*?[]{}~!# \t\r\n\0")


def test_every_step_prints_its_title_first() -> None:
    found = built(EVERYTHING)
    text = script(found)
    names = titles(found)
    assert [text.index(f'cat "$BUILD/{name}"') for name in names] == sorted(
        text.index(f'cat "$BUILD/{name}"') for name in names
    )
    assert next(iter(names.values())) == f"@step 1/{len(found.steps)} installing openssh-server, rsync\n"
    assert len(names) == len(found.steps)


def test_what_is_closed_to_the_user_is_told_and_nothing_is_added_for_it() -> None:
    for guest in (True, False):
        found = plan(IMAGE, replace(FULL, root_only=True), guest=guest)
        assert found.problems == ("its files are closed to everybody but root (--user root would do)",)


@pytest.mark.parametrize(
    ("spec", "steps", "problems"),
    [
        (have(IMAGE, jupyter="no", vscode="no"), 0, 0),
        (have(IMAGE, jupyter="no", vscode="no", packages=("six",)), 2, 0),
    ],
    ids=["as it is", "with packages"],
)
def test_a_jobs_image_is_left_as_it_is(spec: Spec, steps: int, problems: int) -> None:
    """A session's guest needs Python and sshd in it; a job's command needs what it needs."""
    found = plan(spec, BARE, guest=False)
    assert (len(found.steps), len(found.problems)) == (steps, problems)
    assert not any("openssh" in step.title for step in found.steps)
    assert any("openssh" in step.title for step in plan(spec, BARE).steps)
