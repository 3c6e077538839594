"""What an image lacks for a session, as a list of steps, a key, and the shell script that adds it.

Pure: the facts about the image come from a probe (host/image.py). The same plan serves a container
(prefix /opt/mlbox, as root in a throw-away builder) and the process runtime (a folder of the user's,
no root). User text never becomes shell text: packages, requirements, scripts and extensions travel as
files beside the script.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mlbox.core import release, venv
from mlbox.core.facts import OLDEST_PYTHON, Facts
from mlbox.core.session import Spec

Json = dict[str, Any]

RECIPE = 2  # raise it when the steps below change, so that old layers are not taken for new ones
CONTAINER_PREFIX = "/opt/mlbox"
CONTAINER_BUILD = "/run/mlbox-build"
PACKAGES = "packages.txt"  # the file of those that pip is to install

JUPYTERLAB = "4.4.10"  # where a session asks for nothing else
_HASHED = re.compile(r"(?:^|\s)--(?:hash|require-hashes)\b", re.M)


@dataclass(frozen=True)
class Step:
    """Of a build: what a person reads meanwhile, and what a shell does."""

    title: str
    script: str


@dataclass(frozen=True)
class Layer:
    """`steps` empty means: the image as it is. `after` are the facts of the image with the layer on top."""

    key: str
    steps: tuple[Step, ...]
    after: Facts
    files: Mapping[str, str]
    code_server: str = ""  # the release file to fetch, such as code-server-4.108.1-linux-amd64.tar.gz
    problems: tuple[str, ...] = ()  # what was asked for with `yes` and can't be had
    absent: Mapping[str, str] = field(default_factory=dict)  # service -> why it will be missing


class _Plan:
    def __init__(self, spec: Spec, facts: Facts, prefix: str, root: bool) -> None:
        self.spec, self.facts, self.prefix, self.root = spec, facts, prefix, root
        self.after = facts
        self.packages: dict[str, None] = {}
        self.steps: list[Step] = []
        self.files: dict[str, str] = {}
        self.release = ""
        self.problems: list[str] = []
        self.absent: dict[str, str] = {}

    def system(self, *names: str) -> bool:
        """Have the image's package manager install something; False where there is none."""
        if not (self.root and self.facts.package_manager):
            return False
        self.packages.update(dict.fromkeys(names))
        return True

    def lacks(self, service: str, why: str) -> None:
        self.absent[service] = why
        if self.spec.wants(service) == "yes":
            self.problems.append(f"{service}: {why}")


_SFTP = ("openssh-sftp-server",)
# With scp, which a client older than OpenSSH 9 looks for at the far end.
_SYSTEM_NAMES = {
    "apt-get": {
        "python": ("python3", "python3-venv", "ca-certificates"),
        "venv": ("python3-venv",),
        "ssh": ("openssh-server", "rsync"),
        "sftp": _SFTP,
    },
    "apk": {"python": ("python3", "py3-pip"), "venv": ("py3-pip",), "ssh": ("openssh", "rsync"), "sftp": _SFTP},
    "dnf": {
        "python": ("python3", "python3-pip"),
        "venv": ("python3-pip",),
        "ssh": ("openssh-server", "openssh-clients"),
    },
}
_SYSTEM_INSTALL = {
    # One source of an image whose key is over, or that is gone, fails the update; what is installed comes from others.
    "apt-get": "export DEBIAN_FRONTEND=noninteractive\napt-get update -qq || :\n"
    "apt-get install -y -qq --no-install-recommends {names}\nrm -rf /var/lib/apt/lists/*",
    "apk": "apk add --no-cache {names}",
    "dnf": "dnf install -y -q {names}\ndnf install -y -q rsync || :\ndnf clean -q all",  # not all of them have it
}
_OLDEST = ".".join(map(str, OLDEST_PYTHON))
_NEW_ENOUGH = f"""
/usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})' || {{
echo "the image's package manager has $(/usr/bin/python3 --version) only; mlbox needs {_OLDEST} or newer"
exit 1
}}"""
_SYSTEM_SFTP = {
    "apt-get": "/usr/lib/openssh/sftp-server",
    "apk": "/usr/lib/ssh/sftp-server",
    "dnf": "/usr/libexec/openssh/sftp-server",
}


