"""Building and keeping the images: systems of the hosts, images for their engines, code-server.

Each thing has a key, the hash of all that goes into it (the recipe's text, packages, versions, the
key of what it stands on). An image is kept twice: in the outer engine, and as a tar in the cache,
for another engine. Old keys of the same name go when a new one is made.
"""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

from . import machine
from .catalog import PATH, RECIPES, SUITES, Recipe, busybox, key, sources, tag_of
from .engine import Engine
from .inventory import CACHE, DATA, LAB, RUN
from .shell import LabError, pipe, run_logged, say


class Store:
    """Makes what is asked for, once, and what that needs. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._failed: dict[str, LabError] = {}

    def ensure(self, name: str) -> None:
        """Have the image (or the sources) `name`: from the engine, the cache, or made now."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name in self._failed:
                raise self._failed[name]
            try:
                self._ensure(name)
            except LabError as error:
                self._failed[name] = error
                raise

    def _ensure(self, name: str) -> None:
        if name == "sources":
            if not sources().is_dir():
                self._timed(name, self._make_sources)
            return
        if name == "nopython":
            self.ensure("base-bookworm")
            self._tag("base-bookworm", name)
            return
        if not self.engine.image_id(tag_of(name)) and not self._load(name):
            self._timed(name, lambda: self._make(name))
        self._tag(name, name)

    def drop_old(self) -> None:
        """Remove the engine's images of keys that nothing makes any more."""
        form = "{{.Repository}}:{{.Tag}}"
        have = self.engine.docker("images", "--format", form, "mlbox-lab/*").stdout.split()
        current = {tag_of(name) for name in (*SUITES, *RECIPES, "busybox", "nopython")}
        old = [tag for tag in have if tag not in current and not tag.endswith(":1")]
        if old:
            self.engine.docker("rmi", *old, check=False)

    def _tag(self, name: str, short: str) -> None:
        """The tag by which the hosts' engines know it."""
        if short in ("busybox", "nopython", "musl", "python", "session"):
            self.engine.docker("tag", tag_of(name), f"mlbox-lab/{short}:1")

    def _timed(self, name: str, work: Callable[[], None]) -> None:
        say(f"making {name} (log: {_log(name)})")
        _log(name).unlink(missing_ok=True)
        begin = time.monotonic()
        work()
        say(f"made {name} in {time.monotonic() - begin:.0f} s")

    def _load(self, name: str) -> bool:
        tar = _tar(name)
        if not tar.exists():
            return False
        say(f"loading {name} from the cache into the engine")
        self.engine.docker("load", "--quiet", "--input", str(tar))
        return True

    def _make(self, name: str) -> None:
        if name in SUITES:
            self._debootstrap(name)
        elif name == "busybox":
            self._make_busybox()
        else:
            recipe = RECIPES[name]
            self.ensure(recipe.base)
            for need in recipe.needs:
                self.ensure(need)
            with self._built(name, recipe) as container:
                if recipe.root:
                    self._import(("docker", "cp", f"{container}:{recipe.root}/.", "-"), name, "/bin/sh")
                else:
                    self.engine.docker("commit", *_changes("/bin/bash"), container, tag_of(name))
        with _partial(_tar(name)) as partial:
            self.engine.docker("save", "--output", str(partial), tag_of(name))
        _drop_others(f"image-{name}-*.tar", _tar(name))

    def _make_sources(self) -> None:
        recipe = RECIPES["sources"]
        self.ensure(recipe.base)
        with _partial(sources()) as partial:
            partial.mkdir()
            with self._built("sources", recipe, "-v", f"{partial}:/out"):
                pass
        _drop_others("sources-*", sources())

    @contextmanager
    def _built(self, name: str, recipe: Recipe, *more: str) -> Iterator[str]:
        """Run the recipe in a container and yield the container's name; it is removed after."""
        container = f"{LAB}-build-{name}"
        self.engine.docker("rm", "-f", container, check=False)
        argv = ["docker", "run", "--name", container, "--label", LAB, "--network", "host"]
        argv += ["-v", f"{DATA / 'recipes'}:/recipes:ro", "-v", f"{RUN / 'certs'}:/lab/certs:ro"]
        argv += ["-v", "/tmp", *more]
        if "sources" in recipe.needs:
            argv += ["-v", f"{sources()}:/sources:ro"]
        for variable, value in (*recipe.env, *_settings()):
            argv += ["-e", f"{variable}={value}"]
        argv += [tag_of(recipe.base), "/bin/sh", f"/recipes/{recipe.script}"]
        try:
            run_logged(argv, _log(name), self.engine.env)
            yield container
        finally:
            self.engine.docker("rm", "-f", "-v", container, check=False)

    def _debootstrap(self, name: str) -> None:
        suite = SUITES[name]
        main, security = machine.debian_mirrors()
        CACHE.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".debootstrap-", dir=CACHE))
        try:
            folder.chmod(0o755)
            argv = ["debootstrap", "--variant=minbase", suite, str(folder), *([main] if main else [])]
            run_logged(argv, _log(name))
            if security:
                with (folder / "etc/apt/sources.list").open("a") as file:
                    file.write(f"deb {security} {suite}-security main\n")
            strip = (DATA / "recipes" / "strip.sh").read_text()
            subprocess.run(("sh", "-euc", strip), cwd=folder, check=True)
            self._import(_packed(folder), name, "/bin/bash")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make_busybox(self) -> None:
        with tempfile.TemporaryDirectory(prefix="mlbox-lab-") as where:
            folder = Path(where)
            folder.chmod(0o755)
            for sub in ("bin", "etc", "tmp", "proc", "sys", "dev"):
                (folder / sub).mkdir()
            (folder / "tmp").chmod(0o1777)
            (folder / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
            shutil.copy(busybox(), folder / "bin/busybox")
            applets = subprocess.check_output((str(busybox()), "--list"), text=True).split()
            for applet in applets:
                if applet != "busybox":
                    (folder / "bin" / applet).symlink_to("busybox")
            self._import(_packed(folder), "busybox", "/bin/sh")

    def _import(self, packed: Sequence[str], name: str, shell: str) -> None:
        """`packed`: the command that prints the image's files as a tar."""
        pipe(packed, ("docker", "import", *_changes(shell), "-", tag_of(name)), self.engine.env)


def _packed(folder: Path) -> tuple[str, ...]:
    return ("tar", "-C", str(folder), "--numeric-owner", "-c", ".")


def _changes(shell: str) -> tuple[str, ...]:
    return ("--change", f"ENV {PATH}", "--change", f'CMD ["{shell}"]')


def _settings() -> tuple[tuple[str, str], ...]:
    """The machine's own registries, for pip and npm inside the recipes."""
    found = [(f"PIP_{k.upper().replace('-', '_')}", v) for k, v in machine.pip_settings().items()]
    registry = machine.npm_registry()
    return (*found, *([("NPM_CONFIG_REGISTRY", registry)] if registry else []))


def _tar(name: str) -> Path:
    return CACHE / f"image-{name}-{key(name)}.tar"


def _log(name: str) -> Path:
    return RUN / "logs" / f"{name}.log"


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to it at the end when all went well."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        partial.rename(path)
    finally:
        _remove(partial)


def _drop_others(pattern: str, keep: Path) -> None:
    for path in CACHE.glob(pattern):
        if path != keep:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
