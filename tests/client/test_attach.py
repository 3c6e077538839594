"""What a client says by itself while it is attached."""

from __future__ import annotations

import queue
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mlbox.client import console
from mlbox.client.attached import Attached
from mlbox.client.commands import attach
from mlbox.client.reach import Reach
from mlbox.client.state import Config


def test_a_time_limit_is_said_at_once_and_shortly_before() -> None:
    said: queue.Queue[str] = queue.Queue()
    attached = Attached(Reach("01J0", "kind-otter", "gpu1", "", {}, ""), Config(), (), said.put)
    attach._say_its_end(attached, attach.LAST_WORD + 1)
    assert said.get() == "its time limit ends it in 10m 1s"
    assert said.get(timeout=20) == "the time limit ends it in 10m: save what is to stay"
    attach._say_its_end(attached, 59)
    assert said.get() == "its time limit ends it in 59s"


def test_the_guests_socket_is_bound_before_the_others() -> None:
    """A link is asked as soon as there are all sockets; ssh may not listen yet on the last, which is a refusal."""
    services = {"jupyter": {"socket": "/r/jupyter.sock"}, "ssh": {"socket": "/r/ssh.sock"}}
    reach = Reach("01J0", "kind-otter", "gpu1", "", services, "/r/guest.sock")
    assert list(reach.forwards()) == ["guest", "jupyter", "ssh"]


def test_the_console_reads_what_kqueue_and_epoll_can_t_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/tty on a Mac (`mlbox attach NAME </dev/tty`); here a file."""
    before = [(each, signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGHUP)]
    (tmp_path / "typed").write_text("d\n")
    with (tmp_path / "typed").open() as typed:
        monkeypatch.setattr("sys.stdin", typed)
        made = console.Console(cast(Attached, SimpleNamespace(say=None)), str)
        assert made._loop(asking=True) == "detach"
    for each, handler in before:
        signal.signal(each, handler)