def plan(spec: Spec, facts: Facts, prefix: str = CONTAINER_PREFIX, root: bool = True, guest: bool = True) -> Layer:
    """The layer that `spec` needs on top of what `facts` say is there. A job (not `guest`) needs nothing of mlbox's."""
    work = _Plan(spec, facts, prefix, root)
    if guest or facts.root_only or spec.packages or spec.requirements:
        _plan_python(work)
    if guest:
        _plan_ssh(work)
    _plan_environment(work)
    _plan_vscode(work)
    _plan_init(work)
    if work.packages:
        manager = facts.package_manager
        script = _SYSTEM_INSTALL[manager].format(names=" ".join(work.packages))
        script += _NEW_ENOUGH if "python3" in work.packages else ""
        work.steps.insert(0, Step("installing " + ", ".join(work.packages), script))
    return Layer(_key(work), tuple(work.steps), work.after, work.files, work.release, tuple(work.problems), work.absent)


def _names(work: _Plan, what: str) -> tuple[str, ...]:
    return _SYSTEM_NAMES.get(work.facts.package_manager, {}).get(what, ())


def _plan_python(work: _Plan) -> None:
    """The guest itself needs a Python; nothing starts without one."""
    if work.facts.root_only:
        work.problems.append("its files are closed to everybody but root (--user root would do)")
        return
    if work.facts.usable_python:
        return
    found = ".".join(map(str, work.facts.python_version)) if work.facts.python else ""
    if not found and work.system(*_names(work, "python")):
        work.after = replace(work.after, python="/usr/bin/python3", python_version=(*OLDEST_PYTHON,), venv=True)
        return
    if found:
        work.problems.append(f"its python3 is {found}; mlbox needs {_OLDEST} or newer")
    else:
        work.problems.append("it has no python3, and no package manager (apt-get, apk, dnf) that could add one")


def _plan_ssh(work: _Plan) -> None:
    """Alpine's server comes without sftp, on which scp and editors stand."""
    sshd = work.facts.sshd
    if sshd and work.facts.sftp_server:
        return
    names = _names(work, "sftp" if sshd else "ssh")
    if names and work.system(*names):
        sftp = _SYSTEM_SFTP[work.facts.package_manager]
        work.after = replace(work.after, sshd=sshd or "/usr/sbin/sshd", sftp_server=sftp)
    elif not sshd:
        work.lacks("ssh", "no SSH server (sshd) is installed" if not work.root else "the image has no sshd")


def _plan_environment(work: _Plan) -> None:
    """A virtual environment on top of the image's own Python: sees all of its packages, changes none."""
    spec, facts = work.spec, work.after
    has_jupyter = facts.jupyter_module or bool(facts.jupyter)
    wants_jupyter = spec.jupyter != "no" and not has_jupyter
    wanted = bool(spec.packages or spec.requirements)
    if spec.jupyter_version and spec.jupyter != "no":
        wants_jupyter = True
    if not (wants_jupyter or wanted) or not facts.usable_python:
        return
    if not facts.venv and not work.system(*_names(work, "venv")):
        why = f"{facts.python} can't make virtual environments (python3-venv, pip)"
        if wanted:
            work.problems.append(why)
        else:
            work.lacks("jupyter", why)
        return
    lines = []
    brings_jupyter = wants_jupyter or (wanted and not facts.jupyter_module and spec.jupyter != "no")
    if brings_jupyter:
        lines.append(f"jupyterlab=={spec.jupyter_version or JUPYTERLAB}")
        lines.append("ipykernel")
    lines += spec.packages
    work.files[PACKAGES] = "\n".join(lines) + "\n"
    pip = '"$PREFIX/venv/bin/python" -m pip'
    install = f"{pip} install --no-input --progress-bar off --disable-pip-version-check"
    packages, requirements, locked = f'-r "$BUILD/{PACKAGES}"', '-r "$BUILD/requirements.txt"', '"$PREFIX/locked.txt"'
    installs = [f"{install} {packages}"]
    if spec.requirements:
        work.files["requirements.txt"] = spec.requirements
        installs = [f"{install} {packages} {requirements}"]
        if _HASHED.search(spec.requirements):  # pip then wants a hash of all that it is given
            more = [f"{pip} freeze --local >{locked}", f"{install} -c {locked} {packages}"] if lines else []
            installs = [f"{install} {requirements}", *more]
    title = "installing " + ", ".join(
        [*(line.split("==")[0] for line in lines), *(["requirements"] if spec.requirements else [])]
    )
    work.files[venv.NAME] = venv.SCRIPT
    script = "\n".join([f'"{facts.python}" "$BUILD/{venv.NAME}" "$PREFIX/venv"', *installs])
    work.steps.append(Step(title, script))
    work.after = replace(
        work.after,
        python=f"{work.prefix}/venv/bin/python",
        jupyter_module=facts.jupyter_module or brings_jupyter,
        jupyter_classic=facts.jupyter_classic and not brings_jupyter,
        path=f"{work.prefix}/venv/bin:{facts.path}",
    )


