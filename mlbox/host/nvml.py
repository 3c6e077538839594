"""The GPUs of this host, by NVML (nvidia-ml-py over the driver's libnvidia-ml.so.1).

    nvmlInit; for each index: handle, then every fact on its own, because old cards, vGPUs and unified
    memory answer some questions with "not supported"; nvmlShutdown.

Assumes nothing when there is no driver: no library, no GPUs. A GPU that fails to answer at all (fallen off
the bus, lost) is listed with its error and never chosen. Unified-memory GPUs report no memory of their own.
"""

from __future__ import annotations

from typing import Any, Callable, TypeVar

from mlbox.core.gpu import Gpu, GpuProcess
from mlbox.host import processes

MIB = 1024 * 1024
_T = TypeVar("_T")


def gpus() -> tuple[list[Gpu], str]:
    """All GPUs in NVML's order, and the driver's version; ([], reason) where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return [], "the nvidia-ml-py package is missing"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], _reason(error)
    try:
        driver = _text(_ask(pynvml.nvmlSystemGetDriverVersion, ""))
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())], driver
    except pynvml.NVMLError as error:
        return [], _reason(error)
    finally:
        pynvml.nvmlShutdown()


def _reason(error: Exception) -> str:
    name = type(error).__name__
    return "no NVIDIA driver" if "LibraryNotFound" in name or "DriverNotLoaded" in name else str(error)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _ask(question: Callable[..., _T], default: Any, *arguments: Any) -> Any:
    import pynvml

    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return default


def _gpu(pynvml: Any, index: int) -> Gpu:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError as error:
        return Gpu(index, "", "unknown GPU", 0, error=str(error))
    name = _text(_ask(pynvml.nvmlDeviceGetName, "NVIDIA GPU", handle))
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, used = memory.total // MIB, memory.used // MIB
    except pynvml.NVMLError_NotSupported:
        total, used = 0, 0
    except pynvml.NVMLError as error:
        return Gpu(index, uuid, name, 0, error=str(error))
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, None, handle)
    return Gpu(
        index, uuid, name, total, used,
        utilization=rates.gpu if rates else 0,
        temperature=_ask(pynvml.nvmlDeviceGetTemperature, 0, handle, pynvml.NVML_TEMPERATURE_GPU),
        power=_ask(pynvml.nvmlDeviceGetPowerUsage, 0, handle) // 1000,
        processes=_processes(pynvml, handle),
    )  # fmt: skip


def _processes(pynvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    """Compute processes only: a display server on a workstation's GPU does not make it busy."""
    found = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, [], handle)
    found += _ask(pynvml.nvmlDeviceGetMPSComputeRunningProcesses, [], handle)
    memory = {p.pid: (p.usedGpuMemory or 0) // MIB for p in found}
    return tuple(GpuProcess(pid, *processes.describe(pid), used) for pid, used in sorted(memory.items()))
