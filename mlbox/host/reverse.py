"""A host that can't be dialled: its key, where its tunnels end, and the tunnel of one session.

    the key        made by the first tick that finds `tunnel: reverse` for this host in lab.yaml; it never leaves it
    reverse.json   its public half, for `mlbox host add`; touched by every tick, so it tells when the host was seen
    via/<host>     what `host add` agreed with the rendezvous (core/reverse.Meeting)
    Tunnel         held by the session's keeper: ssh with one `-R` per service, dialled anew with growing pauses

ssh's stdin is a pipe that only the keeper holds: however the keeper ends, the tunnel and its sockets on the
rendezvous end too, and the successor dials anew. There is no process to find again.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import reverse
from mlbox.core.lab import Lab
from mlbox.core.reverse import Meeting
from mlbox.host import files, here, lab, store
from mlbox.host.job import Job

Json = dict[str, Any]
_FIRST, _LAST, _HOPELESS = 0.5, 30.0, 60.0  # s between two dials
_STEADY = 10.0  # s that a tunnel was up before its pauses start small again
_SILENCE = 30.0  # s without a word of a rendezvous that repeats its `up`
_HOPELESS_SIGNS = ("Permission denied", "Host key verification failed", "HOST IDENTIFICATION HAS CHANGED")


# ---- the key ---------------------------------------------------------------------------------------------


def _key() -> Path:
    """Hosts may share this folder. An earlier version's key is of the host that made it, as it says itself."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "mlbox"
    host, earlier = here.host_name(), folder / "reverse_ed25519"
    with suppress(OSError):
        if Path(f"{earlier}.pub").read_text().split()[2:] == [reverse.mark(host)]:
            return earlier
    return folder / f"reverse_ed25519.{host}"


def publish(found: store.Store, rules: Lab) -> None:
    """Show the key where this host's tunnels are reverse ones; where they no longer are, it goes."""
    path, key = found.on() / "reverse.json", _key()
    if not rules.host(found.host).via:
        if path.exists():
            for file in (path, key, Path(f"{key}.pub")):
                file.unlink(missing_ok=True)
        return
    shown = {"public_key": _public(key)}
    if files.read_json(path) != shown:
        files.write_whole(path, json.dumps(shown).encode(), 0o644)


def _public(key: Path) -> str:
    if not key.exists():
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", reverse.mark(here.host_name()), "-f", str(key))
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise errors.HostUnready(f"no key could be made for reverse tunnels: {error}", "install ssh") from None
    return " ".join(Path(f"{key}.pub").read_text().split()[:2])


# ---- where to meet ---------------------------------------------------------------------------------------


def meeting_file(found: store.Store, host: str, user: str = "") -> Path:
    return found.own(user) / "via" / f"{host}.json"


def meeting(found: store.Store, tunnel: str) -> Meeting | None:
    """Where a session's tunnel ends (`tunnel`: as it was asked for, or ""); None where laptops dial this host itself.
    Raises HostUnready, and Refused where none is to be had."""
    host = lab.rules(found).lab.host(found.host)
    via = host.via
    if tunnel == "forward" and host.reverse:
        raise errors.Refused(f"{found.host} can't be dialled: its tunnels are reverse ones", "leave out --tunnel")
    if not host.reverse and tunnel != "reverse":
        return None
    if not via:
        hint = f"mlbox host add {found.host} --via HOST, one that laptops can dial"
        raise errors.Refused(f"{found.host} has no rendezvous for reverse tunnels", hint)
    try:
        known = Meeting.from_wire(files.read_json(meeting_file(found, found.host)))
    except errors.Usage:
        known = None
    if known is not None and known.via == via:
        return known
    hint = f"mlbox host add {found.host} --via {via}"
    if known is not None:
        what = f"{found.host} has met {known.via}, and lab.yaml has it meet {via}"
        raise errors.HostUnready(f"{what}: no reverse tunnel can come up", f"{hint}, {alias(via)}")
    raise errors.HostUnready(f"{found.host} and {via} have not met yet: no reverse tunnel can come up", hint)


def alias(via: str) -> str:
    """What helps who calls the rendezvous otherwise: lab.yaml's name for it is everybody's."""
    return f"on a laptop that knows it by that name (`Host {via}` in ~/.ssh/config, if by no other)"


# ---- the tunnel of a session -----------------------------------------------------------------------------


