"""What there is in an image (or on a host, for the process runtime), as a probe found it (host/image.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Json = dict[str, Any]

OLDEST_PYTHON = (3, 9)


@dataclass(frozen=True)
class Facts:
    """What a probe found in an image (or on the host, for the process runtime). Paths are empty where absent."""

    id: str = ""
    system: str = "linux"
    arch: str = ""  # amd64, arm64
    musl: bool = False
    root_only: bool = False  # what the rest tells is closed to everybody but root
    python: str = ""
    python_version: tuple[int, ...] = ()
    venv: bool = False  # python -m venv makes one that has pip
    jupyter_module: bool = False  # that python imports jupyterlab
    jupyter_classic: bool = False  # it is older than 3: on the server of notebook 6, with settings of other names
    jupyter: str = ""  # a jupyter-lab command of another python
    code_server: str = ""
    sshd: str = ""
    sftp_server: str = ""
    package_manager: str = ""  # apt-get, apk, dnf, or empty
    shell: str = "/bin/sh"
    path: str = ""
    passwd: str = ""
    group: str = ""

    @property
    def usable_python(self) -> bool:
        return bool(self.python) and self.python_version >= OLDEST_PYTHON

    def to_wire(self) -> Json:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Facts:
        return cls(**{**data, "python_version": tuple(data.get("python_version", ()))})
