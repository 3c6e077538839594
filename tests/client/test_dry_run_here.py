"""--dry-run of what changes only this machine: tunnels that are up stay as they are."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest

from mlbox import cli, errors
from mlbox.client import owners
from mlbox.client.owners import Owner
from tests.client.kit import reserved

ID = "01ARYZ6S41TSV4RRFFQ69G5FAV"


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A laptop on which a process, here this one, holds a session's tunnels. Nobody answers for it."""
    homes.fresh(tmp_path / "home", monkeypatch)
    folder = Path(tempfile.mkdtemp(prefix="mb", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    taken = owners.take(ID)
    assert taken is not None
    Owner(ID, "kind-otter", "gpu1", os.getpid(), {}, {"6006": 7006}, folder=str(taken[0])).write()
    monkeypatch.setattr(owners, "end", never)
    yield folder
    os.close(taken[1])
    homes.remove(folder)


def never(*_: object) -> None:
    raise AssertionError("a dry run ends nothing")


def tree(*tops: Path) -> dict[Path, bytes]:
    below = (path for top in tops for path in top.rglob("*"))
    return {path: path.read_bytes() if path.is_file() else b"" for path in below}


@pytest.fixture
def free() -> Iterator[int]:
    with reserved() as port:
        yield port


@pytest.mark.parametrize(
    ("words", "said", "facts"),
    [
        ("tunnels stop", "the tunnels to kind-otter would be ended; the session goes on", None),
        ("tunnels stop kind-otter", "the tunnels to kind-otter would be ended; the session goes on", None),
        ("tunnels stop --all", "the tunnels to kind-otter would be ended; the session goes on", None),
        (
            "port add kind-otter {free}",
            "port {free} of kind-otter would be on localhost:{free}\n",
            {"{free}": "{free}"},
        ),
        ("port add kind-otter {free}:80", "port 80 of kind-otter would be on localhost:{free}\n", {"80": "{free}"}),
        ("port add kind-otter 6006", "port 6006 of kind-otter is on localhost:7006, as before\n", {"6006": "7006"}),
        ("port remove kind-otter 6006", "port 6006 of kind-otter would not be here\n", {"ports": "[6006]"}),
    ],
)
def test_it_says_what_it_would_do(
    words: str, said: str, facts: dict[str, str] | None, free: int, runtime: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = tree(runtime, tmp_path)
    asked = words.format(free=free).split()
    assert cli.main([*asked, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(said.format(free=free))
    if facts is not None:
        assert cli.main([*asked, "--dry-run", "--json"]) == 0
        expected = {key.format(free=free): json.loads(value.format(free=free)) for key, value in facts.items()}
        assert json.loads(capsys.readouterr().out) == {**expected, "dry_run": True}
    assert tree(runtime, tmp_path) == before
    assert [owner.name for owner in owners.living()] == ["kind-otter"]


def test_a_port_that_is_taken_here(capsys: pytest.CaptureFixture[str]) -> None:
    """The next free ones, each its own; and they are free again afterwards."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        number = taken.getsockname()[1]
        assert cli.main(["port", "add", "kind-otter", f"{number}:1", f"{number}:2", "--dry-run", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert number < found["1"] < found["2"]
        assert cli.main(["port", "add", "kind-otter", f"{number}:1", "--dry-run"]) == 0
        assert capsys.readouterr().err == f"  port {number} is taken here\n"
    socket.create_server(("127.0.0.1", found["1"])).close()


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ("tunnels stop heron", errors.NotFound, "no tunnels to heron are up on this machine"),
        ("tunnels stop heron --all", errors.Usage, "either names or --all"),
        ("port add heron 6006", errors.NotFound, "no tunnels to heron are up on this machine"),
        ("port add kind-otter 0", errors.Usage, "'0' is not a port"),
        ("port remove kind-otter 80", errors.NotFound, "port 80 of kind-otter has no tunnel"),
    ],
)
def test_what_would_be_refused_is(
    words: str, error: type[errors.MlboxError], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words.split(), "--dry-run"]) == error.exit_code
    assert said in capsys.readouterr().err
