"""The two single files: the same bytes from two builds, small, and at home on every Python and home folder.

The program inside is a stub, so that this tests the building and the unpacking alone. The pinned wheels come
from build/wheels, or once from the package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import build_pyz
import pytest
import pyz_unpack

REPOSITORY = Path(__file__).resolve().parent.parent
WHEELS = REPOSITORY / "build" / "wheels"
STUB = """
def main(argv=None):
    import sys
    import mlbox
    try:
        import psutil
        import psutil as native
    except ImportError as error:
        native = type(error).__name__
    print(mlbox.__file__, getattr(native, "__file__", native), *sys.argv[1:], sep="|")
    return 7
"""
FACTS = "import sys; sys.stdout.write('%d %d ' % sys.version_info[:2] + sys.executable)"


def facts(python: str) -> tuple[int, int, str]:
    """Its version and its own idea of its path; 0.0 for what doesn't run (a version manager's stand-in)."""
    ran = subprocess.run([python, "-c", FACTS], capture_output=True, text=True, check=False)
    major, minor, path = ran.stdout.split(" ", 2) if ran.returncode == 0 else ("0", "0", "")
    return int(major), int(minor), path


def pythons() -> dict[str, tuple[int, int]]:
    """This Python, the system's, an old one by its usual name, and those in MLBOX_TEST_PYTHONS."""
    named = os.environ.get("MLBOX_TEST_PYTHONS", "").split(":")
    paths = [sys.executable, "/usr/bin/python3", shutil.which("python2.7") or "", *named]
    return {path: facts(path)[:2] for path in paths if os.access(path, os.X_OK)}


PYTHONS = [path for path, version in pythons().items() if version >= (3, 9)]
OLD_PYTHONS = [path for path, version in pythons().items() if (0, 0) < version < (3, 9)]


