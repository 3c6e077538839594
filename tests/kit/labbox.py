"""The lab for tests: a laptop of one's own (a fresh HOME), real hosts, and what was left behind on them."""

from __future__ import annotations

import atexit
import compileall
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from labkit import engine as engines
from labkit.engine import Engine
from labkit.inventory import HOSTS, RUN

ROOT = Path(__file__).parents[2]
PYZ = ROOT / "dist/mlbox.pyz"
LAB = ROOT / "scripts/lab"
SSH_CONFIG = RUN / "ssh/config"
ARTIFACTS = ROOT / "build/artifacts"

SESSION_IMAGE = "mlbox-lab/session:1"
PYTHON_IMAGE = "mlbox-lab/python:1"
NOPYTHON_IMAGE = "mlbox-lab/nopython:1"
MUSL_IMAGE = "mlbox-lab/musl:1"
BUSYBOX_IMAGE = "mlbox-lab/busybox:1"
START = 180.0  # s a session may take to come up here, a layer's build included


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err

    def json(self) -> object:
        return json.loads(self.out)


class Attached:
    """`mlbox session …` in the foreground, without a terminal; its output arrives line by line."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.lines: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """What was printed at once arrives at once: no line of the block without the others."""
        assert self.process.stdout is not None
        rest = b""
        while data := os.read(self.process.stdout.fileno(), 65536):
            *lines, rest = (rest + data).split(b"\n")
            with self._came:
                self.lines += [line.decode() for line in lines]
                self._came.notify_all()
        with self._came:
            self._came.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = START, after: int = 0) -> re.Match[str]:
        """The first line from number `after` on that matches; fails when the command ends or time is up."""

        def found() -> re.Match[str] | None:
            return next((m for line in self.lines[after:] if (m := re.search(pattern, line))), None)

        with self._came:
            self._came.wait_for(lambda: found() or not self._reader.is_alive(), timeout)
            match = found()
        if match is None:
            # the reader may have ended between its last line and our look
            self._reader.join(1)
            match = found()
        assert match is not None, f"never came: {pattern!r}\n{self.text}"
        return match

    def block(self) -> dict[str, str]:
        """name, id, and per service its URL or SSH command, once the session's block is printed."""
        first = self.wait_for(r"session is running:\s+(\S+)\s+\(job (\w+)\)")
        found = {"name": first[1], "id": first[2]}
        for name, title in (("jupyter", "Jupyter"), ("vscode", "VS Code"), ("ssh", "SSH")):
            match = next((m for line in self.lines if (m := re.match(rf"{title}:\s+(.*)", line))), None)
            if match:
                found[name] = match[1]
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # elsewhere mounted
        shutil.copy2(source, target)


@cache
def _after_a_first_start() -> Path:
    """~/.cache, in which the single file keeps itself unpacked and compiled. Each laptop has it: to make it takes a
    third of a second of a core and 266 fsyncs, and most tests are not about that (tests/test_pyz.py)."""
    home = Path(tempfile.mkdtemp(prefix="mlbox-first-start-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    env = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    subprocess.run((sys.executable, str(PYZ), "--help"), env=env, stdout=subprocess.DEVNULL, check=True)
    compileall.compile_dir(home, quiet=2)
    return home / ".cache"


class Laptop:
    """A person's machine: an own HOME, the lab's SSH configuration, and the one file. `user`: as whom hosts are
    reached, where it is not as that configuration says."""

    def __init__(self, home: Path, python: str = sys.executable, user: str = "") -> None:
        self.home, self.python = home, python
        home.mkdir(parents=True, exist_ok=True)
        if not (home / ".cache").exists():
            shutil.copytree(_after_a_first_start(), home / ".cache", copy_function=_link)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "SSH_", "MLBOX_", "PYTHON"))}
        self.env = {**kept, "HOME": str(home), "MLBOX_SSH_CONFIG": str(SSH_CONFIG)}
        self._running: list[Attached] = []
        asked = home / ".local/state/mlbox/asked.json"  # no test waits at that question
        asked.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        asked.write_text('{"ssh-config": "declined"}')
        if user:
            config = home / "ssh_config"
            config.write_text(f"Host *\n    User {user}\nInclude {SSH_CONFIG}\n")
            self.env["MLBOX_SSH_CONFIG"] = str(config)

    def run(self, *arguments: str, timeout: float = START, input: str | None = None, **env: str) -> Result:
        done = subprocess.run(
            [self.python, str(PYZ), *arguments],
            env={**self.env, **env},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def attach(self, *arguments: str, **env: str) -> Attached:
        """Start a command that stays (a session, an attach)."""
        started = Attached([self.python, str(PYZ), *arguments], {**self.env, **env})
        self._running.append(started)
        return started

    def sessions(self, *hosts: str) -> list[dict[str, object]]:
        found = self.run("session", "list", *hosts, "--json").json()
        assert isinstance(found, list)
        return [one for one in found if "error" not in one]  # of a host that did not reply

    def close(self) -> None:
        for running in self._running:
            running.stop(signal.SIGKILL)


def token(url: str) -> str:
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url.split()[0]).query)
    return (query.get("token") or query["tkn"])[0]


