"""What an operating system's error is told as: its kind, and what to try."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from queuebox import Box
from users import let_in, nobody

from mlbox import errors
from mlbox.core import wire
from mlbox.host import lab, os_error, serve, watchdog
from mlbox.host.handlers import cancel, jobs


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.EACCES, errors.HostUnready, "its owner or an administrator"),
        (errno.EPERM, errors.HostUnready, "its owner or an administrator"),
        (errno.EROFS, errors.HostUnready, "mounted for writing"),
        (errno.ENOENT, errors.HostUnready, "is the path right"),
        (errno.ENOTDIR, errors.HostUnready, "is the path right"),
        (errno.ENOSPC, errors.Refused, "make room there"),
        (errno.EDQUOT, errors.Refused, "make room there"),
        (errno.ESTALE, errors.HostUnready, "does its server answer"),
        (errno.ENOMEM, errors.MlboxError, ""),
    ],
    ids=errno.errorcode.get,
)
def test_each_is_told_as_what_it_is(number: int, kind: type[errors.MlboxError], hint: str) -> None:
    told = os_error.told("gpu1", OSError(number, os.strerror(number), "/share/x\033[31m"))
    assert type(told) is kind and hint in told.hint
    assert told.message.startswith("gpu1: /share/x") and told.message.endswith(f": {os.strerror(number)}")
    assert "\033" not in told.message and "Errno" not in told.message
    assert ("disk" in told.hint) is (number == errno.ENOMEM)


def test_one_without_a_number_keeps_its_words() -> None:
    assert os_error.told("gpu1", OSError("timed out")).message == "gpu1: timed out"


def test_a_root_that_can_not_be_made_is_not_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the laptop is told, from a request on. /proc takes no folder, not even root's."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(serve, "read_request", lambda: wire.Request("init", {"root": "/proc/x"}))
    monkeypatch.setattr(serve.Call, "send", lambda call, message: sent.append(message))
    monkeypatch.setattr(watchdog, "watch", lambda *_: None)
    serve.main()
    error = sent[-1]["error"]
    assert error["kind"] == "unready" and "is the path right" in error["hint"]
    assert error["message"].endswith(": /proc/x: No such file or directory")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(("closed", "opens"), [(".", "1777"), ("..", "a+x"), ("mlbox.json", "a+r")])
def test_a_closed_root_is_not_told_as_none(box: Box, closed: str, opens: str) -> None:
    let_in(box.root)
    path = Path(os.path.normpath(box.root / closed))
    path.chmod(0o700)
    for handler, args in ((jobs, {}), (cancel, {"job": "x"})):
        with nobody(), pytest.raises(errors.HostUnready) as caught:
            box.call(handler, **args)
        assert caught.value.message == f"{path} is closed to you: it is root's, and its mode is 0700"
        assert f"chmod {opens} {path}" in caught.value.hint
    with pytest.raises(errors.HostUnready, match="not a folder of mlbox's"):
        lab.identify(box.root / "nowhere")
