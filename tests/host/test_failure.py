"""Why a session did not come up: what a log is told as."""

from __future__ import annotations

import pytest

from mlbox import errors
from mlbox.host import failure

PYZ = "/usr/bin/python3: can't open file '/run/mlbox/mlbox-host.pyz': [Errno"
MKDIR = "docker: Error response from daemon: error while creating mount source path '/home/ada/mlbox': mkdir /home/ada"
RUNC = 'error mounting "/share/users/ada/home" to rootfs at "/home/ada": stat /share/users/ada/home'


@pytest.mark.parametrize(
    ("log", "what", "hint"),
    [
        (f"{PYZ} 13] Permission denied", "may not read your files", "--user root"),
        (f"{PYZ} 2] No such file or directory", "does not see this host's /tmp", "a snap"),
        (f"{MKDIR}: permission denied.", "root may not reach /home/ada/mlbox", "--user-folder"),
        (f"{MKDIR}/mlbox: file exists.", "root may not reach /home/ada/mlbox", "--user-folder"),
        (f"runc: {RUNC}: permission denied: unknown.", "root may not reach /share/users/ada/home", "--root"),
        ("Error: statfs /home/ada/mlbox: permission denied", "root may not reach /home/ada/mlbox", "--user-folder"),
    ],
    ids=["Docker without root", "snap", "root_squash", "FUSE", "runc", "podman"],
)
def test_what_keeps_a_container_from_the_users_files_is_told(log: str, what: str, hint: str) -> None:
    found = failure.ended_at_once("docker", 125, f"more\n{log}\nSee 'docker run --help'.\n")
    assert isinstance(found, errors.HostUnready)
    assert what in found.message and hint in found.hint


def test_what_is_not_known_is_shown_as_it_is() -> None:
    found = failure.ended_at_once("docker", 4, "python: permission denied\n")
    assert isinstance(found, errors.StartFailed) and found.message.endswith("  python: permission denied")


@pytest.mark.parametrize(
    ("log", "what", "hosts_own"),
    [
        ('could not select device driver "" with capabilities: [[gpu]].', "can't give GPUs", True),
        ("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch", "GPUs", True),
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0", "newer NVIDIA driver", False),
        ("mkdir /var/lib/docker/overlay2/x: no space left on device", "no space left", True),
        ("docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "does not answer", True),
        (f"{MKDIR}: permission denied.", "root may not reach", False),
        ("unknown flag: --x\nSee 'docker run --help'.", "docker did not start it: unknown flag: --x See", False),
    ],
)
def test_a_host_s_own_trouble_is_told_from_what_may_be_the_job_s(log: str, what: str, hosts_own: bool) -> None:
    found = failure.not_started("docker", log)
    assert what in found.message and isinstance(found, failure.NotStarted) != hosts_own
