"""Container engines: one file each, one Protocol. To add one, write its file and its line in `_FILES`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Protocol

from mlbox import errors
from mlbox.core.facts import Facts
from mlbox.core.layer import Layer
from mlbox.core.session import ENGINES, Mount, Spec
from mlbox.core.stored import Others, Stored
from mlbox.host import store, unable
from mlbox.host.run import Cancel


class Say(Protocol):
    """One progress line for a person: what is being done, and what it said last."""

    def __call__(self, text: str, detail: str = "") -> None: ...


@dataclass(frozen=True)
class Paths:
    """Where a session's parts are, as its guest sees them."""

    run: str  # sockets, conf, logs
    folder: str  # the user's folder: Jupyter's and VS Code's root
    home: str


@dataclass(frozen=True)
class Run:
    """Everything an engine needs to start a session's guest."""

    session: str
    name: str
    image: str
    user: str  # "uid" or "root"
    gpus: tuple[str, ...]
    argv: tuple[str, ...]
    boot_folder: Path
    folder: Path
    home: Path
    mounts: tuple[Mount, ...]
    engine_args: tuple[str, ...]
    env: Mapping[str, str]
    writable: tuple[Path, ...] = ()  # folders in boot_folder, of which all else is read-only inside


@dataclass(frozen=True)
class Build:
    """A layer to make: from `context` (script and files) and `sources` (releases, and Python packages where there are
    `wheels`), on behalf of a session."""

    session: str
    image: str
    layer: Layer
    context: Path
    sources: Path
    wheels: bool = False

    def environment(self, prefix: str, context: str, sources: str) -> dict[str, str]:
        """Of its script, which has these folders by these names."""
        folders = {"PREFIX": prefix, "BUILD": context, "SOURCES": sources}
        if not self.wheels:
            return folders
        links = Path(sources).as_uri()  # pip takes a blank in a path for the next one's beginning
        return {**folders, "PIP_NO_INDEX": "1", "PIP_ONLY_BINARY": ":all:", "PIP_FIND_LINKS": links}


PATIENCE = 60.0  # s


class Silent(errors.HostUnready):
    """An engine did not answer in time."""


class Engine(Protocol):
    def identify(self, spec: Spec, patience: float = PATIENCE) -> str:
        """The content id of what the session will run in; empty where it must be fetched first.

        Raises HostUnready where the engine can't be used, Silent where it takes longer than `patience` (s)."""

    def fetch(self, spec: Spec, say: Say, cancel: Cancel) -> str:
        """Bring the image here; its id. Raises Refused where there is no such image to be had."""

    def facts(self, spec: Spec, identity: str, cancel: Cancel, guest: bool) -> Facts:
        """What is in it; for a job (not `guest`), as far as that needs it."""

    def has_layer(self, layer: Layer) -> str:
        """The name of the layer if it is there already (an image, or a folder)."""

    def build(self, work: Build, say: Say, cancel: Cancel) -> str:
        """Make the layer; its name. Raises StartFailed with the log's end. What is left of a build whose keeper
        was killed is the session's: `remove` ends it."""

    def prefix(self, layer: Layer) -> str:
        """Where the layer's files are, as the guest sees them."""

    def as_root(self) -> bool:
        """Whether a layer may use the package manager."""

    def paths(self, run_folder: Path, folder: Path, home: Path, spec: Spec) -> Paths:
        """The same places as the guest sees them."""

    def visible(self, gpus: Sequence[str]) -> dict[str, str]:
        """The variables that tell programs inside which GPUs are theirs; none where they see no others."""

    def start(self, run: Run, log: int) -> Popen[bytes]:
        """Start the guest; the process returned ends when it ends. Its output goes to the descriptor `log`."""

    def batch(self, run: Run) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """The command whose process is the job's: it ends with the job's exit code, and passes SIGTERM on. And what is
        to be in that command's own environment: `run.env`, where it gets to the job by no file of its boot folder."""

    def ending(self, session: str) -> tuple[int | None, bool]:
        """What the engine itself saw of its end: the exit code (None: it never ran), and whether it was for want of
        memory. Before `remove`. Raises HostUnready where the engine does not say."""

    def remove(self, session: str, grace: float) -> None:
        """End whatever runs for this session: asked, then forced after `grace` seconds; gone on return.

        Raises HostUnready where the engine does not say, or does not do it: something may still run."""

    def layers(self) -> list[Stored]:
        """Those of its layers that mlbox made; `about` begins with the engine's name. Raises HostUnready."""

    def others(self) -> Others | None:
        """The images that mlbox did not make; None where there are none. Raises HostUnready."""

    def forget(self, name: str) -> bool:
        """Remove a layer, unless something is made of it: then False."""

    def storage(self) -> Path | None:
        """The folder that images and containers fill; None where that is not known, or nothing of its own."""


_FILES: Mapping[str, str] = {"docker": "docker", "podman": "podman", "process": "process"}


def by_name(name: str, found: store.Store) -> Engine:
    module = importlib.import_module(f"mlbox.host.engines.{_FILES[name]}")
    engine: Engine = module.make(found)
    return engine


def present() -> list[str]:
    """The engines whose command is on this host, and the one that needs none."""
    import shutil

    return [name for name in _FILES if name == "process" or shutil.which(name)]


@dataclass(frozen=True)
class Choice:
    """`identity`: as the engine had it when it was chosen by that; None where it was not asked."""

    name: str
    identity: str | None = None


def identify(name: str, spec: Spec, found: store.Store) -> str:
    return by_name(name, found).identify(spec)


def choose(spec: Spec, found: store.Store, ask: Callable[[str, Spec, store.Store], str] = identify) -> Choice:
    """The engine that is named; for a spec that leaves it open Docker if its user may use it, or podman; without an
    image none is needed. Raises HostUnready where an image has nothing to run in. `ask`: as `identify`."""
    if spec.runtime in ENGINES:
        return Choice(spec.runtime, ask(spec.runtime, spec, found))
    if spec.runtime == "process":
        return Choice("process")
    if not spec.image:
        return Choice("process")
    problems = []
    for name in (name for name in ENGINES if name in present()):
        try:
            return Choice(name, ask(name, spec, found))
        except errors.HostUnready as error:
            problems.append(error)
    if problems:
        raise min(problems, key=lambda error: unable.of(error)[0])  # the one that is tried again first
    raise errors.HostUnready(
        "there is no container engine on this host (Docker or podman)",
        "install one, or leave out --image: --runtime process needs none",
    )
