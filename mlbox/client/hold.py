"""The program that holds a session's tunnels (holder.py): how it begins, and that whatever ends it is told."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback

from mlbox import errors
from mlbox.client import journal, owners, state
from mlbox.client.holder import Holder
from mlbox.client.reach import Reach
from mlbox.client.talk import Json, Talk
from mlbox.core import wire


def _hold(talk: Talk, order: Json) -> None:
    reach = Reach(**order["reach"])
    config = state.Config(**{**order["config"], "hosts": tuple(order["config"]["hosts"])})
    taken = owners.take(reach.id)
    if taken is None:
        talk.send({"reply": {"taken": True}})
        return
    try:
        Holder(reach, config, taken[0]).run(talk)
    finally:
        owners.give_up(taken[0])


def main(descriptor: int) -> int:
    """What a client runs in a process of its own; `descriptor`: its end of our conversation."""
    # Also for ssh, which inherits it: neither the terminal's ^C nor its end is for a tunnel.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    talk = Talk(socket.socket(fileno=descriptor))
    order = talk.receive()
    name = order["reach"]["name"] if order else ""
    threading.excepthook = lambda hooked: journal.note(name, f"a bug: {hooked.exc_type.__name__}: {hooked.exc_value}")
    try:
        if order is not None:
            _hold(talk, order)
    except errors.MlboxError as error:
        talk.send(wire.encode_error(error))
    except Exception as error:  # a bug: whoever waits for these tunnels would wait for ever
        journal.note(name, "a bug: " + traceback.format_exc())
        bug = errors.Bug(f"a bug in mlbox: {type(error).__name__}: {error}", traceback.format_exc())
        talk.send(wire.encode_error(bug))
    sys.stderr.flush()
    os._exit(0)  # the threads that sleep in accept and receive have nothing to save
