"""What a session, a job and the queue need of this host: each looked at by itself, and told with what would mend it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from mlbox import errors
from mlbox.core import text
from mlbox.core.finding import Finding
from mlbox.core.session import ENGINES, Spec
from mlbox.core.stored import size
from mlbox.host import cron, engines, inventory, lab, nvml, store
from mlbox.host.engines.container import Container
from mlbox.host.handlers.init import filesystem
from mlbox.host.handlers.session import SPACE
from mlbox.host.serve import Call
from mlbox.host.sweep import alone

Json = dict[str, Any]
_LITTLE = 20 << 30  # bytes; less room than that for images and packages is soon full
_NO_IMAGE = "mlbox-doctor:none"  # an engine that works says that it has none


def run(call: Call) -> Json:
    found = store.Store(call.root, dry=True)
    named = [name for name in engines.present() if name in ENGINES]
    looks: dict[str, Callable[[], Sequence[Finding]]] = {
        "system": _system, "GPUs": lambda: _gpus(found), "engine": lambda: _engines(named, found),
        "space": lambda: _space(found), "lab": lambda: _lab(found, call),
    }  # fmt: skip
    with ThreadPoolExecutor(len(looks)) as pool:
        findings = [finding for part in pool.map(_tried, looks, looks.values()) for finding in part]
    return {"host": found.host, "findings": [finding.to_wire() for finding in findings]}


def _tried(about: str, look: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    try:
        return look()
    except (errors.MlboxError, OSError) as error:
        return [_bad(about, error)]


def _bad(about: str, error: Exception) -> Finding:
    if isinstance(error, errors.MlboxError):
        return Finding("bad", about, error.message, error.hint)
    return Finding("bad", about, str(error))


def _system() -> list[Finding]:
    name = ""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
        name = next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), "")
    except OSError:
        pass
    python = ".".join(map(str, sys.version_info[:3]))
    return [Finding("good", "system", f"Python {python} on {name or os.uname().sysname}")]


def _gpus(found: store.Store) -> list[Finding]:
    gpus, driver = inventory.gpus(found)
    if not gpus and driver != nvml.NONE:
        return [Finding("bad", "GPUs", driver, "`nvidia-smi` on the host says more")]
    if not gpus:
        return [Finding("note", "GPUs", f"none: {driver}", "sessions and jobs without --gpus work all the same")]
    findings = []
    for broken in (gpu for gpu in gpus if gpu.error):
        findings.append(Finding("bad", f"GPU {broken.index}", f"{broken.name} is out of order: {broken.error}"))
    if well := [gpu for gpu in gpus if not gpu.error]:
        free = sum(not gpu.obstacle for gpu in well)
        findings.append(Finding("good", "GPUs", f"{text.count(len(well), 'GPU')}, {free} free; driver {driver}"))
    return findings


def _engines(named: Sequence[str], found: store.Store) -> list[Finding]:
    """One that can't be used is no trouble beside another that can."""
    broken, findings = list[Finding](), list[Finding]()
    gpus = list[str]()
    with suppress(errors.MlboxError, OSError):  # said by _gpus
        gpus = [gpu.uuid for gpu in inventory.gpus(found)[0] if not gpu.error]
    for name in named:
        try:
            engine = engines.by_name(name, found)
            engine.identify(Spec(image=_NO_IMAGE, runtime=name))
            if gpus and isinstance(engine, Container):
                engine.devices(gpus)
            storage = engine.storage()
        except errors.MlboxError as error:
            broken.append(_bad(name, error))
            continue
        findings.append(Finding("good", name, "works, and is yours to use"))
        if storage is not None and os.path.exists(storage):
            findings += _room(storage, "images")
    if findings:
        return [*findings, *(replace(one, grade="note") for one in broken)]
    hint = "install Docker or podman for --image"
    return broken or [Finding("note", "engine", "no container engine: sessions and jobs run without one", hint)]


def _space(found: store.Store) -> list[Finding]:
    places = {"ROOT": found.root, "/tmp": Path("/tmp")}
    return [finding for about, folder in places.items() for finding in _place(folder, about)]


def _place(folder: Path, about: str) -> list[Finding]:
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not os.access(there, os.W_OK | os.X_OK):
        return [Finding("bad", about, f"{there} can't be written", "ask its owner, or name another with --root")]
    findings = _room(there, about)
    kind = filesystem(there)
    if about == "/tmp" and kind in ("nfs", "nfs4", "cifs", "fuse.sshfs", "fuse.glusterfs"):
        words = f"it is on the network ({kind}), and locks and sockets are to be on this machine alone"
        findings.append(Finding("bad", about, words, "mount a local folder there"))
    return findings


def _room(folder: Path, about: str) -> list[Finding]:
    free = shutil.disk_usage(folder).free
    words = f"{size(free)} free in {folder}"
    if free < SPACE << 20:
        return [Finding("bad", about, words, f"a session needs {SPACE} MiB: make room there")]
    if free < _LITTLE and about != "/tmp":
        return [Finding("note", about, words, "mlbox image prune makes room")]
    return [Finding("good", about, words)]


def _lab(found: store.Store, call: Call) -> list[Finding]:
    if call.root is None and not (found.root / "mlbox.json").exists():
        return [Finding("note", "lab", "this host is of no lab yet", "mlbox init HOST… --root DIR, for a queue")]
    findings = []
    lab.identify(found.root)
    alone(found)
    rules = lab.rules(found)
    if rules.trouble:
        findings.append(Finding("bad", "lab", rules.trouble, "mend lab.yaml"))
    else:
        hosts = text.count(len(rules.lab.hosts), "host")
        words = f"{found.root} ({filesystem(found.root) or 'a folder'}), {hosts} in lab.yaml"
        findings.append(Finding("good", "lab", words))
    missing, there = cron.missing(found), Finding("good", "cron", "it works the queue off")
    return [*findings, Finding("note", "cron", missing, "mlbox cron install") if missing else there]
