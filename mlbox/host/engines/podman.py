"""podman, by its command line (engines/container.py): no daemon, and no root unless its user is root.

    rootless  the container's ids are the user's subordinate ones: `keep-id` makes the user's uid the same inside and
              outside, and without it the container's root is the user, so that files stay the user's either way
    rootful   as Docker: it is what root's podman is
    GPUs      by CDI; there is no other way
    names     one without a registry is what podman's own settings make of it, else Docker's: the same on all hosts

Assumes: version 4.1 or newer (CDI); for rootless, subordinate ids in /etc/subuid and /etc/subgid, and where systemd
keeps the user's runtime folder, that it outlives the login (`loginctl enable-linger`): podman forgets its containers
with it. Images are each user's own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core.session import Spec
from mlbox.host import store
from mlbox.host.engines import PATIENCE, Say, cdi
from mlbox.host.engines.command import is_root
from mlbox.host.engines.container import Container
from mlbox.host.run import Cancel, Result

_OLDEST = (4, 1)
_LIMITS = {"--cpu-shares", "--cpus", "--cpuset-cpus", "--memory", "--memory-reservation", "--memory-swap",
           "--pids-limit"}  # fmt: skip
_DOCKERS = "docker.io"  # the registry that Docker takes for a name without one
_SHORT = re.compile(r'short-name ("|resolution enforced)')
LINGER = Path("/var/lib/systemd/linger")


class Podman(Container):
    program, title = "podman", "podman"

    def __init__(self, found: store.Store) -> None:
        super().__init__(found)
        # cron and some logins don't set it, and podman keeps its state elsewhere without: two that know nothing of
        # each other's containers.
        runtime = f"/run/user/{os.getuid()}"
        if os.path.isdir(runtime):
            os.environ.setdefault("XDG_RUNTIME_DIR", runtime)
        os.environ.setdefault("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")  # else a line of it in every log

    @cached_property
    def _info(self) -> dict[str, Any]:
        return self._of_itself(PATIENCE)

    def _of_itself(self, patience: float) -> dict[str, Any]:
        """What it says. Raises HostUnready where it does not work, or not well enough."""
        code, out, error = self.ask("info", "--format", "json", timeout=patience)
        if code != 0:
            raise self.failed(code, error)
        info: dict[str, Any] = json.loads(out)
        version = str(info["version"]["Version"])
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            raise errors.HostUnready(f"podman is {version} here; mlbox needs 4.1 or newer", "or use --runtime process")
        if self._rootless(info) and forgets(os.environ.get("XDG_RUNTIME_DIR", ""), self._user):
            raise errors.HostUnready(
                "podman forgets its containers when you log out of this host", f"loginctl enable-linger {self._user}"
            )
        return info

    @staticmethod
    def _rootless(info: dict[str, Any]) -> bool:
        return bool(info["host"]["security"]["rootless"])

    def unusable(self, error: str) -> errors.MlboxError:
        if "newuidmap" in error or "subuid" in error or "subgid" in error:
            hint = f"an administrator can: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {self._user}"
            return errors.HostUnready(f"{self._user} has no subordinate ids here, without which podman can't run", hint)
        return errors.HostUnready(f"podman does not work here: {error[-400:]}", "`podman info` on the host")

    def identify(self, spec: Spec, patience: float = PATIENCE) -> str:
        self._info = info = self._of_itself(patience)
        limits = sorted({argument.split("=")[0] for argument in spec.engine_args} & _LIMITS)
        if limits and self._rootless(info) and info["host"].get("cgroupVersion") == "v1":
            raise errors.Refused(
                f"podman without root can't limit anything on this host (cgroups v1): {', '.join(limits)}",
                "leave it out, or use Docker",
            )
        return super().identify(spec, patience)

    def pull(self, image: str, say: Say, cancel: Cancel) -> Result:
        """Where no registry is set for short names, or a person would be asked which, podman pulls nothing."""
        result = super().pull(image, say, cancel)
        if result.code == 0 or not _SHORT.search(result.tail):
            return result
        return super().pull(f"{_DOCKERS}/{image if '/' in image else f'library/{image}'}", say, cancel)

    def identity(self, user: str) -> list[str]:
        if is_root(user):
            return ["--user", "0:0"]
        own = ["--user", f"{os.getuid()}:{os.getgid()}"]
        others = [gid for gid in os.getgroups() if gid != os.getgid()]
        if not self._rootless(self._info):
            return [*own, *(word for gid in others for word in ("--group-add", str(gid)))]
        own += ["--userns", "keep-id"]
        # The user's other groups have no number inside; crun can leave them in force all the same.
        if others and self._info["host"]["ociRuntime"]["name"] == "crun":
            own += ["--group-add", "keep-groups"]
        return own

    def devices(self, gpus: Sequence[str]) -> list[str]:
        missing = cdi.missing(gpus)
        if missing:
            raise errors.HostUnready(
                f"no CDI specification here names GPU {missing[0]}, and podman gives out GPUs by no other way",
                "an administrator can: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml; --gpus 0 goes without",
            )
        return cdi.arguments(gpus)

    def storage(self) -> Path | None:
        try:
            return Path(self._info["store"]["graphRoot"])
        except errors.HostUnready:  # said by identify
            return None

    def login(self, registry: str) -> str:
        # Where it is kept by default goes with the login.
        return f"podman login --authfile ~/.config/containers/auth.json {registry or _DOCKERS}"


def forgets(runtime: str, user: str, linger: Path = LINGER) -> bool:
    """Whether the runtime folder of a rootless podman is systemd's, and ends with the last login."""
    return runtime.startswith("/run/user/") and linger.parent.is_dir() and not (linger / user).exists()


def make(found: store.Store) -> Podman:
    return Podman(found)
