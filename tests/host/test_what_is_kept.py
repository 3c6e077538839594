"""What is kept on a host for another time goes when nothing uses it, and never under somebody's hands."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlbox.core import layer, release
from mlbox.core.facts import Facts
from mlbox.core.session import Spec
from mlbox.core.stored import Stored, expendable
from mlbox.host import code, engines, here, prepare, sources, store, stored
from mlbox.host.run import Cancel

NAME = "code-server-4.108.1-linux-amd64.tar.gz"
HALF = f".{NAME}.4711"
OLD = f"mlbox-{'a' * 64}.pyz"


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    monkeypatch.setattr(engines, "present", lambda: [])
    monkeypatch.setattr(sys, "argv", ["mlbox-this.pyz"])
    return store.Store(tmp_path / "root")


def aged(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 100)
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def of(found: store.Store, kind: str) -> dict[str, Stored]:
    return {thing.name: thing for thing in stored.everything(found) if thing.kind == kind}


def test_releases_that_nothing_uses_go(found: store.Store) -> None:
    assert of(found, "release") == {}
    kept = [aged(here.cache_home() / "sources" / name, 40) for name in (NAME, HALF)]
    things = of(found, "release")
    assert set(things) == {NAME, HALF} and things[NAME].size == 100
    going = expendable(things.values(), time.time(), 30 * 86400)
    assert len(going) == 2 and all(stored.remove(found, thing) for thing in going)
    assert not any(path.exists() for path in kept) and of(found, "release") == {}


def test_one_that_is_used_stays(found: store.Store) -> None:
    """Also where it was listed before."""
    path = aged(here.cache_home() / "sources" / NAME, 40)
    listed = of(found, "release")[NAME]
    with sources.keeping():
        assert of(found, "release")[NAME].stays == "in use"
        assert not stored.remove(found, listed) and path.exists()
    assert stored.remove(found, listed) and not path.exists()


def test_a_build_uses_what_it_builds_with(found: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(here.cache_home() / "sources" / NAME, 40)
    release_id = NAME[len("code-server-") : -len(".tar.gz")]
    digest = sources._digest(here.cache_home() / "sources" / NAME, Cancel())
    monkeypatch.setitem(release.CODE_SERVER_SHA256, release_id, digest)
    seen: list[str] = []

    class Engine:
        def has_layer(self, made: object) -> str:
            return ""

        def build(self, work: engines.Build, *rest: object) -> str:
            assert (work.sources / NAME).exists()
            seen.append(of(found, "release")[NAME].stays)
            return "built"

    made = found.job("01ARYZ6S41TSV4RRFFQ69G5FAV")
    found.reserve(made)
    try:
        planned = layer.Layer(f"test{os.getpid()}", (), Facts(), {}, NAME)
        say: Callable[..., None] = lambda *words: None  # noqa: E731
        engine: Any = Engine()
        assert prepare._build(engine, made, Spec(), planned, say, Cancel()) == "built"
    finally:
        found.end(made)
    assert seen == ["in use"]
    thing = of(found, "release")[NAME]
    assert time.time() - thing.used < 3600  # that was a use


def test_half_of_an_archive_of_code_goes_unless_somebody_is_at_it(found: store.Store) -> None:
    whole, half = (aged(found.own() / "code" / name, 40) for name in (f"{'a' * 64}.tgz", f".{'b' * 64}.tgz.4711"))
    listed = of(found, "code")
    assert set(listed) == {"a" * 64, half.name} and not any(thing.stays for thing in listed.values())
    with code.keeping(found):
        assert not stored.remove(found, listed[half.name]) and half.exists()
    assert stored.remove(found, listed[half.name]) and not half.exists() and whole.exists()
    assert of(found, "code").keys() == {"a" * 64}
    young = aged(half, 0)
    assert of(found, "code")[young.name].stays == "it has just come"


def test_programs_go_unless_a_call_has_begun_with_one(found: store.Store) -> None:
    old, half = aged(here.cache_home() / OLD, 40), aged(here.cache_home() / f"{OLD[:-8]}1.pyz.4711", 40)
    listed = of(found, "program")
    assert set(listed) == {old.name, half.name} and not any(thing.stays for thing in listed.values())
    os.utime(old)
    assert not stored.remove(found, listed[old.name]) and old.exists()
    assert stored.remove(found, listed[half.name]) and not half.exists()


def test_the_program_that_a_rendezvous_runs_stays(found: store.Store, home: Path) -> None:
    """Only its line of authorized_keys names it while no tunnel is up."""
    path = aged(here.cache_home() / OLD, 40)
    (home / ".ssh").mkdir()
    (home / ".ssh/authorized_keys").write_text(
        f'restrict,command="exec python3 -I -S {path} rendezvous ws" ssh-ed25519 A'
    )
    assert of(found, "program")[OLD].stays == "in use"


def test_environments_of_the_usual_root_are_told_of(found: store.Store) -> None:
    assert stored.outside(found) is None
    usual = store.Store()
    (usual.environments / ".half").mkdir(parents=True)
    assert stored.outside(found) is None
    (usual.environments / "0123456789ab").mkdir()
    assert stored.outside(found) == usual.root and stored.outside(usual) is None
