"""What a host tells `mlbox doctor` of itself."""

from __future__ import annotations

import pkgutil
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from queuebox import Box

from mlbox import errors
from mlbox.core import wire
from mlbox.core.finding import Finding
from mlbox.core.gpu import Gpu
from mlbox.host import cron, engines, handlers, inventory, nvml, serve
from mlbox.host.engines.container import Container
from mlbox.host.handlers import doctor
from mlbox.host.serve import Call

REFUSED = errors.HostUnready("ada may not use Docker here", "usermod -aG docker ada")


class Engine:
    def __init__(self, wrong: errors.MlboxError | None) -> None:
        self._wrong = wrong

    def identify(self, spec: object) -> str:
        if self._wrong is not None:
            raise self._wrong
        return ""

    def storage(self) -> Path:
        return Path("/")


def engines_are(monkeypatch: pytest.MonkeyPatch, **wrong: errors.MlboxError | None) -> None:
    monkeypatch.setattr(engines, "present", lambda: [*wrong, "process"])
    monkeypatch.setattr(engines, "by_name", lambda name, found: Engine(wrong[name]))


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=count))


def told(box: Box) -> dict[str, Finding]:
    reply = box.call(doctor)
    assert reply["host"] == box.found.host
    return {one["about"]: Finding.from_wire(one) for one in reply["findings"]}


@pytest.fixture(autouse=True)
def well(monkeypatch: pytest.MonkeyPatch) -> None:
    engines_are(monkeypatch, docker=None)
    free(monkeypatch, 100 << 30)
    gpus = [Gpu(0, "GPU-0", "H100", 80 << 30), Gpu(1, "GPU-1", "H100", 80 << 30)]
    monkeypatch.setattr(inventory, "gpus", lambda found: (gpus, "580.1"))


def test_a_host_that_is_well(box: Box) -> None:
    cron.heard(box.found)
    found = told(box)
    assert {one.grade for one in found.values()} == {"good"}, found
    assert found["GPUs"].words == "2 GPUs, 2 free; driver 580.1"
    assert {"system", "docker", "images", "ROOT", "/tmp", "lab", "cron"} <= set(found)


def test_a_host_of_no_lab(home: Path) -> None:
    findings = doctor.run(Call(wire.Request("doctor", {}, "0123456789abcdef")))["findings"]
    [lab] = [one for one in findings if one["about"] == "lab"]
    assert (lab["grade"], lab["words"]) == ("note", "this host is of no lab yet")


def test_without_cron_it_is_said(box: Box) -> None:
    assert told(box)["cron"].hint == "mlbox cron install"


def test_a_broken_lab_yaml(box: Box) -> None:
    (box.root / "lab.yaml").write_text("queues: {night: {frequency: 7}}\n")
    found = told(box)["lab"]
    assert found.grade == "bad" and "frequency" in found.words


@pytest.mark.parametrize("free_bytes, grade", [(100 << 20, "bad"), (5 << 30, "note")])
def test_little_room(box: Box, monkeypatch: pytest.MonkeyPatch, free_bytes: int, grade: str) -> None:
    free(monkeypatch, free_bytes)
    found = told(box)
    assert (found["ROOT"].grade, found["images"].grade) == (grade, grade)
    assert found["/tmp"].grade == ("bad" if grade == "bad" else "good")


def test_engines(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    engines_are(monkeypatch, docker=REFUSED)
    assert told(box)["docker"] == Finding("bad", "docker", REFUSED.message, REFUSED.hint)
    engines_are(monkeypatch, docker=REFUSED, podman=None)
    found = told(box)
    assert (found["docker"].grade, found["podman"].grade) == ("note", "good")  # there is one to be used
    engines_are(monkeypatch)
    assert told(box)["engine"].grade == "note"


def test_gpus(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Gpu(3, "GPU-3", "H100", 80 << 30, error="fallen off the bus")
    monkeypatch.setattr(inventory, "gpus", lambda found: ([broken], "580.1"))
    assert told(box)["GPU 3"] == Finding("bad", "GPU 3", "H100 is out of order: fallen off the bus")
    monkeypatch.setattr(inventory, "gpus", lambda found: ([], nvml.NONE))
    assert (told(box)["GPUs"].grade, told(box)["GPUs"].words) == ("note", f"none: {nvml.NONE}")
    monkeypatch.setattr(inventory, "gpus", lambda found: ([], "Driver/library version mismatch"))
    assert told(box)["GPUs"].grade == "bad"  # there is a driver, and it does not work


def test_an_engine_that_gives_out_no_gpus(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    class Podman(Container):
        def __init__(self) -> None:
            pass

        def identify(self, spec: object, patience: float = 0.0) -> str:
            return ""

        def devices(self, gpus: Sequence[str]) -> list[str]:
            raise errors.HostUnready(f"no CDI specification here names GPU {gpus[0]}", "nvidia-ctk cdi generate")

    monkeypatch.setattr(engines, "present", lambda: ["podman", "process"])
    monkeypatch.setattr(engines, "by_name", lambda name, found: Podman())
    assert told(box)["podman"] == Finding(
        "bad", "podman", "no CDI specification here names GPU GPU-0", "nvidia-ctk cdi generate"
    )
    monkeypatch.setattr(inventory, "gpus", lambda found: ([], nvml.NONE))
    monkeypatch.setattr(Podman, "storage", lambda self: None)
    assert told(box)["podman"].grade == "good"


def test_it_changes_nothing_of_the_lab_s(box: Box) -> None:
    before = sorted(box.root.rglob("*"))
    told(box)
    assert sorted(box.root.rglob("*")) == before


def test_every_handler_is_a_verb() -> None:
    names = {module.name for module in pkgutil.iter_modules(handlers.__path__)}
    assert names == set(serve.HANDLERS.values())


def test_what_can_not_be_looked_at_hides_nothing_else(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(found: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(inventory, "gpus", fails)
    found = told(box)
    assert found["GPUs"].grade == "bad" and "Input/output error" in found["GPUs"].words
    assert found["docker"].grade == "good"


def test_a_tmp_on_the_network(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "filesystem", lambda folder: "nfs4")
    found = [one for one in box.call(doctor)["findings"] if one["about"] == "/tmp" and one["grade"] == "bad"]
    assert len(found) == 1 and "on this machine alone" in found[0]["words"]
