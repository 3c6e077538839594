"""Where VS Code's server comes from: never without a checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.core import layer
from mlbox.core import release as releases
from mlbox.core.facts import Facts
from mlbox.core.session import Spec
from mlbox.host import sources
from mlbox.host.engines import Build
from mlbox.host.run import Cancel, Cancelled

NAME = "code-server-4.108.1-linux-amd64.tar.gz"
CONTENT = b"the release"
SUM = hashlib.sha256(CONTENT).hexdigest()


def say(text: str, detail: str = "") -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "sources"
    made.mkdir()
    (made / NAME).write_bytes(CONTENT)
    (made / "SHA256SUMS").write_text(f"{'0' * 64}  other.tar.gz\n\n{SUM}  {NAME}\n")
    return made


@pytest.mark.parametrize("star", ["  ", " *"], ids=["text", "binary"])
def test_a_lab_s_folder(folder: Path, star: str) -> None:
    (folder / "SHA256SUMS").write_text(f"{SUM}{star}{NAME}\n")
    assert sources.release(NAME, Spec(sources=str(folder)), say, Cancel()) == folder


def test_a_folder_in_the_home(folder: Path, home: Path) -> None:
    folder.rename(home / "sources")
    assert sources.release(NAME, Spec(sources="~/sources"), say, Cancel()) == home / "sources"


def _damage(folder: Path) -> None:
    (folder / NAME).write_bytes(CONTENT + b"!")


def _no_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()


def _no_line(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text(f"{SUM}  x{NAME}\n{SUM}\n{SUM}  {NAME} x\n")


def _no_file(folder: Path) -> None:
    (folder / NAME).unlink()


def _other_version(folder: Path) -> None:
    (folder / NAME).rename(folder / "code-server-4.99.0-linux-amd64.tar.gz")


def _no_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("prepare", "words", "hint"),
    [
        (_damage, "is damaged or not what it should be", "remove or replace"),
        (_no_sums, "has no SHA256SUMS", "sha256sum"),
        (_no_line, f"has no line for {NAME}", "sha256sum"),
        (_no_file, f"has no {NAME}", "put it there"),
        (_other_version, f"has no {NAME}", "4.99.0-linux-amd64.tar.gz: choose with --vscode-version"),
        (_no_folder, f"has no {NAME}", "put it there"),
    ],
    ids=["damaged", "no sums", "no line", "no file", "another version", "no folder"],
)
def test_what_is_not_as_it_should_be_is_not_used(
    folder: Path, prepare: Callable[[Path], None], words: str, hint: str
) -> None:
    prepare(folder)
    with pytest.raises(errors.StartFailed, match=words) as caught:
        sources.release(NAME, Spec(sources=str(folder)), say, Cancel())
    assert hint in caught.value.hint


def test_a_version_without_a_known_checksum_is_not_fetched() -> None:
    with pytest.raises(errors.StartFailed, match=r"knows no checksum for code-server-9\.9\.9") as caught:
        sources.release("code-server-9.9.9-linux-amd64.tar.gz", Spec(), say, Cancel())
    assert releases.CODE_SERVER in caught.value.hint and "--sources" in caught.value.hint


def pinned(monkeypatch: pytest.MonkeyPatch, release: Path, checksum: str = SUM) -> None:
    """The makers' release is a file here."""
    monkeypatch.setitem(releases.CODE_SERVER_SHA256, NAME[len("code-server-") : -len(".tar.gz")], checksum)
    monkeypatch.setattr(releases, "CODE_SERVER_URL", release.parent.as_uri() + "/{file}")


@pytest.mark.parametrize("by", ["folder", "makers"])
def test_the_checksum_may_be_asked_for_with_the_version(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """That of the folder's list, or of mlbox's own, is not looked at then."""
    pinned(monkeypatch, folder / NAME, "0" * 64)
    (folder / "SHA256SUMS").unlink()
    version = NAME.split("-")[2]

    def spec(checksum: str) -> Spec:
        return Spec(vscode_version=f"{version}@sha256:{checksum}", sources=str(folder) if by == "folder" else "")

    with pytest.raises(errors.StartFailed, match=f"its sha256 is {SUM}, not {'1' * 64}"):
        sources.release(NAME, spec("1" * 64), say, Cancel())
    assert (sources.release(NAME, spec(SUM), say, Cancel()) / NAME).read_bytes() == CONTENT


def test_what_was_fetched_is_kept_and_checked_each_time(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(monkeypatch, folder / NAME)
    cache = home / "cache/mlbox/sources"
    assert sources.release(NAME, Spec(), say, Cancel()) == cache
    assert (os.listdir(cache), (cache / NAME).read_bytes()) == ([NAME], CONTENT)
    (folder / NAME).unlink()
    assert sources.release(NAME, Spec(), say, Cancel()) == cache
    (cache / NAME).write_bytes(b"changed")
    with pytest.raises(errors.StartFailed, match="is damaged"):
        sources.release(NAME, Spec(), say, Cancel())


@pytest.mark.parametrize("case", ["other content", "not there"])
def test_nothing_is_kept_of_a_bad_download(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    pinned(monkeypatch, folder / NAME, "0" * 64)
    if case == "not there":
        (folder / NAME).unlink()
    with pytest.raises(errors.StartFailed, match="is damaged" if case == "other content" else "can't be fetched"):
        sources.release(NAME, Spec(), say, Cancel())
    assert os.listdir(home / "cache/mlbox/sources") == []


def test_fetching_can_be_cancelled(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch, folder / NAME)
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(Cancelled):
        sources.release(NAME, Spec(), say, Cancel((read,)))
    os.close(read)
    assert os.listdir(home / "cache/mlbox/sources") == []


# ---- Python packages -----------------------------------------------------------------------------------

WHEEL = "only_here-1.0-py3-none-any.whl"


def with_wheel(folder: Path, listed: str = SUM) -> None:
    (folder / WHEEL).write_bytes(CONTENT)
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{listed}  {WHEEL}\n")


def test_wheels_are_packages_only_source_once_there_are_any(folder: Path, tmp_path: Path) -> None:
    for none in "", str(tmp_path / "elsewhere"), str(folder):
        assert sources.wheels(none, say, Cancel()) is None
    with_wheel(folder)
    assert sources.wheels(str(folder), say, Cancel()) == folder
    made = Build("id", "image", layer.plan(Spec(), Facts()), tmp_path, folder, wheels=True)
    offline = {"PIP_NO_INDEX": "1", "PIP_ONLY_BINARY": ":all:", "PIP_FIND_LINKS": "file:///s%20t"}
    assert made.environment("/p", "/c", "/s t").items() >= offline.items()
    assert replace(made, wheels=False).environment("/p", "/c", "/s").keys() == {"PREFIX", "BUILD", "SOURCES"}


@pytest.mark.parametrize("listed", ["0" * 64, ""], ids=["damaged", "no line"])
def test_each_wheel_is_as_the_sums_say_or_none_is_used(folder: Path, listed: str) -> None:
    with_wheel(folder, listed)
    with pytest.raises(errors.StartFailed, match="is damaged" if listed else f"no line for {WHEEL}"):
        sources.wheels(str(folder), say, Cancel())
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(errors.StartFailed, match="has no SHA256SUMS") as caught:
        sources.wheels(str(folder), say, Cancel())
    assert "*.whl" in caught.value.hint
