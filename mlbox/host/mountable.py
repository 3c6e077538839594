"""What a session may be given of the host's files: what its user may reach, and never a hold on the host."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

from mlbox import errors
from mlbox.core.session import Mount, Spec
from mlbox.host import checks


def check(spec: Spec) -> None:
    """Raises Refused with all that is wrong."""
    own = [partial(_user_folder, Path(os.path.expanduser(spec.user_folder)))] if spec.user_folder else []
    checks.one_by_one([*own, *(partial(_mountable, mount) for mount in spec.mounts)])


def _user_folder(folder: Path) -> None:
    if not os.path.isdir(folder):
        raise errors.Refused(f"there is no folder {folder} on this host", "make it, or choose another --user-folder")
    allowed(folder, write=True)


def _mountable(mount: Mount) -> None:
    source = Path(os.path.expanduser(mount.source))
    if not os.path.exists(source):  # unlike Path.exists, False where a folder on the way is closed to us
        raise errors.Refused(f"there is no {source} on this host to mount", "check --mount")
    allowed(source, write=not mount.read_only)


_FORBIDDEN = ("/", "/dev", "/etc", "/proc", "/run", "/sys", "/var", "/var/run", "/boot", "/root")


def allowed(path: Path, write: bool) -> None:
    real = os.path.realpath(path)
    if real in _FORBIDDEN or real.startswith(("/proc/", "/sys/", "/dev/", "/run/")) or _is_socket(real):
        raise errors.Refused(f"{path} may not be mounted", "it would give the container a hold on the host")
    if not os.access(real, os.R_OK) or (write and not os.access(real, os.W_OK)):
        hint = "" if not write else "add :ro if reading is enough"
        raise errors.Refused(f"you may not {'write to' if write else 'read'} {path}", hint)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False  # told by the checks of rights
