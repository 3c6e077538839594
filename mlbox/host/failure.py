"""Why a session did not come up, as its caller hears it."""

from __future__ import annotations

import re

from mlbox import errors

_NO_GPUS = ("could not select device driver", "nvidia-container-cli", "CDI device")
# What an engine or the guest's Python says; the first part in brackets is a path.
_SIGNS = (
    (
        re.compile(r"can't open file '(/run/mlbox/[^']*)'.*Permission denied"),
        "a container of {runtime}'s may not read your files on this host",
        "Docker without root knows you as the container's root only: --user root; or --runtime process",
    ),
    (
        re.compile(r"can't open file '(/run/mlbox/[^']*)'.*No such file"),
        "a container of {runtime}'s does not see this host's /tmp",
        "a Docker that is a snap has a /tmp of its own: install its makers', or podman; or --runtime process",
    ),
    (
        re.compile(
            r"(?:creating mount source path '|error mounting \"|statfs )(/[^'\":]*).*(?:permission denied|file exists)"
        ),
        "{runtime} runs as root here, and root may not reach {path}",
        "as on file servers that trust no root: choose folders on the host's own disk (--user-folder, --root), "
        "or --runtime process, or podman without root",
    ),
)
_SHOWN = 12  # lines of a log


def ended_at_once(runtime: str, code: int, log: str) -> errors.MlboxError:
    if any(word in log for word in _NO_GPUS):
        return errors.HostUnready(
            f"{runtime} here can't give GPUs to containers",
            "the NVIDIA Container Toolkit is missing or not set up; --gpus 0 starts without",
        )
    for sign, what, hint in _SIGNS:
        found = sign.search(log)
        if found:
            return errors.HostUnready(what.format(runtime=runtime, path=found[1]), hint)
    end = "\n".join(log.strip().splitlines()[-_SHOWN:])
    return errors.StartFailed(_indented(f"the session ended at once (exit {code})", end), "another image")


def of_service(name: str, why: str, log: str) -> errors.StartFailed:
    hint = f"--no-{name} starts without it" if name in ("jupyter", "vscode") else "the image's sshd does not start"
    return errors.StartFailed(_indented(f"{name} {why}", log), hint)


def _indented(first: str, log: str) -> str:
    return first + "".join(f"\n  {line}" for line in log.splitlines())
