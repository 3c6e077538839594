"""What a session or a job is asked to be, in words: what `show` tells, and what --dry-run would ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlbox.core import text
from mlbox.core.job import JobSpec
from mlbox.core.session import Spec

Json = dict[str, Any]
_MEMORY = ("gpu_memory", "gpu_share", "memory", "output_limit")  # MiB
_TIME = ("time_limit", "backoff", "grace", "start_timeout")  # s
_FILES = ("requirements", "init_script")  # their contents
_UNSAID = ("authorized_keys", "command", "work", "resources")


def foretell(wire: Json, **more: object) -> None:
    """A dry run's, line by line; what is as ever is left out, and of a job what only a session has."""
    usual = _flat(JobSpec().to_wire()) if "work" in wire else Spec().to_wire()
    usual.update({"jupyter": "no", "vscode": "no"} if wire.get("command") else {})
    unusual = {name: value for name, value in _flat(wire).items() if value != usual[name]}
    for name, value in {**unusual, **more}.items():
        if value and name not in _UNSAID:
            print(f"  {name}: {text.safe(said(name, value))}")


def _flat(wire: Json) -> Json:
    """A job's, with what a session asks for too beside the rest; the GPUs are those of its resources."""
    return {**wire.get("work", {}), **wire.get("resources", {}), **wire}


def said(name: str, value: Any) -> str:
    if name in _MEMORY:
        return text.mebibytes(value)
    if name in _TIME:
        return text.duration(value)
    if name in _FILES:
        return text.count(len(value.splitlines()), "line")
    if isinstance(value, Mapping):
        return ", ".join(value if name == "extension_files" else (f"{key}={one}" for key, one in value.items()))
    if isinstance(value, (list, tuple)):
        return ", ".join(_item(item) for item in value)
    return str(value)


def _item(item: Any) -> str:
    """A mount as it is written, another job and the end that is waited for, or a word."""
    if not isinstance(item, Mapping):
        return str(item)
    parts = (("ro" if one else "") if isinstance(one, bool) else str(one) for one in item.values())
    return ":".join(filter(None, parts))
