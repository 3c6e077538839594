"""Code as it was submitted: nothing of an archive lands outside its folder, whatever it names."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.host import code
from mlbox.host.store import Store

Entry = tuple[str, str, str]  # name, kind, content or target


def pack(*entries: Entry) -> bytes:
    data = io.BytesIO()
    kinds = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE,
             "fifo": tarfile.FIFOTYPE, "dev": tarfile.CHRTYPE, "block": tarfile.BLKTYPE}  # fmt: skip
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, kind, content in entries:
            member = tarfile.TarInfo(name)
            member.type = kinds[kind]
            member.mode = 0o4777
            member.uid = member.gid = 12345
            if kind == "file":
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content.encode()))
            else:
                member.linkname = content
                archive.addfile(member)
    return data.getvalue()


@pytest.fixture
def found(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


def unpack(found: Store, tmp_path: Path, archive: bytes) -> Path:
    folder = tmp_path / "outer/work"
    folder.mkdir(parents=True)
    code.unpack(found, code.keep(found, archive), folder)
    return folder


def test_what_was_submitted_comes_back(found: Store, tmp_path: Path) -> None:
    entries = (
        ("train.py", "file", "print(1)"), ("a", "dir", ""), ("a/b/c.txt", "file", "c"),
        ("a/link", "sym", "../train.py"),
        ("./dot.txt", "file", "d"), ("here", "sym", "a/b"), ("..odd", "file", "o"), ("odd", "sym", "..odd"),
    )  # fmt: skip
    folder = unpack(found, tmp_path, pack(*entries))
    assert (folder / "a/link").read_text() == "print(1)"
    assert (folder / "here/c.txt").read_text() == "c"
    assert (folder / "odd").read_text() == "o"
    status = (folder / "train.py").stat()
    assert (status.st_mode & 0o7000, status.st_uid) == (0, os.getuid())
    again = code.keep(found, pack(*entries))
    assert again == code.keep(found, pack(*entries))


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", "file", "x")],
        [("/evil", "file", "x")],
        [("a/../../evil", "file", "x")],
        [("a/..", "dir", "")],
        [("evil", "sym", "/etc/passwd")],
        [("evil", "sym", "..")],
        [("a/evil", "sym", "../../x")],
        [("evil", "hard", "/etc/passwd")],
        [("ok", "file", "x"), ("evil", "hard", "ok")],
        [("evil", "fifo", "")],
        [("evil", "dev", "")],
        [("evil", "block", "")],
        [("l", "sym", "sub"), ("l/evil", "file", "x")],
        [("l", "sym", "sub"), ("./l/evil", "file", "x")],
        [("l", "sym", "sub"), (".//l//evil", "file", "x")],
        [("l", "sym", "sub"), ("l", "file", "x")],
        [("l", "sym", "."), ("l/m", "sym", "..")],
        [("l", "sym", "."), ("./l/m", "sym", ".."), ("m/evil", "file", "x")],
        [("l", "sym", "."), ("m", "sym", "l/.."), ("n", "sym", "m/../..")],
        [("d/e", "dir", ""), ("l", "sym", "d/e"), ("m", "sym", "l/../../..")],
    ],
    ids=str,
)
def test_path_tricks_are_refused(found: Store, tmp_path: Path, entries: list[Entry]) -> None:
    with pytest.raises(errors.Refused):
        unpack(found, tmp_path, pack(*entries))
    assert os.listdir(tmp_path / "outer") == ["work"]
    for path in (tmp_path / "outer/work").rglob("*"):
        inside = os.path.realpath(path)
        assert (inside + "/").startswith(str(tmp_path / "outer/work") + "/")


@pytest.mark.parametrize("damage", ["absent", "changed", "no archive", "cut"])
def test_damage_is_said(found: Store, tmp_path: Path, damage: str) -> None:
    good = pack(("a", "file", "x" * 100_000))
    digest = code.keep(found, b"no archive" if damage == "no archive" else good[:-20] if damage == "cut" else good)
    path = found.own() / f"code/{digest}.tgz"
    if damage == "absent":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(good + b"x")
    with pytest.raises(errors.Refused, match="the job's code"):
        code.unpack(found, digest, tmp_path)


def test_sizes_are_bounded(found: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MOST_UNPACKED", 1000)
    unpack(found, tmp_path, pack(("a", "file", "x" * 999)))
    with pytest.raises(errors.Refused, match="larger"):
        code.unpack(found, code.keep(found, pack(("a", "file", "x" * 600), ("b", "file", "x" * 600))), tmp_path)
    monkeypatch.setattr(code, "MOST_FILES", 2)
    with pytest.raises(errors.Refused, match="more than 2"):
        code.unpack(found, code.keep(found, pack(*((f"f{n}", "file", "") for n in range(3)))), tmp_path)