def _plan_vscode(work: _Plan) -> None:
    spec, facts = work.spec, work.facts
    if spec.vscode == "no":
        return
    if not facts.code_server or spec.vscode_version:
        if facts.musl:
            work.lacks("vscode", "code-server has no build for musl (Alpine) images")
            return
        if not facts.arch:
            work.lacks("vscode", "code-server has no build for this processor")
            return
        work.release = release.file(spec, facts)
        work.steps.append(
            Step(
                f"adding VS Code ({work.release})",
                'mkdir -p "$PREFIX/code-server"\n'
                f'tar -xzf "$SOURCES/{work.release}" -C "$PREFIX/code-server" --strip-components=1 --no-same-owner',
            )
        )
        work.after = replace(work.after, code_server=f"{work.prefix}/code-server/bin/code-server")
    names = [*spec.vscode_extensions, *(f"$BUILD/{name}" for name in sorted(spec.extension_files))]
    if names:
        command = (
            f'"{work.after.code_server}" --extensions-dir "$PREFIX/extensions" --user-data-dir "$PREFIX/.build-data"'
        )
        lines = [f'{command} --install-extension "{name}"' for name in names]
        # The user who runs the session adds more to the same folder.
        lines += ['rm -rf "$PREFIX/.build-data"', 'chmod -R a+rwX "$PREFIX/extensions"']
        script = "\n".join(lines)
        work.steps.append(Step("adding " + ", ".join([*spec.vscode_extensions, *sorted(spec.extension_files)]), script))


def _plan_init(work: _Plan) -> None:
    if not work.spec.init_script:
        return
    work.files["init-script"] = work.spec.init_script
    run = '/bin/sh "$BUILD/init-script"'
    if work.spec.init_script.startswith("#!"):  # not from where it is: the host's /tmp may be mounted noexec
        copy = '"$PREFIX/.init-script"'
        run = f'cp "$BUILD/init-script" {copy}\nchmod 700 {copy}\n{copy}\nrm {copy}'
    work.steps.append(Step("running the init script", f'export PATH="{work.after.path}"\n{run}'))


def _key(work: _Plan) -> str:
    content = {
        "recipe": RECIPE,
        "image": work.facts.id,
        "steps": [asdict(s) for s in work.steps],
        "files": work.files,
        "extensions": dict(work.spec.extension_files),
        "release": release.checksum(work.spec, work.release) or work.release,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def script(layer: Layer) -> str:
    """The whole layer as one POSIX shell script; it reads $PREFIX, $BUILD and $SOURCES."""
    lines = ["#!/bin/sh", "set -eu", "umask 022", 'mkdir -p "$PREFIX"']
    for number, step in enumerate(layer.steps, 1):
        # `echo` of a file, not of text in the script: a title may hold anything.
        lines += [f'cat "$BUILD/title-{number}"', f"({chr(10)}{step.script}{chr(10)})"]
    return "\n".join(lines) + "\n"


def titles(layer: Layer) -> dict[str, str]:
    """The files title-N: what the builder prints before each step, for the progress line."""
    total = len(layer.steps)
    return {f"title-{n}": f"@step {n}/{total} {s.title}\n" for n, s in enumerate(layer.steps, 1)}
