#!/usr/bin/env python3
"""What a real NVIDIA driver answers to all that mlbox asks of it, as a fixture for tests/host/test_nvml.py.

python3 scripts/record_nvml.py >tests/host/golden/nvml/NAME.json     on a host with a card, and nvidia-ml-py
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pynvml

from mlbox.host import nvml


class Recorder(types.ModuleType):
    """pynvml, with each question and its answer kept."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.calls: list[Any] = []
        self._handles: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        there = getattr(pynvml, name)
        return self._asked(name, there) if isinstance(there, types.FunctionType) else there

    def _asked(self, name: str, question: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            asked = [name, *map(self._named, arguments)]
            try:
                answer = question(*arguments)
            except pynvml.NVMLError as error:
                self.calls.append([*asked, {"error": error.value}])
                raise
            if name.endswith("HandleByIndex"):
                self._handles.append(answer)
            self.calls.append([*asked, {"answer": _plain(self._named(answer))}])
            return answer

        return ask

    def _named(self, one: Any) -> Any:
        return next((f"handle {n}" for n, handle in enumerate(self._handles) if handle is one), one)


def _plain(answer: Any) -> Any:
    if isinstance(answer, (list, tuple)):
        return [_plain(one) for one in answer]
    if isinstance(answer, bytes):
        return answer.decode()
    if isinstance(answer, ctypes.Structure) or hasattr(answer, "__dict__"):
        names = [name for name, *_ in getattr(answer, "_fields_", ())] or list(vars(answer))
        return {"fields": {name: _plain(getattr(answer, name)) for name in names}}
    return answer


def main() -> None:
    recorder = Recorder()
    sys.modules["pynvml"] = recorder
    gpus, driver = nvml.gpus()
    facts = {
        "kernel": platform.release(), "driver": driver, "gpus": [asdict(gpu) for gpu in gpus], "calls": recorder.calls,
    }  # fmt: skip
    json.dump(facts, sys.stdout, indent=1)
    print()


main()
