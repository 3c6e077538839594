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
