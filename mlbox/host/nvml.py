"""The GPUs of this host, by NVML (nvidia-ml-py over the driver's libnvidia-ml.so.1).

    nvmlInit; for each index: handle, then every fact on its own, because old cards, vGPUs and unified
    memory answer some questions with "not supported"; nvmlShutdown.

Assumes nothing when there is no driver: no library, no GPUs. A library that does not tell (after an upgrade it may
not be the kernel's any more) says nothing of what there is. A GPU that fails to answer at all (fallen off the bus,
lost) is listed with its error and never chosen; so is one whose compute mode lets nobody on it. Unified-memory GPUs
report no memory of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Callable, TypeVar

from mlbox.core.gpu import Gpu, GpuProcess
from mlbox.host import processes

MIB = 1024 * 1024
DISPLAY_SERVERS = frozenset(
    ["Xorg", "Xwayland", "gnome-shell", "kwin_x11", "kwin_wayland", "mutter-x11-fram", "plasmashell", "sway", "weston"]
)  # as /proc/<pid>/comm has them: 15 characters at most
NONE = "no NVIDIA driver"
_T = TypeVar("_T")


class Failed(Exception):
    """There is a driver, or was, and it tells nothing."""


def is_there() -> bool:
    """Whether there is a driver's library. With it comes pynvml, whose own import costs a host without more than all
    else."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # as pynvml does
    except OSError:
        return False
    with suppress(ImportError):  # said by `gpus`
        import pynvml  # noqa: F401
    return True


def gpus() -> tuple[list[Gpu], str]:
    """All GPUs in NVML's order, and the driver's version; ([], reason) where there is no driver. Raises Failed. A call
    into a driver may never return (host/driver.py)."""
    if not is_there():
        return [], NONE
    try:
        import pynvml
    except ImportError:
        raise Failed("the nvidia-ml-py package is missing") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Failed(_reason(error)) from None
    try:
        driver = _text(_ask(pynvml.nvmlSystemGetDriverVersion, ""))
        return [gpu for index in range(pynvml.nvmlDeviceGetCount()) for gpu in _at(pynvml, index)], driver
    except pynvml.NVMLError as error:
        raise Failed(_reason(error)) from None
    finally:
        pynvml.nvmlShutdown()


def _reason(error: Exception) -> str:
    name = type(error).__name__
    return NONE if "LibraryNotFound" in name or "DriverNotLoaded" in name else str(error)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _ask(question: Callable[..., _T], default: Any, *arguments: Any) -> Any:
    import pynvml

    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return default


def _at(pynvml: Any, index: int) -> Iterator[Gpu]:
    """The GPU; of one that is divided (MIG) its instances, under its index: a program can use nothing else of it."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        yield Gpu(index, "", "unknown GPU", 0, error=str(error))
        return
    if _ask(pynvml.nvmlDeviceGetMigMode, [0], handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        yield _gpu(pynvml, index, handle)
        return
    places = range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, 0, handle))
    instances = [_ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, None, handle, place) for place in places]
    there = [_gpu(pynvml, index, instance) for instance in instances if instance is not None]
    yield from there or [replace(_gpu(pynvml, index, handle), error="it is divided (MIG), and has no instance")]


def _gpu(pynvml: Any, index: int, handle: Any) -> Gpu:
    try:
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError as error:
        return Gpu(index, "", "unknown GPU", 0, error=str(error))
    name = _text(_ask(pynvml.nvmlDeviceGetName, "NVIDIA GPU", handle))
    try:
        memory = _memory(pynvml, handle)
        total, used = memory.total // MIB, memory.used // MIB
    except pynvml.NVMLError_NotSupported:
        total, used = 0, 0
    except pynvml.NVMLError as error:
        return Gpu(index, uuid, name, 0, error=str(error))
    if _ask(pynvml.nvmlDeviceGetComputeMode, None, handle) == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        return Gpu(index, uuid, name, total, used, error="its compute mode is Prohibited")
    try:
        running = _processes(pynvml, handle)
    except pynvml.NVMLError as error:
        return Gpu(index, uuid, name, total, used, error=f"does not tell who uses it: {error}")
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, None, handle)
    return Gpu(
        index, uuid, name, total, used,
        utilization=rates.gpu if rates else 0,
        temperature=_ask(pynvml.nvmlDeviceGetTemperature, 0, handle, pynvml.NVML_TEMPERATURE_GPU),
        power=_ask(pynvml.nvmlDeviceGetPowerUsage, 0, handle) // 1000,
        processes=running,
    )  # fmt: skip


def _memory(pynvml: Any, handle: Any) -> Any:
    """Used memory as nvidia-smi counts it. The older question, which old drivers alone answer, adds what the driver
    keeps for itself: 480 MiB of an H100 that nobody uses."""
    return _ask(pynvml.nvmlDeviceGetMemoryInfo, None, handle, pynvml.nvmlMemory_v2) or pynvml.nvmlDeviceGetMemoryInfo(
        handle
    )


def _processes(pynvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    """Whoever works on this GPU. A display server only draws: counted, it would leave no workstation's GPU free."""
    computing = [
        *_listed(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses, handle),
        *_listed(pynvml, pynvml.nvmlDeviceGetMPSComputeRunningProcesses, handle),
    ]
    drawing = _listed(pynvml, pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
    memory: dict[int, int] = {}
    for process in (*computing, *drawing):  # one that does both is listed twice
        memory[process.pid] = max(memory.get(process.pid, 0), (process.usedGpuMemory or 0) // MIB)
    described = [GpuProcess(pid, *processes.describe(pid), used) for pid, used in sorted(memory.items())]
    works = {process.pid for process in computing}
    return tuple(p for p in described if p.pid in works or p.command not in DISPLAY_SERVERS)


def _listed(pynvml: Any, question: Callable[[Any], list[Any]], handle: Any) -> list[Any]:
    """Only "not supported" means none: a GPU that does not tell who uses it is not taken for free."""
    try:
        return question(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return []