class Built:
    """The two files, built from a copy of the sources with a stub as their program."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        shutil.copytree(REPOSITORY / "mlbox", self.root / "mlbox", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "LICENSE", self.root)
        for entry in (build_pyz.HOST_ENTRY, build_pyz.LAPTOP_ENTRY):
            (self.root / entry.replace(".", "/")).with_suffix(".py").write_text(STUB)
        self.host = build_pyz.build_host(self.root, WHEELS)
        self.laptop = build_pyz.build_laptop(self.host, self.root, WHEELS)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("built"))


def run(python: str, pyz: Path, *words: str, cache: Path | str) -> subprocess.CompletedProcess[str]:
    """Start a single file the way a host is started, with `cache` as the cache folder."""
    flags = ["-I", "-S"] if python in PYTHONS else []  # Python 2.7 has no -I
    env = {"PATH": os.environ["PATH"], "HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    argv = [python, *flags, str(pyz), *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)


def origin(ran: subprocess.CompletedProcess[str]) -> str:
    """Where the stub ran from, after checking that it ran well."""
    assert (ran.returncode, ran.stderr) == (7, "")
    return ran.stdout.split("|")[0]


def unpacked(cache: Path) -> list[Path]:
    return sorted((cache / "mlbox").iterdir())


# ---- building --------------------------------------------------------------------------------------------


def test_two_builds_are_the_same_bytes(built: Built, tmp_path: Path) -> None:
    """Another folder, order of creation, umask, time and locale; and each Python there is."""
    copy = tmp_path / "elsewhere"
    old_umask = os.umask(0o077)
    try:
        for path in [*sorted(built.root.rglob("*.py"), reverse=True), built.root / "LICENSE"]:
            target = copy / path.relative_to(built.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            os.utime(target, (1e9, 1e9))
    finally:
        os.umask(old_umask)
    code = (
        "import sys; from pathlib import Path; from build_pyz import *\n"
        "root, wheels = map(Path, sys.argv[1:]); build_laptop(build_host(root, wheels), root, wheels)"
    )
    for python in PYTHONS:
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY / "scripts"),
            "LC_ALL": "C",
            "TZ": "Asia/Tokyo",
        }
        subprocess.run([python, "-B", "-c", code, str(copy), str(WHEELS)], env=env, check=True)
        assert (copy / "build" / "mlbox-host.pyz").read_bytes() == built.host.read_bytes(), python
        assert (copy / "dist" / "mlbox.pyz").read_bytes() == built.laptop.read_bytes(), python


def test_host_part_is_small_and_complete() -> None:
    host = REPOSITORY / "build" / "mlbox-host.pyz"
    if not host.is_file():
        build_pyz.build_host()
    assert host.stat().st_size <= 1_000_000
    names = set(zipfile.ZipFile(host).namelist())
    assert {"__main__.py", "mlbox/errors.py", "mlbox/core/__init__.py", "pynvml.py", "yaml/__init__.py"} <= names
    assert {
        "native/linux-x86_64/psutil/_psutil_linux.abi3.so",
        "native/linux-aarch64/psutil/_psutil_linux.abi3.so",
        "native/darwin-arm64/psutil/_psutil_osx.abi3.so",
        "native/darwin-x86_64/psutil/_psutil_osx.abi3.so",
    } <= names
    unwanted = ("mlbox/client/", "mlbox/cli", "mlbox/__main__")
    assert not [name for name in names if name.startswith(unwanted) or "tests" in name]


def test_too_big_a_host_part_is_refused(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_pyz, "HOST_LIMIT", 1000)
    with pytest.raises(build_pyz.BuildError, match="the limit is 1000"):
        build_pyz.build_host(built.root, WHEELS, into=tmp_path)


def test_a_wheel_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_pip(argv: tuple[str, ...], **_: object) -> None:
        folder = next(word for word in argv if word.startswith("--dest=")).partition("=")[2]
        (Path(folder) / "tomli-2.5.0-py3-none-any.whl").write_bytes(b"tampered")

    monkeypatch.setattr(subprocess, "run", fake_pip)
    pin = build_pyz.Pin("tomli==2.5.0", "0" * 64, "tomli-2.5.0-py3-none-any.whl")
    (tmp_path / pin.wheel).write_bytes(b"cached, and tampered with")
    with pytest.raises(build_pyz.BuildError, match="its sha256 is"):
        build_pyz.fetch(pin, tmp_path)


def test_an_unpinned_line_is_refused() -> None:
    with pytest.raises(build_pyz.BuildError, match="psutil==7"):
        build_pyz.read_pins("# fine\n\npsutil==7.2.2\n")


# ---- running ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_version_and_nothing_else(python: str, built: Built, tmp_path: Path) -> None:
    for pyz in (built.host, built.laptop):
        ran = run(python, pyz, "--version", cache=tmp_path)
        assert (ran.returncode, ran.stdout) == (0, f"mlbox {build_pyz.version_of(REPOSITORY)}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("python", PYTHONS)
def test_first_run_unpacks_and_later_ones_reuse(python: str, built: Built, tmp_path: Path) -> None:
    first = run(python, built.host, "host", "a b", cache=tmp_path)
    (folder,) = unpacked(tmp_path)
    assert origin(first) == str(folder / "mlbox" / "__init__.py")
    assert first.stdout.rstrip("\n").split("|")[2:] == ["host", "a b"]
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    inode = folder.stat().st_ino
    assert origin(run(python, built.host, "host", cache=tmp_path)) == origin(first)
    assert [path.stat().st_ino for path in unpacked(tmp_path)] == [inode]


def test_what_is_compiled_is_kept_whatever_others_are_asked(built: Built, tmp_path: Path) -> None:
    """PYTHONDONTWRITEBYTECODE, as in many an image, doubled the time that a command takes."""
    env = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = (sys.executable, str(built.host), "host")
    assert origin(subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60))
    assert list(unpacked(tmp_path)[0].rglob("*.pyc"))


@pytest.mark.skipif(
    "-".join((sys.platform, os.uname().machine)) not in build_pyz.NATIVE.values(),
    reason="psutil is not carried for this machine",
)
@pytest.mark.parametrize("python", PYTHONS)
def test_native_psutil_is_loaded(python: str, built: Built, tmp_path: Path) -> None:
    psutil = run(python, built.host, cache=tmp_path).stdout.rstrip("\n").split("|")[1]
    assert psutil == str(unpacked(tmp_path)[0] / "psutil" / "__init__.py")


@pytest.mark.parametrize("python", OLD_PYTHONS)
def test_too_old_a_python_is_told(python: str, built: Built, tmp_path: Path) -> None:
    major, minor, path = facts(python)
    version = f"{major}.{minor}"
    said = f"mlbox: this python is {version} ({path}); mlbox needs 3.9 or newer\n"
    ran = run(python, built.host, "host", cache=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (95, f"mlbox-host-python {version} {path}\n", said)
    ran = run(python, built.laptop, cache=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", said)


def test_an_old_python_was_there() -> None:
    if not OLD_PYTHONS:
        reason = "no Python older than 3.9 here; the lab runs this on python2.7 (or set MLBOX_TEST_PYTHONS)"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)


# ---- caches that cannot be used --------------------------------------------------------------------------


def test_unwritable_cache_runs_from_the_zip(built: Built, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder, so nothing can be made in it, not even by root")
    for cache in (tmp_path / "file", Path("/proc/nowhere")):
        ran = run(sys.executable, built.host, cache=cache)
        assert origin(ran) == str(built.host / "mlbox" / "__init__.py")
        assert "ModuleNotFoundError" in ran.stdout  # psutil, cleanly
        assert origin(run(sys.executable, built.laptop, cache=cache)).startswith(str(built.laptop))


def test_full_disk_leaves_nothing_behind(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, content: bytes) -> None:
        if path.endswith("pynvml.py"):
            raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(pyz_unpack, "_write", full)
    folder = tmp_path / "mlbox" / "mlbox-host-0123-linux-x86_64"
    assert not pyz_unpack.unpack(str(built.host), str(folder), lambda path: os.path.isdir(path))
    assert unpacked(tmp_path) == []


@pytest.mark.parametrize("kind", ["writable by others", "symlink", "file"])
def test_a_folder_that_others_could_fill_is_not_run(kind: str, built: Built, tmp_path: Path) -> None:
    run(sys.executable, built.host, cache=tmp_path)
    (folder,) = unpacked(tmp_path)
    evil = folder / "mlbox" / "entry.py"
    evil.write_text("raise SystemExit('evil')")
    if kind == "symlink":
        folder.rename(tmp_path / "evil")
        folder.symlink_to(tmp_path / "evil")
    elif kind == "file":
        shutil.rmtree(folder)
        folder.touch(0o600)
    else:
        folder.chmod(0o770)
    assert origin(run(sys.executable, built.host, cache=tmp_path)) == str(folder / "mlbox" / "__init__.py")
    assert folder.stat().st_mode & 0o022 == 0
    assert unpacked(tmp_path) == [folder] and not folder.is_symlink()


def test_a_cache_made_under_umask_002_is_closed(built: Built, tmp_path: Path) -> None:
    (tmp_path / "mlbox").mkdir()
    (tmp_path / "mlbox").chmod(0o775)
    assert str(tmp_path) in origin(run(sys.executable, built.host, cache=tmp_path))
    assert (tmp_path / "mlbox").stat().st_mode & 0o777 == 0o700


def test_a_symlinked_cache_is_not_followed(built: Built, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)
    (tmp_path / "mlbox").symlink_to("elsewhere")
    assert origin(run(sys.executable, built.host, cache=tmp_path)).startswith(str(built.host))
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755


def test_a_machine_without_a_build_of_psutil_gets_none_of_it() -> None:
    name = "native/psutil/__init__.py"
    assert pyz_unpack.target(name, "linux-riscv64", carried=False) == ""
    assert pyz_unpack.target(name, "linux-x86_64", carried=True) == "psutil/__init__.py"


def test_many_first_runs_at_once_leave_one_folder(built: Built, tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    argv = [sys.executable, "-I", "-S", str(built.host)]
    started = [subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = {process.communicate(timeout=60)[0] for process in started}
    assert [process.returncode for process in started] == [7] * 6
    assert len(unpacked(tmp_path)) == 1
    assert len(said) == 1 and str(unpacked(tmp_path)[0]) in said.pop()


def test_old_versions_go_but_never_the_newest_three(tmp_path: Path) -> None:
    def made(name: str, days: float) -> str:
        (tmp_path / name).mkdir()
        when = time.time() - days * 86400
        os.utime(tmp_path / name, (when, when))
        return name

    kept = [
        made("mlbox-host-new-linux-x86_64", 0),
        made("mlbox-host-a-linux-x86_64", 40),
        made("mlbox-host-b-linux-x86_64", 50),
        made("mlbox-old-linux-x86_64", 99),  # another file's
        made(".unpacking-now", 0.1),
        made("hosts", 99),
    ]
    made("mlbox-host-c-linux-x86_64", 60)
    made("mlbox-host-d-linux-aarch64", 70)
    made(".unpacking-crashed", 2)
    pyz_unpack.remove_old(str(tmp_path), str(tmp_path / kept[0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_version_in_use_stays_young(built: Built, tmp_path: Path) -> None:
    run(sys.executable, built.host, cache=tmp_path)
    (folder,) = unpacked(tmp_path)
    os.utime(folder, (1e9, 1e9))
    run(sys.executable, built.host, cache=tmp_path)
    assert folder.stat().st_mtime > time.time() - 3600
