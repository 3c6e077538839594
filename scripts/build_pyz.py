#!/usr/bin/env python3
"""Build mlbox's two single files; standard library and pip only.

    build/mlbox-host.pyz   what is planted on a GPU host: core, host, guest, pynvml, psutil for four
                           platforms; copied to mlbox/_host.pyz, where the package finds it as its own data
    dist/mlbox.pyz         what a laptop runs: the whole package with _host.pyz in it, PyYAML, tomli

Each is a plain zip of Python files with a small __main__.py (pyz_main.py) that unpacks it once
(pyz_unpack.py). The same sources give the same bytes, whatever the folder order, times, umask, locale or
Python. Between machines this holds as long as both have the ordinary zlib (zlib-ng compresses to other
bytes); the name under which a file is unpacked is a hash of what is inside, which does not depend on that.

The wheels come from the package index through pip, are pinned by hash in pyz-requirements.txt, and stay in
build/wheels, so that a second build needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
HOST_LIMIT = 1_000_000  # bytes: it is pushed to every host, over whatever line the user has
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
SHEBANG = b"#!/usr/bin/env python3\n"

HOST_ROOMS = ("core", "host", "guest")
HOST_ENTRY, LAPTOP_ENTRY = "mlbox.entry", "mlbox.cli"
HOST_WHEELS = ("nvidia_ml_py", "psutil", "pyyaml")
LAPTOP_WHEELS = ("pyyaml", "tomli")
# psutil's modules for systems that mlbox doesn't run on; psutil imports one by sys.platform.
UNUSED = re.compile(r"psutil/(tests/|_ps(aix|bsd|sunos|windows)\.py)|example\.py|_yaml/")
NATIVE = {
    "manylinux.*_x86_64": "linux-x86_64",
    "manylinux.*_aarch64": "linux-aarch64",
    "macosx.*_arm64": "darwin-arm64",
    "macosx.*_x86_64": "darwin-x86_64",
}


class BuildError(Exception):
    """What went wrong, and what to try."""


class Pin(NamedTuple):
    """One wheel: what pip calls it, its hash, its file name."""

    requirement: str
    sha256: str
    wheel: str

    @property
    def distribution(self) -> str:
        return self.wheel.split("-")[0]


# ---- wheels ----------------------------------------------------------------------------------------------


def read_pins(text: str) -> list[Pin]:
    """Parse pyz-requirements.txt."""
    pins = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"(\S+==\S+) --hash=sha256:([0-9a-f]{64})  # (\S+\.whl)", line)
        if not found:
            raise BuildError(f"pyz-requirements.txt: cannot read this line: {line}")
        pins.append(Pin(*found.groups()))
    return pins


def fetch(pin: Pin, folder: Path) -> Path:
    """The wheel, from `folder` or else from the package index; its content is checked either way."""
    path = folder / pin.wheel
    if path.is_file() and sha256(path.read_bytes()) == pin.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        subprocess.run(download_command(pin, temporary), check=True, stdin=subprocess.DEVNULL)
        fetched = Path(temporary) / pin.wheel
        if not fetched.is_file():
            got = ", ".join(os.listdir(temporary))
            raise BuildError(f"pip fetched {got} where pyz-requirements.txt names {pin.wheel}")
        found = sha256(fetched.read_bytes())
        if found != pin.sha256:
            raise BuildError(f"{pin.wheel}: its sha256 is {found}, pyz-requirements.txt says {pin.sha256}")
        os.replace(fetched, path)
    return path


def download_command(pin: Pin, folder: str) -> tuple[str, ...]:
    """The pip call that fetches just this wheel on any machine: its own tags are asked for."""
    _, _, python, abi, platforms = pin.wheel[: -len(".whl")].split("-")
    tags = [f"--platform={platform}" for platform in platforms.split(".")]
    if python.startswith("cp"):
        tags += ["--implementation=cp", f"--abi={abi}"]
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.9", f"--dest={folder}")
    return (sys.executable, "-m", "pip", "download", *options, *tags, pin.requirement)


def wheel_entries(wheel: Path) -> dict[str, bytes]:
    """What the single files take from a wheel: Python, its licence, and psutil's compiled part."""
    entries = {}
    native = native_folder(wheel.name) if wheel.name.startswith("psutil-") else ""
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            target = wheel_target(name, native)
            if target:
                entries[target] = packed.read(name)
    return entries


def wheel_target(name: str, native: str) -> str:
    """Where a wheel's entry goes in the single file; empty for nowhere. `native` is set for psutil only."""
    if ".dist-info/" in name:
        distribution = name.split("-")[0]
        return f"licenses/{distribution}" if name.endswith("/LICENSE") else ""
    if UNUSED.match(name):
        return ""
    if native and name.endswith(".abi3.so"):
        return f"native/{native}/{name}"
    if name.endswith(".py"):
        return f"native/{name}" if native else name
    return ""


def native_folder(wheel: str) -> str:
    """The `<sys.platform>-<machine>` that a wheel is for."""
    for pattern, folder in NATIVE.items():
        if re.search(pattern, wheel):
            return folder
    raise BuildError(f"no platform of mlbox matches {wheel}")


# ---- what goes in ----------------------------------------------------------------------------------------


