"""The code that goes along with a job: what is packed, and what is said of where it came from."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from mlbox.client import code
from mlbox.errors import Usage


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=ada", "-c", "user.email=ada@lab")
    subprocess.run(("git", "-C", str(folder), *identity, *words), check=True, capture_output=True)


def packed(folder: Path) -> dict[str, str]:
    archive, _ = code.pack(str(folder))
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive)), mode="r:gz") as found:
        return {m.name: f"-> {m.linkname}" if m.issym() else found.extractfile(m).read().decode()  # type: ignore[union-attr]
                for m in found}  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("data/\n*.ckpt\n")
    (folder / "src/train.py").write_text("committed")
    (folder / "gone.py").write_text("committed")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_repository_as_it_is_now(repository: Path) -> None:
    """Staged, changed and new files go along; deleted and ignored ones do not."""
    (repository / "src/train.py").write_text("changed")
    (repository / "new.py").write_text("new")
    (repository / "staged.py").write_text("staged")
    git(repository, "add", "staged.py")
    (repository / "gone.py").unlink()
    (repository / "data").mkdir()
    (repository / "data/large").write_text("ignored")
    (repository / "a.ckpt").write_text("ignored")
    (repository / "link").symlink_to("src/train.py")
    assert packed(repository) == {
        ".gitignore": "data/\n*.ckpt\n", "src/train.py": "changed", "new.py": "new", "staged.py": "staged",
        "link": "-> src/train.py",
    }  # fmt: skip


def test_a_folder_inside_a_repository(repository: Path) -> None:
    assert packed(repository / "src") == {"train.py": "committed"}


def test_what_is_known_of_a_repository(repository: Path) -> None:
    git(repository, "remote", "add", "origin", "git@lab:ada/project.git")
    (repository / "new.py").write_text("new")
    _, seen = code.pack(str(repository))
    assert seen["repository"] == "git@lab:ada/project.git"
    assert len(seen["commit"]) == 40 and "new.py" in seen["changed"]


def test_a_plain_folder_goes_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.py").write_text("b")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/b.pyc").write_text("compiled")
    assert packed(tmp_path) == {"a/b.py": "b"}
    assert code.pack(str(tmp_path))[1] == {}


def test_the_same_files_give_the_same_bytes(repository: Path) -> None:
    first = code.pack(str(repository))[0]
    os.utime(repository / "src/train.py", (1, 1))
    assert code.pack(str(repository))[0] == first
    (repository / "src/train.py").chmod(0o755)
    assert code.pack(str(repository))[0] != first


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "LARGEST", 10_000)
    (tmp_path / "large").write_bytes(os.urandom(20_000))
    with pytest.raises(Usage, match="larger than"):
        code.pack(str(tmp_path))


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_LARGEST_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).write_text("")
    with pytest.raises(Usage, match="more than 3 files"):
        code.pack(str(tmp_path))
