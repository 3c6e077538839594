"""The house's import rule: who may import whom, and what the command line may not pay for at its start.

client, host, guest   never one another; all may import core and errors
core                  pure: no files, clock, environment, processes, network
host, guest           the standard library, and (inside functions) pynvml, psutil and yaml
beside the rooms      what several of them share, held to the host's rule; cli*.py and entry.py pick a room
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import build_pyz
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("client", "host", "guest")
PICKERS = ("cli", "entry", "__main__")  # modules beside the rooms that import from them
NOT_SHARED = (*ROOMS, *PICKERS)
IMPURE = {
    *(
        "asyncio",
        "fcntl",
        "getpass",
        "glob",
        "http",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "platform",
    ),
    *("pwd", "random", "secrets", "select", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile"),
    *("threading", "time", "urllib", "uuid"),
}
# Names that touch the machine though their module, or no module at all, is allowed in core.
IMPURE_CALLS = {"open", "input", "print", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
ON_HOSTS = {"psutil", "pynvml", "yaml"}
# What --version and --help must not wait for.
HEAVY = {"asyncio", "fabric", "http", "paramiko", "psutil", "pynvml", "ssl", "tomli", "tomllib", "yaml"}


class Import(NamedTuple):
    """One import statement's target, as an absolute name, and whether it runs when its module is loaded."""

    module: str
    line: int
    at_load: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import in `source`, a module in `package`; `from a import b` counts as a and as a.b."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield Import(name, node.lineno, id(node) not in inside)


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def standard_library() -> frozenset[str]:
    if sys.version_info >= (3, 10):
        return sys.stdlib_module_names
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = {path.name.split(".")[0] for path in (*folder.iterdir(), *folder.glob("lib-dynload/*"))}
    return frozenset(files | set(sys.builtin_module_names) - {"site-packages"})


STANDARD = standard_library() - {"antigravity", "this"}


def breaches(path: str, source: str) -> list[str]:
    """What `source`, at `path` in the repository, does against the rule."""
    parts = Path(path).with_suffix("").parts
    room = parts[1] if len(parts) > 2 else ""
    package = ".".join(parts[:-1])
    found = []
    for item in imports_of(source, package):
        reason = _reason(room, path, item)
        if reason:
            found.append(f"{path}:{item.line}: {reason}: {item.module}")
    if room == "core":
        found += [f"{path}:{line}: core calls {name}()" for name, line in impure_calls(source)]
    return sorted(set(found))


def is_shared(path: str) -> bool:
    """Whether it is a module beside the rooms that any of them may import."""
    words = Path(path).with_suffix("").parts
    return len(words) == 2 and not words[1].startswith(PICKERS)


def _reason(room: str, path: str, item: Import) -> str:
    """Why this import is not allowed there; empty where it is."""
    words = item.module.split(".")
    if item.top == "fabric" and not path.startswith("mlbox/client/transports/fabric/"):
        return "only client/transports/fabric imports fabric"
    if item.top == "mlbox" and len(words) > 1:
        other = words[1]
        if (room in ROOMS or is_shared(path)) and other in NOT_SHARED and other != room:
            return f"{room or 'what the rooms share'} imports {other}"
        if room == "core" and other not in ("core", "errors", "__version__"):
            return "core imports what is not core"
        return ""
    if room == "core" and (item.top in IMPURE or item.top not in STANDARD | {"mlbox"}):
        return "core is pure"
    if room in ("host", "guest") or is_shared(path):
        return _reason_on_hosts(room or "what the rooms share", item)
    return ""


def _reason_on_hosts(room: str, item: Import) -> str:
    if item.top in ON_HOSTS:
        return f"{room} imports it only inside functions" if item.at_load else ""
    return "" if item.top in STANDARD | {"mlbox"} else f"{room} is the standard library, pynvml, psutil and yaml"


def impure_calls(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in IMPURE_CALLS or ".".join(name.split(".")[-2:]) in IMPURE_CALLS - {
                "open",
                "input",
                "print",
            }:
                yield name, node.lineno


def modules() -> list[str]:
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("mlbox/**/*.py"))


