"""mlbox open: what is not in the session is no page to wait at."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mlbox import errors
from mlbox.client import sessions
from mlbox.client.commands import attach
from mlbox.client.commands import open as opened


def test_a_page_that_the_session_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sessions, "at_session", lambda wanted, host, config, act: act(None))
    monkeypatch.setattr(attach, "join", lambda *given: given[-1]({"ssh": "ssh://ada@localhost:8022"}))
    arguments = argparse.Namespace(session="kind-otter", host="", tool="jupyter", root="", ssh_config="", json=False)
    with pytest.raises(errors.Refused, match="there is no Jupyter in it"):
        opened.main(arguments)


@pytest.mark.parametrize(("display", "why"), [(":0", "there is no xdg-open here"), ("", "there is no display here")])
def test_why_no_page_is_opened(
    display: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "XDG_RUNTIME_DIR", "PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"):
        monkeypatch.setenv(name, display)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(sessions, "at_session", lambda wanted, host, config, act: act(None))
    monkeypatch.setattr(attach, "join", lambda *given: given[-1]({"jupyter": "http://localhost:8888"}))
    arguments = argparse.Namespace(session="kind-otter", host="", tool="jupyter", root="", ssh_config="", json=False)
    opened.main(arguments)
    assert capsys.readouterr().err == f"{why}; open the address above yourself\n"
