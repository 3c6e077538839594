"""The engine that runs what it is given on the host itself: what it asks of the host, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.core import layer as layers
from mlbox.core.facts import Facts
from mlbox.core.session import Spec
from mlbox.host import engines, store
from mlbox.host.engines import Build, Run
from mlbox.host.run import Cancel


@pytest.mark.parametrize(
    ("spec", "guest", "asks"),
    [
        (Spec(runtime="process"), False, False),
        (Spec(runtime="process"), True, True),
        (Spec(runtime="process", packages=("numpy",)), False, True),
        (Spec(runtime="process", requirements="numpy\n"), False, True),
        (Spec(runtime="process", init_script="true\n"), False, True),
    ],
)
def test_a_job_that_adds_nothing_to_its_host_asks_nothing_of_it(
    tmp_path: Path, spec: Spec, guest: bool, asks: bool
) -> None:
    engine = engines.by_name("process", store.Store(tmp_path))
    facts = engine.facts(spec, engine.identify(spec), Cancel(), guest)
    assert bool(facts.passwd) is asks
    assert facts.path == os.environ["PATH"]


@pytest.mark.parametrize("login", [True, False])
def test_what_ends_with_a_login_is_not_for_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: bool
) -> None:
    of_a_login = {
        "XDG_RUNTIME_DIR": "/run/user/1",
        "XDG_SESSION_ID": "1",
        "DBUS_SESSION_BUS_ADDRESS": "unix:/run/user/1/bus",
    }
    for name, value in {**of_a_login, "STAYS": "here"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSH_CONNECTION", "::1 1 ::1 22") if login else monkeypatch.delenv(
        "SSH_CONNECTION", raising=False
    )
    run = Run(
        "01", "kind-otter", "", "uid", (), ("env",), tmp_path, tmp_path, tmp_path, (), (), {"MLBOX_SESSION": "01"}
    )
    with (tmp_path / "log").open("wb") as log:
        assert engines.by_name("process", store.Store(tmp_path)).start(run, log.fileno()).wait() == 0
    lines = (tmp_path / "log").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)  # a variable may have lines
    assert found["STAYS"] == "here" and found["MLBOX_SESSION"] == "01" and "SSH_CONNECTION" not in found
    assert {name: found[name] for name in of_a_login if name in found} == ({} if login else of_a_login)


@pytest.mark.parametrize("own", ["there", "gone", ""])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_what_a_build_unpacks_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, again: bool
) -> None:
    """pip leaves it where it is killed: in TMPDIR if the user has one, or beside the layer's script; and so does a
    keeper."""
    context, there = tmp_path / "context", tmp_path / "there"
    for folder in (context, there):
        folder.mkdir()
        if again:
            (folder / "mlbox-01/wheel").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / own)) if own else monkeypatch.delenv("TMPDIR", raising=False)
    (context / "layer.sh").write_text(f'echo wheel >"$(mktemp)"; echo $TMPDIR >{tmp_path}/where; exit 1\n')
    layer = layers.plan(Spec(runtime="process", packages=("numpy",)), Facts("host:1"))
    with pytest.raises(errors.MlboxError):
        engine = engines.by_name("process", store.Store(tmp_path / "root"))
        engine.build(Build("01", "", layer, context, context), lambda *words: None, Cancel())
    where = Path((tmp_path / "where").read_text().strip())
    assert where.parent == (there if own == "there" else context) and not where.exists()
