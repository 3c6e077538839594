"""The code that goes along with a job: what is packed, and what is said of where it came from."""

from __future__ import annotations

import base64
import io
import os
import shutil
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
        return {member.name: shown(found, member) for member in found}


def shown(found: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = found.extractfile(member) if member.isreg() else None
    return content.read().decode() if content else f"-> {member.linkname}" if member.issym() else "a folder"


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


def test_the_home_folder_goes_along_only_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and tokens lie there, and who submits from a fresh shell is there."""
    (tmp_path / ".netrc").write_text("a password")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Usage, match="home folder") as refused:
        code.pack(".")
    assert "--no-code" in refused.value.hint
    assert packed(Path("~")) == {".netrc": "a password"}


def test_a_plain_folder_goes_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.py").write_text("b")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/b.pyc").write_text("compiled")
    assert packed(tmp_path) == {"a/b.py": "b"}
    assert code.pack(str(tmp_path))[1] == {}


@pytest.mark.parametrize("where", [".", "src"])
@pytest.mark.parametrize("failing", ["rev-parse", "ls-files", ""], ids=["all", "ls-files", "no git"])
def test_what_git_would_have_ignored_is_not_sent_where_git_fails(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, where: str
) -> None:
    """As on a Mac without the command line tools."""
    found = shutil.which("git")
    (tmp_path / "bin").mkdir()
    if failing:
        script = f'#!/bin/sh\ncase "$*" in *{failing}*) echo "xcrun: no tools" >&2; exit 1;; esac\nexec {found} "$@"\n'
        (tmp_path / "bin/git").write_text(script)
        (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(Usage, match="xcrun: no tools" if failing else "it is not installed") as refused:
        code.pack(str(repository / where))
    assert "--no-code" in refused.value.hint
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/train.py").write_text("mine")
    assert packed(tmp_path / "plain") == {"train.py": "mine"}


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


def test_submodules_and_repositories_within_go_along(repository: Path, tmp_path: Path) -> None:
    """As a repository does: what it ignores stays. One that was never fetched is an empty folder."""
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / ".gitignore").write_text("*.ckpt\n")
    (library / "net.py").write_text("net")
    git(library, "add", "-A")
    git(library, "commit", "-qm", "first")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "libs/net")
    git(repository, "commit", "-qm", "library")
    (repository / "libs/net/new.py").write_text("new")
    (repository / "libs/net/a.ckpt").write_text("ignored")
    git(repository, "clone", "-q", str(library), str(repository / "tried"))
    seen = packed(repository)
    assert {name: seen[name] for name in seen if name.startswith(("libs", "tried"))} == {
        "libs/net/.gitignore": "*.ckpt\n", "libs/net/net.py": "net", "libs/net/new.py": "new",
        "tried/.gitignore": "*.ckpt\n", "tried/net.py": "net",
    }  # fmt: skip
    git(repository, "submodule", "--quiet", "deinit", "-f", "libs/net")
    assert packed(repository)["libs/net"] == "a folder"


def test_a_folder_that_a_repository_around_it_ignores_goes_whole(tmp_path: Path) -> None:
    """A home whose dot files are in git, say."""
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/train.py").write_text("mine")
    assert packed(tmp_path / "project") == {"train.py": "mine"}
    assert code.pack(str(tmp_path / "project"))[1] == {}


def test_a_plain_folder_goes_with_its_empty_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "outputs/runs").mkdir(parents=True)
    (tmp_path / "latest").symlink_to("outputs/runs")
    assert packed(tmp_path) == {"outputs/runs": "a folder", "latest": "-> outputs/runs"}


@pytest.mark.parametrize("target", ["/share/data", "../data", "a/../../data"])
def test_a_link_that_no_host_would_unpack_is_said_at_once(tmp_path: Path, target: str) -> None:
    (tmp_path / "data").symlink_to(target)
    with pytest.raises(Usage, match=f"data, a link to {target}, leads out of the code's folder"):
        code.pack(str(tmp_path))


@pytest.mark.parametrize(("limit", "said"), [("MOST_UNPACKED", "0 GiB or more"), ("MOST_FILES", "more than 2 files")])
def test_more_than_a_host_would_unpack_is_said_at_once(
    tmp_path: Path, limit: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, limit, 2)
    for name in "abc":
        (tmp_path / name).write_text("x")
    with pytest.raises(Usage, match=said):
        code.pack(str(tmp_path))


def test_a_file_that_is_written_to_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_text("x" * 1000)
    real = os.lstat

    def then_cut(path: Path) -> os.stat_result:
        seen = real(path)
        if path == tmp_path / "log":
            path.write_text("x")
        return seen

    monkeypatch.setattr(os, "lstat", then_cut)
    with pytest.raises(Usage, match="log can't be sent along: it was written to"):
        code.pack(str(tmp_path))


def test_a_file_that_is_closed_to_us_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("x")

    def closed(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "lstat", closed)
    with pytest.raises(Usage, match="key can't be sent along: Permission denied"):
        code.pack(str(tmp_path))
