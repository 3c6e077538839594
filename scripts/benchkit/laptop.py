"""A laptop for one benchmark: an own HOME, own sockets, the one file, and plain ssh beside it.

plain ssh   -o ControlPath=none, or over a shared connection that `share()` has brought up
mlbox       its connections lie in the laptop's own runtime folder; `hang_up()` ends them, for a cold start
All that was started here ends in close(): processes, connections, sessions by their names, the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labkit.inventory import RUN

ROOT = Path(__file__).resolve().parents[2]
PYZ = ROOT / "dist/mlbox.pyz"
PYTHON = str(getattr(sys, "_base_executable", "") or sys.executable)  # not the venv's: less at its start
_LOG_SSH = '#!/bin/sh\nprintf "%s\\037" "$@" > "$MLBOX_BENCH_LOG/$$"\nexec "$MLBOX_BENCH_SSH" "$@"\n'


class NoLab(Exception):
    pass


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would lead a child to somebody's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MLBOX_", "PYTHON", "NO_COLOR"))}
    return {**kept, **more}


class Laptop:
    def __init__(self, host: str) -> None:
        """Raises NoLab if the host does not answer."""
        self.host, self.config = host, os.environ.get("MLBOX_SSH_CONFIG") or str(RUN / "ssh/config")
        if not Path(self.config).exists():
            raise NoLab("the lab is not up")
        self.folder = Path(tempfile.mkdtemp(prefix="mb-", dir="/tmp"))  # sockets need short names
        self.tag = self.folder.name.replace("_", "0").lower()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._master = self.folder / "plain"
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        for name in ("home", "run", "bin", "log"):
            (self.folder / name).mkdir(mode=0o700)
        self.env = environment(
            HOME=str(self.folder / "home"), XDG_RUNTIME_DIR=str(self.folder / "run"), MLBOX_SSH_CONFIG=self.config
        )
        counting = self.folder / "bin/ssh"
        counting.write_text(_LOG_SSH)
        counting.chmod(0o700)
        self.counting_env = {
            **self.env, "PATH": f"{self.folder / 'bin'}:{self.env['PATH']}",
            "MLBOX_BENCH_LOG": str(self.folder / "log"), "MLBOX_BENCH_SSH": shutil.which("ssh") or "ssh",
        }  # fmt: skip
        done = subprocess.run(self.ssh("true"), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise NoLab(f"{self.host} does not answer: {done.stderr.strip()[-200:]}")

    # ---- plain ssh -------------------------------------------------------------------------------

    def ssh(self, command: str | None, *options: str, shared: bool = False) -> tuple[str, ...]:
        control = str(self._master) if shared else "none"
        base = ("ssh", "-F", self.config, "-T", "-o", "BatchMode=yes", "-o", f"ControlPath={control}")
        return (*base, *options, self.host, *(() if command is None else (command,)))

    @contextlib.contextmanager
    def forwarding(self, forwards: Mapping[int, str], *options: str, shared: bool = False) -> Iterator[None]:
        """{local port: socket on the host}, by plain `ssh -L`. (`ssh -N` over a shared connection runs a shell.)"""
        wanted = tuple(word for port, path in forwards.items() for word in ("-L", f"127.0.0.1:{port}:{path}"))
        if shared:
            self._control("forward", *wanted)
            yield
            self._control("cancel", *wanted)
            return
        argv = self.ssh(None, "-N", "-o", "ExitOnForwardFailure=yes", *options, *wanted)
        process = self.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            self.end(process)

    def _control(self, verb: str, *options: str) -> None:
        argv = self.ssh(None, "-O", verb, *options, shared=True)
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)

    def on_host(self, command: str, check: bool = True) -> str:
        """A command on the host, over the shared connection where it is up; what it printed."""
        argv = self.ssh(command, shared=self._master.exists())
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check, timeout=120)
        return done.stdout

    def share(self) -> None:
        """Bring up the connection that `shared=True` uses."""
        argv = self.ssh(None, "-o", "ControlMaster=yes", "-o", "ControlPersist=30m", "-f", "-N", shared=True)
        subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60)

    # ---- mlbox -----------------------------------------------------------------------------------

    def argv(self, *words: str) -> tuple[str, ...]:
        return (PYTHON, str(PYZ), *words)

    def mlbox(self, *words: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        done = subprocess.run(
            self.argv(*words), env=env or self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=300, start_new_session=True,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"mlbox {shlex.join(words)}: {done.stderr.strip()[-600:]}")
        return done.stdout

    def sessions(self) -> list[str]:
        """Those that this benchmark started and that run."""
        found: list[dict[str, Any]] = json.loads(self.mlbox("session", "list", self.host, "--json"))
        return [str(session["id"]) for session in found if str(session["name"]).startswith(self.tag)]

    def hang_up(self) -> None:
        """End mlbox's shared connection: the next command dials."""
        for path in (self.folder / "run/mlbox").glob("*"):
            if path.is_socket():
                _leave(path)

    # ---- processes -------------------------------------------------------------------------------

    def start(self, argv: tuple[str, ...], **options: Any) -> subprocess.Popen[bytes]:
        """In a session of its own: ^C is for the benchmark, which then ends all in order."""
        given = {"stdin": subprocess.DEVNULL, "env": self.env, "start_new_session": True, **options}
        process = subprocess.Popen(argv, **given)
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal and wait; it is gone on return."""
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if process in self._processes:
            self._processes.remove(process)

    def close(self) -> None:
        """Nothing interrupts it: what is left on a host is in somebody's way."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for process in list(self._processes):
                self.end(process, signal.SIGINT)
            if (self.folder / "home/.local/state/mlbox").exists():
                for session in self.sessions():
                    self.mlbox("session", "shutdown", session, "--host", self.host, check=False)
            self.hang_up()
            _leave(self._master)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            signal.signal(signal.SIGINT, before)


def _leave(path: Path) -> None:
    if path.exists():
        argv = ("ssh", "-F", "/dev/null", "-o", f"ControlPath={path}", "-O", "exit", "any")
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