@pytest.mark.parametrize("path", modules())
def test_module_keeps_to_its_room(path: str) -> None:
    assert breaches(path, (REPOSITORY / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mlbox/client/cancel.py", "from mlbox.host.store import Store"),
        ("mlbox/client/cancel.py", "from mlbox import host"),
        ("mlbox/client/cancel.py", "from ..host import store"),
        ("mlbox/host/tick.py", "import mlbox.client"),
        ("mlbox/guest/ready.py", "def f():\n    from mlbox.host import lease"),
        ("mlbox/core/job.py", "import os"),
        ("mlbox/core/job.py", "from time import time"),
        ("mlbox/core/job.py", "import urllib.request"),
        ("mlbox/core/job.py", "import yaml"),
        ("mlbox/core/job.py", "from mlbox.host import lease"),
        ("mlbox/core/job.py", "from mlbox import cli"),
        ("mlbox/core/job.py", "import datetime\nnow = datetime.datetime.now()"),
        ("mlbox/core/job.py", "text = open('x').read()"),
        ("mlbox/host/nvml.py", "import pynvml"),
        ("mlbox/host/nvml.py", "class A:\n    import psutil"),
        ("mlbox/host/config.py", "def f():\n    import tomli"),
        ("mlbox/client/hosts.py", "def f():\n    import fabric"),
        ("mlbox/cli.py", "from fabric import Connection"),
        ("mlbox/client/cancel.py", "from mlbox import cli"),
        ("mlbox/host/tick.py", "from mlbox.entry import main"),
        ("mlbox/descriptors.py", "from mlbox.host import lease"),
        ("mlbox/errors.py", "import yaml"),
    ],
)
def test_rule_sees_a_breach(path: str, source: str) -> None:
    assert len(breaches(path, source)) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "mlbox/client/cancel.py",
            "from mlbox.core import wire\nfrom ..errors import Usage\nimport yaml, os",
        ),
        ("mlbox/client/transports/fabric/library.py", "import fabric"),
        ("mlbox/client/transports/openssh.py", "from . import base"),
        ("mlbox/core/job.py", "import json, re\nfrom datetime import datetime\nfrom . import ids"),
        ("mlbox/host/nvml.py", "import os\ndef f():\n    import pynvml\n    import psutil"),
        ("mlbox/host/handlers/cancel.py", "from .. import store\nfrom ...core import job"),
        ("mlbox/cli.py", "from mlbox.client.commands import cancel"),
        ("mlbox/entry.py", "from mlbox.guest import main"),
        ("mlbox/descriptors.py", "import socket"),
        ("mlbox/guest/link.py", "from mlbox import descriptors"),
    ],
)
def test_rule_lets_the_ordinary_pass(path: str, source: str) -> None:
    assert breaches(path, source) == []


def test_host_part_is_whole() -> None:
    """Every module of mlbox that is imported on a host is in the file that is planted there."""
    entries = build_pyz.package_entries(REPOSITORY, build_pyz.HOST_ROOMS)
    missing = [
        f"{path}:{item.line}: {item.module}"
        for path, content in entries.items()
        if path.endswith(".py")
        for item in imports_of(content.decode(), ".".join(path.split("/")[:-1]))
        for file in (f"{item.module.replace('.', '/')}.py", f"{item.module.replace('.', '/')}/__init__.py")
        if item.top == "mlbox" and (REPOSITORY / file).is_file() and file not in entries
    ]
    assert missing == []


def test_command_line_starts_light() -> None:
    code = "import sys, mlbox.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-S", "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert HEAVY & set(ran.stdout.split()) == set()


@pytest.mark.parametrize(
    ("loads", "needless"),
    [
        ("mlbox.client.commands.submit, mlbox.client.transports.local", "concurrent.futures mlbox.client.tunnels.gate"),
        ("mlbox.client.commands.submit", "mlbox.core.schedule.line tarfile yaml urllib.request"),
        ("mlbox.client.commands.submit", "mlbox.core.lab mlbox.core.schedule.view mlbox.client.owners tempfile shutil"),
        ("mlbox.host.serve, mlbox.host.handlers.jobs", "mlbox.core.schedule.line tarfile yaml"),
        ("mlbox.host.serve, mlbox.host.handlers.submit", "tarfile traceback concurrent.futures yaml"),
        ("mlbox.host.serve, mlbox.host.handlers.submit", "mlbox.host.keeper mlbox.host.reverse shutil socket pynvml"),
    ],
)
def test_a_short_command_loads_no_more_than_it_needs(loads: str, needless: str) -> None:
    """Half of what a person waits for is imports."""
    code = f"import sys; sys.path.insert(0, '.'); import {loads}; print(*sys.modules, sep='\\n')"
    asked = (sys.executable, "-I", "-S", "-c", code)
    said = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    assert not set(needless.split()) & set(said.split("\n"))
