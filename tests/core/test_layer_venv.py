"""The virtual environment of a layer sees what the Python below it sees, whatever kind of Python that is."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from mlbox.core.venv import NAME, SCRIPT


def on_top_of(python: Path | str, folder: Path) -> str:
    (folder / NAME).write_text(SCRIPT)
    subprocess.run((str(python), str(folder / NAME), str(folder / "top")), check=True)
    return str(folder / "top/bin/python")


def imports(python: str, module: str) -> bool:
    return not subprocess.run((python, "-c", f"import {module}"), stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("system", [True, False])
def test_of_another_one(tmp_path: Path, system: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "the image's own"
    venv.create(below, system_site_packages=system, symlinks=True)
    (tmp_path / "venv.py").write_text("raise SystemExit('not the one that is meant')")
    monkeypatch.chdir(tmp_path)
    places = [next(below.glob("lib/python*/site-packages")), tmp_path / "editable"]
    for number, place in enumerate(places):
        place.mkdir(exist_ok=True)
        (place / f"theirs{number}.py").write_text("")
    (places[0] / "editable.pth").write_text(f"{places[1]}\n")
    for name in ("share/jupyter/lab/index.html", "share/jupyter/kernels/ir/kernel.json", "etc/jupyter/a.d/b.json",
                 "share/jupyter/kernels/python3/kernel.json"):  # fmt: skip
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        (below / name).write_text(name)
    (tmp_path / "developed").mkdir()
    (below / "share/jupyter/labextensions").mkdir()
    (below / "share/jupyter/labextensions/mine").symlink_to(tmp_path / "developed")
    python = on_top_of(below / "bin/python", tmp_path)
    top = Path(python).parents[1]
    assert sorted(path.name for path in top.glob("*/jupyter/*/**/*") if path.is_symlink()) == [
        "b.json", "index.html", "kernel.json", "mine"
    ]  # fmt: skip
    assert (top / "share/jupyter/kernels/ir/kernel.json").read_text() == "share/jupyter/kernels/ir/kernel.json"
    assert not (top / "share/jupyter/lab").is_symlink()
    assert imports(python, "theirs0") and imports(python, "theirs1")
    assert imports(python, "pytest") == imports(str(below / "bin/python"), "pytest")
    assert not (places[0] / "below.pth").exists()


def test_of_the_system_s(tmp_path: Path) -> None:
    base = getattr(sys, "_base_executable", sys.executable)
    python = on_top_of(base, tmp_path)
    for module in ("pytest", "pip"):
        assert imports(python, module) or not imports(base, module)
