"""The GPUs of a host, through nvidia-ml-py and a false driver (scripts/labkit/nvml.c)."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pynvml
import pytest
from labkit import gpus as false
from labkit.inventory import DRIVER

from mlbox.core.gpu import Gpu, is_named
from mlbox.host import nvml, processes

RECORDED = Path(__file__).with_name("golden") / "nvml"
SOURCE = Path(__file__).resolve().parents[2] / "scripts/labkit/nvml.c"
_ASK = """
import json, sys
from dataclasses import asdict
from mlbox.host import nvml
try:
    found, driver = nvml.gpus()
except nvml.Failed as failed:
    found, driver = [], f"failed: {failed}"
json.dump([[asdict(g) for g in found], driver], sys.stdout)
"""
IDLE = [false.Gpu(f"GPU-{n}", "NVIDIA A100-SXM4-80GB", f"00000000:{n:02}:00.0", 81920, 400, "8.0", n) for n in range(4)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the false driver with")
    folder = tmp_path_factory.mktemp("driver")
    flags = ("-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1")
    subprocess.run(("gcc", *flags, "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)), check=True)
    return folder


def ask(library: Path, gpus_file: Path) -> tuple[list[Gpu], str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "FALSE_NVML_GPUS": str(gpus_file)}
    done = subprocess.run((sys.executable, "-c", _ASK), env=environment, stdout=subprocess.PIPE, check=True)
    found: Any = json.loads(done.stdout)
    return [Gpu.from_wire(g) for g in found[0]], found[1]


def test_four_gpus_free_busy_lost_and_hot(driver: Path, tmp_path: Path) -> None:
    mine = os.getpid()
    box = [
        IDLE[0],
        replace(IDLE[1], util=97, procs=(false.Proc(mine, 2048), false.Proc(mine, 1, "G"), false.Proc(2**22 + 1, 512))),
        replace(IDLE[2], lost=True),
        replace(IDLE[3], temp=93, power=388),
    ]
    (tmp_path / "gpus").write_text(false.render(box))
    found, version = ask(driver, tmp_path / "gpus")
    assert version == DRIVER
    assert [g.index for g in found] == [0, 1, 2, 3]
    free, busy, lost, hot = found
    assert (free.uuid, free.name, free.memory, free.obstacle) == ("GPU-0", "NVIDIA A100-SXM4-80GB", 81920, "")
    assert (busy.utilization, [p.pid for p in busy.processes]) == (97, [mine, 2**22 + 1])
    assert busy.processes[0].user == getpass.getuser()
    assert busy.processes[0].command and busy.processes[0].memory == 2048
    assert (busy.processes[1].user, busy.processes[1].command, busy.processes[1].memory) == ("", "", 512)
    assert busy.memory_used >= 2048 + 512
    assert lost.error and lost.obstacle
    assert (hot.temperature, hot.power, hot.obstacle) == (93, 388, "")


@pytest.mark.parametrize(("command", "busy"), [("Xorg", False), ("gnome-shell", False), ("blender", True)])
def test_a_display_does_not_make_a_gpu_busy_a_renderer_does(
    driver: Path, tmp_path: Path, command: str, busy: bool
) -> None:
    program = shutil.copy("/bin/cat", tmp_path / command)
    with subprocess.Popen((program,), stdin=subprocess.PIPE) as shower:
        shown = replace(IDLE[0], procs=(false.Proc(shower.pid, 300, "G"),))
        (tmp_path / "gpus").write_text(false.render([shown]))
        assert bool(ask(driver, tmp_path / "gpus")[0][0].obstacle) == busy
        assert shower.stdin is not None
        shower.stdin.close()


def test_a_process_of_the_sharing_server_does(driver: Path, tmp_path: Path) -> None:
    shared = replace(IDLE[0], procs=(false.Proc(os.getpid(), 300, "M"),))
    (tmp_path / "gpus").write_text(false.render([shared]))
    assert [p.pid for p in ask(driver, tmp_path / "gpus")[0][0].processes] == [os.getpid()]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "failed: no NVIDIA driver"), (false.render([], fail=9), "failed: no NVIDIA driver"),
     (false.render([], fail=4), "failed: Insufficient Perm"), (false.render([], fail=18), "failed: RM has detected")],
    ids=["not loaded", "driver not loaded", "no permission", "another version's"],
)  # fmt: skip
def test_a_driver_that_does_not_tell(driver: Path, tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "gpus").write_text(content)
    found, why = ask(driver, tmp_path / "gpus")
    assert found == [] and reason.lower() in why.lower()


def test_no_library_no_gpus(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    assert ask(tmp_path, tmp_path / "gpus") == ([], "no NVIDIA driver")


def test_no_gpus_with_a_driver(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "gpus").write_text(false.render([]))
    assert ask(driver, tmp_path / "gpus") == ([], DRIVER)


def test_a_divided_gpu_is_its_instances(driver: Path, tmp_path: Path) -> None:
    """The whole says nothing of itself to a user, and no program can use it."""
    part = replace(IDLE[1], name=f"{IDLE[1].name} MIG 1g.10gb", memory=9728, of="GPU-1")
    parts = [replace(part, uuid="MIG-a", procs=(false.Proc(os.getpid(), 300),)), replace(part, uuid="MIG-b")]
    (tmp_path / "gpus").write_text(false.render([IDLE[0], replace(IDLE[1], mig=1), *parts, IDLE[2]]))
    found, _ = ask(driver, tmp_path / "gpus")
    assert [(g.uuid, g.index, g.memory, g.error) for g in found] == [
        ("GPU-0", 0, 81920, ""), ("MIG-a", 1, 9728, ""), ("MIG-b", 1, 9728, ""), ("GPU-2", 2, 81920, ""),
    ]  # fmt: skip
    assert [bool(g.obstacle) for g in found] == [False, True, False, False]


def test_a_gpu_that_is_divided_into_nothing_is_out_of_order(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "gpus").write_text(false.render([replace(IDLE[0], mig=1)]))
    assert [(g.uuid, g.error) for g in ask(driver, tmp_path / "gpus")[0]] == [
        ("GPU-0", "it is divided (MIG), and has no instance")
    ]


class Replay(types.ModuleType):
    """pynvml as it answered on a host with a real card (scripts/record_nvml.py)."""

    def __init__(self, calls: list[list[Any]]) -> None:
        super().__init__("pynvml")
        self._answers = {json.dumps(call[:-1]): call[-1] for call in calls}

    def __getattr__(self, name: str) -> Any:
        there = getattr(pynvml, name)
        return partial(self._answer, name) if isinstance(there, types.FunctionType) else there

    def _answer(self, *asked: Any) -> Any:
        said = self._answers[json.dumps(asked)]  # a KeyError: a new question, to be recorded anew
        if "error" in said:
            raise pynvml.NVMLError(said["error"])
        return _made(said["answer"])


def _made(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_made(one) for one in answer]
    return types.SimpleNamespace(**answer["fields"]) if isinstance(answer, dict) else answer


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.json")), ids=lambda path: path.stem)
def test_a_real_card(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads(path.read_text())
    seen = [Gpu.from_wire(gpu) for gpu in recorded["gpus"]]
    users = {p.pid: (p.user, p.command) for gpu in seen for p in gpu.processes}
    monkeypatch.setattr(processes, "describe", users.__getitem__)
    monkeypatch.setattr(nvml, "is_there", lambda: True)
    monkeypatch.setitem(sys.modules, "pynvml", Replay(recorded["calls"]))
    assert nvml.gpus() == (seen, recorded["driver"])


def test_of_a_real_card_that_nobody_uses_nothing_is_used() -> None:
    """The driver's own part of it is nobody's."""
    idle, busy, outsider = (json.loads((RECORDED / f"h100-{what}.json").read_text())["gpus"][0]
                            for what in ("idle", "shared", "outsider"))  # fmt: skip
    assert (idle["memory"], idle["memory_used"], Gpu.from_wire(idle).obstacle) == (81559, 0, "")
    assert len(busy["processes"]) == 2 and "python3" in Gpu.from_wire(outsider).obstacle
    assert is_named(idle["name"], "H100") and is_named(idle["name"], "h100 80gb") and not is_named(idle["name"], "A100")


def test_a_gpu_whose_compute_mode_lets_nobody_on_it_is_out_of_order(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "gpus").write_text(false.render([replace(IDLE[0], mode=2), replace(IDLE[1], mode=3)]))
    assert [g.error for g in ask(driver, tmp_path / "gpus")[0]] == ["its compute mode is Prohibited", ""]