def package_entries(root: Path, rooms: Iterable[str] = ()) -> dict[str, bytes]:
    """The files of mlbox/ under `root`; with `rooms`, those and what is beside them but the laptop's."""
    package = root / "mlbox"
    tops = [package]
    if rooms:
        beside = [path for path in package.glob("*.py") if not path.name.startswith(("cli", "__main__"))]
        tops = [*beside, *(package / room for room in rooms)]
    entries = {}
    for top in tops:
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and wanted(path.relative_to(package)):
                entries[path.relative_to(root).as_posix()] = path.read_bytes()
    return entries


def wanted(path: Path) -> bool:
    """Not what Python, editors or this script leave in a working tree."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and path.suffix not in (".pyc", ".orig", ".rej") and path.name not in ("_host.pyz",)


def third_party(pins: Iterable[Pin], distributions: tuple[str, ...], wheels: Path) -> dict[str, bytes]:
    entries: dict[str, bytes] = {}
    for pin in pins:
        if pin.distribution in distributions:
            entries.update(wheel_entries(fetch(pin, wheels)))
    return entries


def common_entries(root: Path) -> dict[str, bytes]:
    unpack = Path(__file__).with_name("pyz_unpack.py").read_bytes()
    return {"mlbox_unpack.py": unpack, "licenses/mlbox": (root / "LICENSE").read_bytes()}


def bootstrap(name: str, entry: str, version: str, entries: dict[str, bytes]) -> bytes:
    """__main__.py with its words filled in."""
    text = Path(__file__).with_name("pyz_main.py").read_text(encoding="ascii")
    words = {"NAME": name, "VERSION": version, "PAYLOAD": payload_hash(entries), "ENTRY": entry}
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text.encode("ascii")


def payload_hash(entries: dict[str, bytes]) -> str:
    """A hash of names and contents, the same however they are compressed."""
    total = hashlib.sha256()
    for name in sorted(entries):
        total.update(f"{name}\0{len(entries[name])}\0".encode())
        total.update(entries[name])
    return total.hexdigest()


def version_of(root: Path) -> str:
    """mlbox.__version__, read and not imported: the build may run on a Python without mlbox's libraries."""
    text = (root / "mlbox" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([0-9A-Za-z.+]+)"$', text, re.MULTILINE)
    if not found:
        raise BuildError('mlbox/__init__.py has no line __version__ = "…"')
    return found.group(1)


# ---- the zip ---------------------------------------------------------------------------------------------


def write_pyz(path: Path, entries: dict[str, bytes]) -> None:
    """Write a zip whose bytes depend on `entries` alone; it appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".pyz-", dir=path.parent)
    try:
        with open(descriptor, "w+b") as file:
            file.write(SHEBANG)
            with zipfile.ZipFile(file, "w") as packed:
                for name in sorted(entries):
                    packed.writestr(zip_info(name), entries[name], zipfile.ZIP_DEFLATED, 9)
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system = 3  # Unix, also when built elsewhere
    info.external_attr = 0o100644 << 16
    return info


# ---- the two files ---------------------------------------------------------------------------------------


def build_host(root: Path = REPOSITORY, wheels: Path | None = None, into: Path | None = None) -> Path:
    """Build the host's file, and put a copy into the package under `root`. `into`: instead of both."""
    pins = read_pins(Path(__file__).with_name("pyz-requirements.txt").read_text(encoding="utf-8"))
    entries = package_entries(root, HOST_ROOMS)
    entries.update(third_party(pins, HOST_WHEELS, wheels or root / "build" / "wheels"))
    entries.update(common_entries(root))
    entries["__main__.py"] = bootstrap("mlbox-host", HOST_ENTRY, version_of(root), entries)
    path = (into or root / "build") / "mlbox-host.pyz"
    write_pyz(path, entries)
    if path.stat().st_size > HOST_LIMIT:
        raise BuildError(f"{path} has {path.stat().st_size} bytes, the limit is {HOST_LIMIT}")
    if into is None:
        copy_whole(path, root / "mlbox" / "_host.pyz")
    return path


def build_laptop(host: Path, root: Path = REPOSITORY, wheels: Path | None = None, into: Path | None = None) -> Path:
    """Build the laptop's file around the host's."""
    pins = read_pins(Path(__file__).with_name("pyz-requirements.txt").read_text(encoding="utf-8"))
    entries = package_entries(root)
    entries["mlbox/_host.pyz"] = host.read_bytes()
    entries.update(third_party(pins, LAPTOP_WHEELS, wheels or root / "build" / "wheels"))
    entries.update(common_entries(root))
    entries["__main__.py"] = bootstrap("mlbox", LAPTOP_ENTRY, version_of(root), entries)
    path = (into or root / "dist") / "mlbox.pyz"
    write_pyz(path, entries)
    return path


def copy_whole(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build mlbox's single files.")
    parser.add_argument("--into", type=Path, help="put both files here, and leave the working tree alone")
    parser.add_argument("--host-only", action="store_true", help="only the file for GPU hosts")
    options = parser.parse_args(argv)
    try:
        built = [build_host(into=options.into)]
        if not options.host_only:
            built.append(build_laptop(built[0], into=options.into))
    except BuildError as error:
        print(f"build_pyz: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"build_pyz: pip failed ({error.returncode}); is the package index reachable?", file=sys.stderr)
        return 1
    for path in built:
        content = path.read_bytes()
        print(f"{sha256(content)}  {len(content):>9,} bytes  {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
