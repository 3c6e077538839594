"""Docker, by its command line (engines/container.py).

Assumes: the user may use the daemon (group docker, or rootless: there only a container's root is the user, `--user
root`); for GPUs the NVIDIA Container Toolkit, as a hook (`--gpus`) or as a CDI specification, which Docker reads from
version 25 on and where it is told to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlbox import errors
from mlbox.host import store
from mlbox.host.engines import Run, cdi
from mlbox.host.engines.command import is_root
from mlbox.host.engines.container import Container


class Docker(Container):
    program, title = "docker", "Docker"

    def unusable(self, error: str) -> errors.MlboxError:
        user = self._user
        if "permission denied" in error.lower():
            hint = f"an administrator can allow it: usermod -aG docker {user}; or use --runtime process"
            return errors.HostUnready(f"{user} may not use Docker here", hint)
        if "Cannot connect" in error or "daemon running" in error:
            return errors.HostUnready("Docker is installed, but its daemon does not answer", "systemctl status docker")
        return errors.HostUnready(f"Docker does not work here: {error[-400:]}", "`docker info` on the host")

    def identity(self, user: str) -> list[str]:
        if is_root(user):
            return ["--user", "0:0"]
        groups = [word for gid in os.getgroups() if gid != os.getgid() for word in ("--group-add", str(gid))]
        return ["--user", f"{os.getuid()}:{os.getgid()}", *groups]

    def devices(self, gpus: Sequence[str]) -> list[str]:
        if cdi.missing(gpus) or not self._reads_cdi():
            return ["--gpus", '"device=' + ",".join(gpus) + '"']
        return cdi.arguments(gpus)

    def batch(self, run: Run) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Docker's command carries the mark by which it is found where it outlives its runner (host/batch.py). Not
        podman's, which leaves processes of its own that are every container's."""
        argv, environment = super().batch(run)
        return argv, {**environment, "MLBOX_SESSION": run.session}

    def _reads_cdi(self) -> bool:
        code, out, _ = self.ask("info", "--format", "{{json .CDISpecDirs}}")  # a field that older ones don't have
        return code == 0 and out.strip() not in ("null", "[]", "")

    def storage(self) -> Path | None:
        try:
            code, out, _ = self.ask("info", "--format", "{{.DockerRootDir}}")
        except errors.HostUnready:  # said by identify
            return None
        return Path(out.strip()) if code == 0 and out.strip() else None


def make(found: store.Store) -> Docker:
    return Docker(found)
