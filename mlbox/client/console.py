"""The few keys of an attached session. Without a terminal: stay until told to stop, or until the session ends."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Callable

from mlbox import errors
from mlbox.client import output, ssh_config
from mlbox.client.attached import Attached
from mlbox.client.wake import Wake
from mlbox.core import text

MENU = "[r]econnect  [s]hell  [l]ogs  [d]etach (the session stays)"
HELP = """\
  r, reconnect   dial the tunnels anew; the local ports stay the same
  s, shell       a shell inside the session
  l, logs        the end of its log
  d, detach      leave; the session goes on, and so do its tunnels, in the background
  ^C, ^D         leave; the session goes on, its tunnels end
  h, help        this"""
_SHUTDOWN = "  shutdown       end the session and free its GPUs"


class Console:
    """`run` returns what was asked for: detach, leave, shutdown, or ended. `ours`: it is this user's to end."""

    def __init__(self, attached: Attached, logs: Callable[[], str], ours: bool = True) -> None:
        self._attached, self._logs, self._ours = attached, logs, ours
        self._wake = Wake()
        self._told = ""
        self._prompt = threading.Lock()
        self._prompted = False
        attached.say = self._say
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, self._stop)

    def run(self) -> str:
        threading.Thread(target=self._await_end, daemon=True).start()
        asking = output.may_ask()
        if asking:
            print(MENU + "  [shutdown]" * self._ours, flush=True)
        try:
            return self._loop(asking)
        except KeyboardInterrupt:
            return "leave"
        finally:
            if self._prompted:  # what is said next begins a line of its own
                print(flush=True)
            self._set_prompt(False)

    def _say(self, words: str) -> None:
        """A message that comes by itself; the prompt that it breaks into comes again."""
        with self._prompt:
            if self._prompted:
                print("\r\033[K", end="", flush=True)
            output.note(f"  {words}")
            if self._prompted:
                print("> ", end="", flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._told = "leave"
        self._wake.wake()

    def _await_end(self) -> None:
        self._attached.ended.wait()
        self._told = "ended"
        self._wake.wake()

    def _loop(self, asking: bool) -> str:
        with selectors.SelectSelector() as selector:  # macOS's kqueue can't watch /dev/tty, where </dev/tty leads
            selector.register(self._wake.descriptor, selectors.EVENT_READ)
            if asking:
                selector.register(sys.stdin, selectors.EVENT_READ)
            while True:
                if asking:
                    self._set_prompt(True)
                ready = {key.fd for key, _ in selector.select()}
                if self._wake.descriptor in ready:
                    self._wake.drain()
                    if self._told:
                        return self._told
                    continue
                line = os.read(sys.stdin.fileno(), 4096)
                if not line:
                    return "leave"
                self._set_prompt(False)
                chosen = self._do(line.decode(errors="replace").strip().lower())
                if chosen:
                    return chosen

    def _set_prompt(self, shown: bool) -> None:
        with self._prompt:
            self._prompted = shown
            if shown:
                print("> ", end="", flush=True)

    def _do(self, word: str) -> str:
        if word in ("d", "detach", "q", "quit"):
            return "detach"
        if word == "shutdown" and self._ours:
            return "shutdown"
        if word in ("r", "reconnect"):
            self._reconnect()
        elif word in ("s", "shell"):
            self._shell()
        elif word in ("l", "logs"):
            self._show_logs()
        elif word in ("", "h", "help", "?"):
            print(self._help())
        elif word == "shutdown":
            print("  only its owner ends it; d leaves it")
        else:
            print(f"  there is no {text.safe(word)!r}\n{self._help()}")
        return ""

    def _help(self) -> str:
        return f"{HELP}\n{_SHUTDOWN}" if self._ours else HELP

    def _reconnect(self) -> None:
        try:
            self._attached.reconnect()
        except errors.MlboxError as error:
            output.warn(error.message)

    def _show_logs(self) -> None:
        try:
            print(self._logs())
        except errors.MlboxError as error:  # an outage, say; the tunnels go on trying
            output.warn(error.message)

    def _shell(self) -> None:
        if "ssh" not in self._attached.reach.services:
            print("  the session has no SSH server")
            return
        reach = self._attached.reach
        by_port = ("-p", str(self._attached.ports["ssh"]), f"{reach.services['ssh']['user']}@localhost")
        known = ssh_config.shortened(reach.id)
        ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is the shell's
        try:
            subprocess.run(("ssh", "-F", str(ssh_config.top()), *((known,) if known else by_port)))
        except FileNotFoundError:
            output.warn("there is no ssh on this machine; Jupyter and VS Code have terminals")
        finally:
            signal.signal(signal.SIGINT, ignored)
