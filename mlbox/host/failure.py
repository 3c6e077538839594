"""Why a session did not come up, or a job did not start, as people hear it."""

from __future__ import annotations

import re

from mlbox import errors

_NO_GPUS = re.compile("could not select device driver|nvidia-container-cli|CDI device")
_TOO_OLD = re.compile("nvidia-container-cli: requirement error")  # what an image says of itself
# Of the host, whatever was to be started.
_HOSTS_OWN = (
    (_NO_GPUS, "{runtime} here can't give GPUs to containers",
     "the NVIDIA Container Toolkit is missing or not set up; --gpus 0 starts without"),
    (re.compile("Cannot connect to the Docker daemon|error during connect"), "the daemon of {runtime} does not answer",
     "is it being restarted?"),
    (re.compile("no space left on device"), "{runtime} has no space left here", "`mlbox image prune` makes some"),
)  # fmt: skip
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
_SHOWN, _SAID = 12, 300  # lines of a log; letters of its end


class NotStarted(errors.HostUnready):
    """It may be the host's trouble, or that of what was to be started: another host tells."""


def ended_at_once(runtime: str, code: int, log: str) -> errors.MlboxError:
    known = _known(runtime, log)
    if known:
        return known
    end = "\n".join(log.strip().splitlines()[-_SHOWN:])
    return errors.StartFailed(_indented(f"the session ended at once (exit {code})", end), "another image")


def not_started(runtime: str, log: str) -> errors.HostUnready:
    """By what the engine printed. A NotStarted, unless it is known to be the host's trouble."""
    end = " ".join(log.split())[-_SAID:]
    return _known(runtime, log) or NotStarted(f"{runtime} did not start it: {end}", "its output says more")


def _known(runtime: str, log: str) -> errors.HostUnready | None:
    if _TOO_OLD.search(log):
        return NotStarted("the image needs a newer NVIDIA driver than this host's", "another image, or --on HOST")
    for sign, what, hint in _HOSTS_OWN:
        if sign.search(log):
            return errors.HostUnready(what.format(runtime=runtime), hint)
    for sign, what, hint in _SIGNS:
        found = sign.search(log)
        if found:
            return NotStarted(what.format(runtime=runtime, path=found[1]), hint)
    return None


def of_service(name: str, why: str, log: str) -> errors.StartFailed:
    hint = f"--no-{name} starts without it" if name in ("jupyter", "vscode") else "the image's sshd does not start"
    return errors.StartFailed(_indented(f"{name} {why}", log), hint)


def _indented(first: str, log: str) -> str:
    return first + "".join(f"\n  {line}" for line in log.splitlines())
