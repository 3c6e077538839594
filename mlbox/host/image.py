"""What is inside an image, and what a layer's builder needs around it.

The probe is a POSIX shell script because an image may have no Python. Its answers are kept by the image's
content id: an image is asked once per host and user.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

from mlbox import errors
from mlbox.core.facts import Facts
from mlbox.host import files, here
from mlbox.host.engines import Say
from mlbox.host.run import Result

_SHOWN = 16  # lines of a log: pip's words on what packages want of one another take up to a dozen
_VERSION = 4  # of the probe; its answers from an older one are asked again

_PYTHON = (
    "import sys\n"
    "def has(*names):\n"
    "    try:\n"
    "        for name in names: __import__(name)\n"
    "    except Exception: return 0\n"
    "    return 1\n"
    "print('python_version=%d.%d.%d' % sys.version_info[:3])\n"
    "print('venv=%d' % has('venv', 'ensurepip'))\n"
    "import importlib.util\n"
    "if importlib.util.find_spec('jupyterlab'):\n"
    "    print('jupyter_module=1')\n"
    "    from importlib.metadata import version\n"
    "    print('jupyter_classic=%d' % (int(version('jupyterlab').split('.')[0]) < 3))\n"
)
PROBE = f"""
say() {{ printf '%s=%s\\n' "$1" "$2"; }}
first() {{ for f in "$@"; do if [ -x "$f" ]; then printf '%s' "$f"; return; fi; done; }}
say python "$(command -v python3)"
if command -v python3 >/dev/null; then python3 -c {shlex.quote(_PYTHON)}; fi
say jupyter "$(command -v jupyter-lab)"
say code_server "$(command -v code-server)"
say sshd "$(first /usr/sbin/sshd /usr/local/sbin/sshd "$(command -v sshd)")"
say sftp_server "$(first /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/libexec/sftp-server \
/usr/lib/ssh/sftp-server /usr/lib/sftp-server /usr/local/libexec/sftp-server)"
for m in apt-get apk dnf; do if command -v $m >/dev/null; then say package_manager $m; break; fi; done
say shell "$(first /bin/bash /usr/bin/bash /bin/sh)"
say machine "$(uname -m)"
say kernel "$(uname -s)"
for f in /lib/ld-musl-*; do if [ -e "$f" ]; then say musl 1; fi; done
for f in /lib/ld-linux* /lib64/ld-linux*; do if [ -e "$f" ]; then say musl 0; fi; done
# Alpine's libc6-compat has the name of glibc's loader, too; it is not enough for code-server.
if [ -r /proc/$$/maps ]; then
  while read -r line; do case $line in */ld-musl-*) say musl 1 ;; esac; done </proc/$$/maps
fi
say path "$PATH"
if [ -r /etc/passwd ]; then while read -r line; do say passwd "$line"; done </etc/passwd; fi
if [ -r /etc/group ]; then while read -r line; do say group "$line"; done </etc/group; fi
exit 0
"""
_ARCH = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def parse(identity: str, lines: Sequence[str]) -> Facts:
    """The probe's output as facts; a line that is no answer (an image's own noise) is passed over."""
    said: dict[str, list[str]] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if equals:
            said.setdefault(key, []).append(value)

    def one(key: str) -> str:
        return said.get(key, [""])[-1]

    return Facts(
        id=identity,
        system="macos" if one("kernel") == "Darwin" else "linux",
        arch=_ARCH.get(one("machine"), ""),
        musl=one("musl") == "1",
        python=one("python"),
        python_version=tuple(int(part) for part in one("python_version").split(".") if part.isdigit()),
        venv=one("venv") == "1",
        jupyter_module=one("jupyter_module") == "1",
        jupyter_classic=one("jupyter_classic") == "1",
        jupyter=one("jupyter"),
        code_server=one("code_server"),
        sshd=one("sshd"),
        sftp_server=one("sftp_server"),
        package_manager=one("package_manager"),
        shell=one("shell") or "/bin/sh",
        path=one("path"),
        passwd="\n".join(said.get("passwd", [])),
        group="\n".join(said.get("group", [])),
    )


def _memo(identity: str, user: str) -> Path:
    return here.cache_home() / "images" / f"{identity.rpartition(':')[2][:64]}-{user}-{_VERSION}.json"


def recall(identity: str, user: str) -> Facts | None:
    known = files.read_json(_memo(identity, user))
    return Facts.from_wire(known) if isinstance(known, dict) else None


def remember(identity: str, user: str, facts: Facts) -> Facts:
    import json

    path = _memo(identity, user)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(facts.to_wire()).encode())
    return facts


def ca_bundle() -> str:
    """The host's certificate bundle: behind an inspecting proxy an image's own would not do."""
    candidates = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
    return next((path for path in candidates if os.path.isfile(path)), "")


def write_environment(context: Path, variables: Mapping[str, str], bundle: str, pip_conf: str) -> None:
    """The builder's environment as a file, not as engine arguments: proxies may carry passwords, and a
    commit would keep them. The host's own pip settings and proxies hold in the builder too."""
    values = dict(variables)
    for name, value in os.environ.items():
        if name.lower() in ("http_proxy", "https_proxy", "no_proxy", "all_proxy") or name in (
            "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT",
        ):  # fmt: skip
            values[name] = value
    if bundle:
        for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
            values[name] = bundle
    settings = _pip_settings()
    if settings:
        files.write_whole(context / "pip.conf", settings)
        values["PIP_CONFIG_FILE"] = pip_conf
    values["PIP_ROOT_USER_ACTION"] = "ignore"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
    files.write_whole(context / "run", f'#!/bin/sh\n{exports}exec /bin/sh "$BUILD/layer.sh" 2>&1\n'.encode(), 0o700)


def _pip_settings() -> bytes:
    home = Path.home()
    for path in (home / ".config/pip/pip.conf", home / ".pip/pip.conf", Path("/etc/pip.conf")):
        try:
            return path.read_bytes()
        except OSError:
            continue
    return b""


def step_progress(say: Say) -> Callable[[str], None]:
    """Turns the builder's output into one progress line: the step, and the last line it printed."""
    current = [""]

    def on_line(line: str) -> None:
        if line.startswith("@step "):
            current[0] = line[len("@step ") :]
            say(current[0])
        elif line.strip() and current[0]:
            say(current[0], line.strip()[:100])

    return on_line


def build_failed(result: Result) -> errors.StartFailed:
    steps = [line for line in result.lines if line.startswith("@step ")]
    what = steps[-1].split(" ", 2)[2] if steps else "preparing the layer"
    said = [line for line in result.lines if line.strip() and not line.startswith("@step")]
    tail = "\n".join(f"  {line}" for line in said[-_SHOWN:])
    return errors.StartFailed(
        f"{what} failed (exit {result.code}); the log ends with\n{tail}", "nothing was kept; mend it and run again"
    )
