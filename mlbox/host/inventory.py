"""This host's GPUs with their leases: what choosing and showing both start from."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from mlbox.core.gpu import Gpu
from mlbox.host import lease, nvml


def gpus() -> tuple[list[Gpu], str]:
    """The GPUs and the driver's version, or the reason why there are none."""
    found, driver = nvml.gpus()
    holders = lease.held_by([g.uuid for g in found if g.uuid])
    return [replace(g, holder=holders.get(g.uuid)) for g in found], driver


def to_wire(gpu: Gpu) -> dict[str, Any]:
    return asdict(gpu)
