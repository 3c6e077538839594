"""Which GPUs the host's CDI specifications name: how podman, and a newer Docker, give a container its devices.

A specification is a YAML or JSON file that `nvidia-ctk cdi generate` makes; a device of it has the GPU's UUID as
its name, or (older ones) only its index. Asked for is always the UUID: an index may be another GPU after a reboot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

KIND = "nvidia.com/gpu"
NONE = "NVIDIA_VISIBLE_DEVICES=void"
FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_LARGEST = 4 << 20  # bytes


def missing(gpus: Sequence[str]) -> list[str]:
    """Those of these GPUs that no specification names."""
    named = set(_names())
    return [uuid for uuid in gpus if uuid not in named]


def arguments(gpus: Sequence[str]) -> list[str]:
    """With these devices no variable chooses: an image's own says "all", which NVIDIA's runtime, where it is a host's
    default, would obey as well."""
    return ["--env", NONE, *(word for uuid in gpus for word in ("--device", f"{KIND}={uuid}"))]


def _names() -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            document = _read(path)
            if isinstance(document, dict) and document.get("kind") == KIND:
                devices = document.get("devices")
                for device in devices if isinstance(devices, list) else ():
                    if isinstance(device, dict):
                        yield str(device.get("name"))


def _read(path: Path) -> Any:
    """None where it can't be read; its engine will say why."""
    if path.suffix not in (".json", ".yaml", ".yml"):
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
        if path.suffix == ".json":
            return json.loads(content)
        import yaml  # only where a host has such files

        return yaml.safe_load(content)
    except (OSError, ValueError):
        return None
    except Exception as error:  # PyYAML's own, whose type is only known once it is imported
        if type(error).__module__.startswith("yaml"):
            return None
        raise
