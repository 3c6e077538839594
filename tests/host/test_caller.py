"""The caller as a keeper sees it: one that stalls or goes keeps nobody from ending."""

from __future__ import annotations

import json
import os
import threading

import pytest

from mlbox.host.caller import Caller
from mlbox.host.run import Cancelled

LONG = {"progress": {"text": "x" * (1 << 20)}}  # more than a pipe holds


class Pipes:
    def __init__(self) -> None:
        self.heard, out = os.pipe()
        presence, self.present = os.pipe()
        stop_r, self.stop = os.pipe()
        self.caller = Caller(out, presence, stop_r)


def test_it_hears_each_message_as_a_line() -> None:
    pipes = Pipes()
    pipes.caller.say("pulling", "10 %")
    pipes.caller.send({"ready": {}})
    lines = os.read(pipes.heard, 4096).splitlines()
    assert [json.loads(line) for line in lines] == [{"progress": {"text": "pulling", "detail": "10 %"}}, {"ready": {}}]


def test_one_that_reads_nothing_does_not_keep_a_stop_from_being_heard() -> None:
    pipes = Pipes()
    sending = threading.Thread(target=pipes.caller.send, args=(LONG,), daemon=True)
    sending.start()
    os.read(pipes.heard, 1)  # it has begun, and the rest finds no room
    os.write(pipes.stop, b"x")
    sending.join(20)
    assert not sending.is_alive()


def test_one_that_has_gone_hears_nothing_more_and_undoes_the_start() -> None:
    pipes = Pipes()
    os.close(pipes.heard)
    os.close(pipes.present)
    pipes.caller.send(LONG)
    pipes.caller.say("to nobody")
    with pytest.raises(Cancelled):
        pipes.caller.cancel.check()


def test_once_let_go_its_end_ends_nothing() -> None:
    pipes = Pipes()
    pipes.caller.let_go()
    pipes.caller.cancel.check()
    assert os.read(pipes.heard, 1) == b""  # the handler is not kept waiting
    os.write(pipes.stop, b"x")
    with pytest.raises(Cancelled):
        pipes.caller.cancel.check()
