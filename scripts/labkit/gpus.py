"""The false GPUs of a host: a line-based file that nvml.c reads anew in every NVML call.

    driver 550.54.15            optional, as are nvml VERSION, cuda 12040, fail NVML_ERROR_CODE
    gpu GPU-…                   starts a GPU; the lines up to the next `gpu` are its own
    name NVIDIA A100-SXM4-80GB
    bus 00000000:17:00.0
    memory 81920                MiB in all; the used part is `used` + the processes'
    used 4 / util 0 / temp 31 / power 20 / limit 400 / minor 0 / capability 8.0
    lost 1                      NVML_ERROR_GPU_IS_LOST from every call
    mig 1                       it is divided
    of GPU-…                    it is an instance of that GPU, which is divided
    mode 2                      its compute mode (2: prohibited)
    proc 4711 2048 C            PID, MiB, C(ompute) G(raphics) or M(PS)

In a container the hook writes `only GPU-a GPU-b` and `include PATH-of-the-host's-file`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from .inventory import DRIVER, HOSTS, RUN
from .shell import LabError, write

FIELDS = ("used", "util", "temp", "power", "limit", "minor", "mode", "mig")


@dataclass(frozen=True)
class Proc:
    """A process on a GPU, with the PID that the host sees; memory in MiB."""

    pid: int
    memory: int = 512
    kind: str = "C"


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in MiB, temperature in °C, power in watts, utilisation in percent."""

    uuid: str
    name: str
    bus: str
    memory: int
    limit: int
    capability: str
    minor: int = 0
    used: int = 4
    util: int = 0
    temp: int = 31
    power: int = 20
    lost: bool = False
    mode: int = 0
    mig: int = 0
    of: str = ""
    procs: tuple[Proc, ...] = ()


def gpus_file(host: str) -> Path:
    """Where a host's GPUs are described, on this machine. Raises LabError for an unknown host."""
    if host not in HOSTS:
        raise LabError(f"no host named {host}; there are {', '.join(HOSTS)}")
    return RUN / "hosts" / host / "gpus" / "gpus"


def default_gpus(host: str) -> list[Gpu]:
    """The idle GPUs a host starts with."""
    here = HOSTS[host]
    return [
        Gpu(
            uuid=here.gpu_uuid(i),
            name=model.name,
            bus=f"00000000:{0x17 + 0x11 * i:02X}:00.0",
            memory=model.memory,
            limit=model.limit,
            capability=model.capability,
            minor=i,
        )
        for i, model in enumerate(here.models)
    ]


def render(gpus: Sequence[Gpu], fail: int = 0) -> str:
    """The file's text. `fail`: an NVML error code that every call answers, 0 for none."""
    lines = [f"driver {DRIVER}", f"nvml 12.{DRIVER}", "cuda 12040"]
    if fail:
        lines.append(f"fail {fail}")
    for gpu in gpus:
        lines += [f"gpu {gpu.uuid}", f"name {gpu.name}", f"bus {gpu.bus}", f"memory {gpu.memory}"]
        lines += [f"{name} {getattr(gpu, name)}" for name in FIELDS]
        lines += [f"capability {gpu.capability}", f"lost {int(gpu.lost)}", *([f"of {gpu.of}"] if gpu.of else [])]
        lines += [f"proc {p.pid} {p.memory} {p.kind}" for p in gpu.procs]
    return "\n".join(lines) + "\n"


def parse(text: str) -> list[Gpu]:
    """Read back what `render` wrote."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "gpu":
            found.append({"uuid": value, "procs": ()})
        elif not found:
            continue
        elif key == "proc":
            pid, memory, kind = value.split()
            found[-1]["procs"] += (Proc(int(pid), int(memory), kind),)
        elif key == "lost":
            found[-1]["lost"] = value == "1"
        else:
            found[-1][key] = int(value) if key in (*FIELDS, "memory") else value
    return [Gpu(**fields) for fields in found]


def read_gpus(host: str) -> list[Gpu]:
    """A host's GPUs as they are now. Raises LabError when the lab is not up."""
    path = gpus_file(host)
    if not path.exists():
        raise LabError(f"{host} is not up; start it with: scripts/lab up")
    return parse(path.read_text())


def set_gpus(host: str, gpus: Sequence[Gpu], fail: int = 0) -> None:
    """Replace a host's GPUs, whole and at once; the next NVML call on it sees them."""
    write(gpus_file(host), render(gpus, fail))


def change(host: str, which: str, how: Callable[[Gpu], Gpu]) -> None:
    """Change one GPU, named by its UUID or index. Raises LabError when there is no such GPU."""
    gpus = read_gpus(host)
    for i, gpu in enumerate(gpus):
        if which in (gpu.uuid, str(i)):
            gpus[i] = how(gpu)
            set_gpus(host, gpus)
            return
    raise LabError(f"{host} has no GPU {which}; its GPUs: {', '.join(g.uuid for g in gpus)}")
