"""What there is to make, and of what: the recipe and the content key of every image."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import machine
from .inventory import (
    CACHE,
    CODE_SERVER,
    CODE_SERVER_PACKAGES,
    DATA,
    DOCKER_PACKAGES,
    JUPYTERLAB,
    MUSL_PACKAGES,
    MUSL_WHEELS,
    NODE,
    OLD_PACKAGES,
    PODMAN_PACKAGES,
    SERVER_PACKAGES,
    SHARE_PACKAGES,
    STORE_IMAGE,
    STORE_PACKAGES,
)
from .shell import LabError

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Recipe:
    """How to make an image: a script run in a container of `base`, with `env`. `root`: the folder in there that is the
    image, where it is not the whole container."""

    base: str
    script: str
    env: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    root: str = ""


def _packages(packages: str) -> tuple[tuple[str, str], ...]:
    return (("PACKAGES", packages),)


HOST_PACKAGES = f"{SERVER_PACKAGES} {DOCKER_PACKAGES} {SHARE_PACKAGES}"
SUITES = {"base-bullseye": "bullseye", "base-bookworm": "bookworm", "base-trixie": "trixie"}
RECIPES: dict[str, Recipe] = {
    "host-bullseye": Recipe("base-bullseye", "packages.sh", _packages(HOST_PACKAGES)),
    "host-bookworm": Recipe("base-bookworm", "packages.sh", _packages(HOST_PACKAGES)),
    "host-trixie": Recipe("base-trixie", "packages.sh", _packages(f"{HOST_PACKAGES} docker-cli {PODMAN_PACKAGES}")),
    "host-old": Recipe("base-bullseye", "old.sh", _packages(OLD_PACKAGES)),
    STORE_IMAGE: Recipe("base-bookworm", "packages.sh", _packages(STORE_PACKAGES)),
    "python": Recipe("base-bookworm", "packages.sh", _packages("python3 python3-venv python3-pip")),
    "musl": Recipe("base-trixie", "musl.sh", (*_packages(MUSL_PACKAGES), ("WHEELS", MUSL_WHEELS)), root="/out"),
    "session": Recipe(
        "python",
        "session.sh",
        (
            *_packages("openssh-server git ca-certificates curl rsync"),
            ("JUPYTERLAB", JUPYTERLAB),
            ("CODE_SERVER", CODE_SERVER),
        ),
        needs=("sources",),
    ),
    "sources": Recipe(
        "base-bullseye",
        "code-server.sh",
        (*_packages(CODE_SERVER_PACKAGES), ("CODE_SERVER", CODE_SERVER), ("NODE", NODE)),
    ),
}


def key(name: str) -> str:
    """The content key of a thing; it changes when anything that goes into it does."""
    parts = [name]
    if name in SUITES:
        parts += [(DATA / "recipes" / "strip.sh").read_text(), str(machine.debian_mirrors())]
    elif name == "busybox":
        parts += [hashlib.sha256(busybox().read_bytes()).hexdigest()]
    elif name == "nopython":
        parts += [key("base-bookworm")]
    else:
        recipe = RECIPES[name]
        parts += [key(recipe.base), *(key(need) for need in recipe.needs), str(recipe.env), PATH]
        parts += [(DATA / "recipes" / item).read_text() for item in ("packages.sh", recipe.script)]
        parts += [recipe.root] if recipe.root else []
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def tag_of(name: str) -> str:
    return f"mlbox-lab/{name}:{key(name)}"


def sources() -> Path:
    """The folder with code-server's tarball and SHA256SUMS."""
    return CACHE / f"sources-{key('sources')}"


def busybox() -> Path:
    """The machine's static busybox. Raises LabError when there is none."""
    path = shutil.which("busybox")
    if not path:
        raise LabError("the lab needs busybox-static; there is no busybox")
    return Path(path)