def ssh(host: str, command: str, timeout: float = 60, check: bool = True) -> str:
    """A command on a host, as its user over SSH."""
    argv = ["ssh", "-F", str(SSH_CONFIG), "-o", "BatchMode=yes", host, command]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    if check:
        assert done.returncode == 0, f"{host}: {command}: {done.stderr}"
    return done.stdout


@cache
def _engine() -> Engine:
    found = engines.known()
    assert found is not None, "the lab is not up: scripts/lab up"
    return found


def as_root(host: str, *command: str, check: bool = True) -> str:
    """A command on a host, as its root, past SSH."""
    done = _engine().docker("exec", HOSTS[host].container, *command, check=False)
    if check:
        assert done.returncode == 0, f"{host}: {command}: {done.stderr}"
    return done.stdout


def first_process(host: str) -> int:
    """Its first process, by its number on this machine: by it the host's namespaces are entered."""
    return int(_engine().docker("inspect", "-f", "{{.State.Pid}}", HOSTS[host].container).stdout)


def remove_root(host: str, root: str) -> None:
    """A tick that cron began before its line went may still write there; it finds no ROOT any more the next time."""
    as_root(host, "timeout", "60", "sh", "-c", 'until rm -rf -- "$0"; do sleep 0.2; done', root)


_LEFT = """
docker ps -aq --filter label=mlbox.session 2>/dev/null
docker ps -aq --filter label=mlbox.builder 2>/dev/null
podman ps -aq --filter label=mlbox.session 2>/dev/null
find /tmp/mlbox-$(id -u) -mindepth 1 -maxdepth 1 -type d 2>/dev/null
for f in /tmp/mlbox-$(id -u)/*.share /tmp/mlbox-$(id -u)/*.control; do
  id=${f##*/}
  [ ! -e "$f" ] || [ -e "${f%/*}/r.${id%%.*}.call" ] || echo "$f"  # where a tunnel ends they are of a session elsewhere
done
find /tmp/mlbox-$(id -u).shared -mindepth 1 2>/dev/null
find ~/.local/share/mlbox/users/*/on/*/live -type f 2>/dev/null
find /tmp -maxdepth 1 -name 'mlbox-layer-*' 2>/dev/null
for p in /proc/[0-9]*; do
  if [ -r $p/environ ] && tr '\\0' '\\n' <$p/environ 2>/dev/null | grep -q '^MLBOX_SESSION='; then echo $p; fi
done
true
"""


_BLAMED: set[tuple[str, str]] = set()


def left_behind(host: str) -> list[str]:
    """What a session must not leave on a host: containers, folders of this boot, marks, processes.

    Without what an earlier test was blamed for: one leak is one failure."""
    machine = host.partition("-")[0]  # gpu1-ada is another name for one
    return [left for left in ssh(host, _LEFT).split() if (machine, left) not in _BLAMED]


def blame(host: str) -> list[str]:
    """What is left behind, the last time that it is told."""
    left = left_behind(host)
    _BLAMED.update((host.partition("-")[0], one) for one in left)
    return left