class Tunnel:
    """`sockets`: the session's, by their services' names; `call` is added, and answered here."""

    def __init__(self, job: Job, place: Meeting, sockets: Mapping[str, str]) -> None:
        self._job, self._place = job, place
        self._sockets = {**sockets, reverse.CALL: str(job.calls)}
        self._closing = threading.Event()
        self._ssh: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._hold, name="reverse-tunnel", daemon=True)

    def open(self) -> None:
        path = self._job.calls
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(16)
        threading.Thread(target=_answer, args=(listener,), name="reverse-calls", daemon=True).start()
        self._thread.start()

    def close(self) -> None:
        """No ssh of this tunnel runs any more, and none will."""
        with self._lock:
            self._closing.set()
            if self._ssh is not None:
                self._ssh.kill()  # it has nothing to save, and may miss a SIGTERM that comes before it waits
        self._thread.join(_LAST)  # it may have a word to write to a share that hangs

    def _hold(self) -> None:
        pause = _FIRST
        while not self._closing.is_set():
            since = time.monotonic()
            said = self._dial()
            if self._closing.is_set():
                return
            if time.monotonic() - since > _STEADY:
                pause = _FIRST
            _note(self._job, self._place, False, said)
            hopeless = any(sign in said for sign in _HOPELESS_SIGNS)  # servers punish who asks too often
            self._closing.wait((_HOPELESS if hopeless else pause) * random.uniform(0.75, 1.25))
            pause = min(_LAST, pause * 2)

    def _dial(self) -> str:
        """One connection, to its end; why it ended."""
        try:
            path = self._job.boot_folder.with_name(f"{self._job.boot_folder.name}.said")
            with path.open("w+b") as log:
                path.unlink()
                process = self._spawn(log.fileno())
                if process is None:
                    return ""
                assert process.stdin is not None
                said = self._hear(process)
                process.stdin.close()
                process.wait()
                if said in ("up", ""):
                    log.seek(0)
                    lines = log.read().decode(errors="replace").strip().splitlines()
                    said = lines[-1] if lines else "the connection ended"
                return said
        except OSError as error:
            return str(error)

    def _hear(self, process: subprocess.Popen[bytes]) -> str:
        """The last line that the rendezvous said, until it ended or fell silent. Then ssh is killed: it would stay for
        as long as any connection through it does. A rendezvous of an earlier version says `up` only once."""
        assert process.stdout is not None
        said, ups, rest, poll = "", 0, b"", select.poll()
        poll.register(process.stdout, select.POLLIN)
        while poll.poll(_SILENCE * 1000 if ups > 1 else None):
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = line.decode(errors="replace").strip()
                ups += said == "up"
                if said == "up" and ups == 1:
                    _note(self._job, self._place, True, "")
        else:
            said = f"the tunnel's end on {self._place.via} fell silent"
        process.kill()
        return said

    def _spawn(self, log: int) -> subprocess.Popen[bytes] | None:
        """None: the tunnel is being closed."""
        token, place, job = secrets.token_hex(4), self._place, self._job
        known = job.conf / "via_known_hosts"
        files.write_whole(known, place.known_hosts().encode())
        forwards = [
            f"{place.folder}/{reverse.fresh(job.id, token, name)}:{path}" for name, path in self._sockets.items()
        ]
        argv = (
            *place.dial(str(_key()), str(known)), *(word for one in forwards for word in ("-R", one)),
            "--", place.address, reverse.request(job.id, token, self._sockets),
        )  # fmt: skip
        with self._lock:
            if self._closing.is_set():
                return None
            environment = {**os.environ, "MLBOX_SESSION": job.id}
            self._ssh = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
            )
            return self._ssh


def _note(job: Job, place: Meeting, up: bool, why: str) -> None:
    """How the tunnel is, for whoever asks another host of the lab."""
    said = {"via": place.via, "up": up, "why": why[:300], "at": time.time()}
    with suppress(OSError):  # the share's trouble is not the tunnel's
        files.write_whole(job.attempt(1) / "tunnel.json", json.dumps(said).encode())


def _answer(listener: socket.socket) -> None:
    """The laptop's calls to this host: each connection is a call like one over ssh (host/serve.py). What it says
    besides goes where the keeper's own words go."""
    argv = (sys.executable, "-I", "-S", sys.argv[0], "host", "relayed")
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # no descriptor is left just now
            time.sleep(_FIRST)
            continue
        with connection, suppress(OSError):
            call = subprocess.Popen(argv, stdin=connection.fileno(), stdout=connection.fileno())
            threading.Thread(target=call.wait, daemon=True).start()
