"""This host's GPUs with their leases: what choosing and showing both start from."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from mlbox.core.gpu import Gpu
from mlbox.host import driver as drivers
from mlbox.host import files, lease, nvml, store

_MOST, _LONGEST, _MOST_AMOUNT = 1000, 100, 2**31  # GPUs; letters of a name, of which NVML gives 96; MiB
Asked = tuple[list[Gpu], str]


def gpus(found: store.Store) -> Asked:
    """The GPUs and the driver's version, or the reason why there are none."""
    return held(*ask(found))


def ask(found: store.Store) -> Asked:
    """Without their leases. While the driver fails they are those that this user's ticks last told of, out of order: a
    host whose GPUs are gone from sight is not one without any."""
    try:
        there, driver = drivers.gpus(found)
    except nvml.Failed as failed:
        driver = str(failed)
        known = from_wire(files.read_json(found.on() / "host.json")) or ()
        there = [Gpu(g.index, g.uuid, g.name, g.memory, error=driver) for g in known]
    return there, driver


def held(there: list[Gpu], driver: str) -> Asked:
    holders = lease.held_by([g.uuid for g in there if g.uuid])
    return [replace(g, holder=holders.get(g.uuid)) for g in there], driver


def to_wire(gpu: Gpu) -> dict[str, Any]:
    return asdict(gpu)


def from_wire(document: Any) -> tuple[Gpu, ...] | None:
    """Of a host.json, which may be anybody's; None where it can't be believed."""
    try:
        gpus = tuple(Gpu.from_wire(gpu) for gpu in document.get("gpus", ()))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    for gpu in gpus[: _MOST + 1]:  # what is reckoned with and shown; the rest of it is nobody's business
        if not all(isinstance(word, str) for word in (gpu.uuid, gpu.name, gpu.error)) or len(gpu.name) > _LONGEST:
            return None
        if not all(type(number) is int and 0 <= number <= _MOST_AMOUNT for number in (gpu.index, gpu.memory)):
            return None
    return gpus if len(gpus) <= _MOST else None
