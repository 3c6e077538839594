"""A session as seen from the laptop: its tunnels up, its block printed, its end noticed.

The tunnel is dialled while the container still starts; its probe waits for the guest, so that no time is lost
and nothing is asked in vain.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from mlbox import errors
from mlbox.client import output, ssh_config, state
from mlbox.client.remote import Host, connect
from mlbox.client.tunnels import Key, Service, TunnelEvent, Tunnels
from mlbox.client.tunnels.probe import ping
from mlbox.core import reverse, text

Json = dict[str, Any]
PORTS = {"jupyter": 8878, "vscode": 8898, "ssh": 8022}
TITLES = {"jupyter": "Jupyter", "vscode": "VS Code", "ssh": "SSH"}
_UP = 60.0  # s for the tunnel to come up after the session is ready


@dataclass(frozen=True)
class Reach:
    """What it takes to reach a session: which host our ssh dials, and which sockets it forwards."""

    id: str
    name: str
    services: Mapping[str, Json]
    guest_socket: str
    via: str = ""  # the host where these sockets are, if it is another than the session's


def reach(session: Json) -> Reach:
    """What the keeper says of its session (host/keeper.py), as our ssh finds it: on the session's host, or on the
    rendezvous where its reverse tunnel ends."""
    id_, name, place = session["id"], session["name"], session.get("via")
    if not place:
        return Reach(id_, name, session["services"], session["guest_socket"])
    at = {service: f"{place['folder']}/{reverse.lasting(id_, service)}" for service in (*session["services"], "guest")}
    services = {service: {**facts, "socket": at[service]} for service, facts in session["services"].items()}
    return Reach(id_, name, services, at["guest"], place["via"])


class Attached:
    """Tunnels to one session. `ended` is set, with `why`, when the session itself is gone."""

    def __init__(self, host: Host, reach: Reach, config: state.Config, say: Callable[[str], None]) -> None:
        self._host, self.reach, self._say = host, reach, say
        self.ended, self.why = threading.Event(), ""
        self._told = ""  # the reason of the last attempt that failed
        self._guest_expected = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="t", dir=state.runtime()))
        forwards = {name: str(facts["socket"]) for name, facts in reach.services.items()}
        forwards["guest"] = reach.guest_socket
        ports = {**PORTS, **config.ports}
        way = connect(reach.via, config).transport if reach.via not in ("", host.via) else host.transport
        self._tunnels = Tunnels(
            [Service(name, ports[name], gated=name == "vscode") for name in reach.services],
            lambda generation: way.link(forwards, self._folder, generation),
            self._on_event,
            Key(reach.id, str(reach.services.get("vscode", {}).get("token", ""))),
            probe=self._probe,
        )
        self._identity_files = host.transport.identity_files()

    def dial(self) -> None:
        """Take the local ports and begin to connect; returns at once."""
        self._tunnels.open()
        for name, (wanted, got) in self._tunnels.moved.items():
            self._say(f"port {wanted} is taken here; {TITLES[name]} is on {got}")

    def _probe(self, path: str, timeout: float) -> bool:
        self._guest_expected.wait()
        return ping(path, timeout)

    def wait_up(self) -> None:
        """The guest is there: until the tunnel reaches it and each service answers through it. Raises Unreachable."""
        self._guest_expected.set()
        if not self._tunnels.wait_up(_UP):
            raise errors.Unreachable(
                f"the session {self.reach.name} runs, but no tunnel to it comes up",
                f"mlbox session attach {self.reach.name} --host {self._host.name}",
            )
        self._say_wrong(self._check_ends())

    def _check_ends(self) -> list[str]:
        wrong = []
        for name in self.reach.services:
            try:
                if name == "ssh":
                    self._check_ssh()
                else:
                    self._check_http(name)
            except (OSError, http.client.HTTPException) as error:
                wrong.append(f"{TITLES[name]} does not answer through the tunnel: {error}")
        return wrong

    def _say_wrong(self, wrong: list[str]) -> None:
        for line in wrong:
            output.warn(line)

    def _check_http(self, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port(name), timeout=20)
        try:
            path = "/api" if name == "jupyter" else f"/healthz?tkn={self.reach.services[name]['token']}"
            connection.request("GET", path, headers={"Host": f"localhost:{self.port(name)}"})
            status = connection.getresponse().status
            if status >= 400:
                raise http.client.HTTPException(f"HTTP {status}")
        finally:
            connection.close()

    def _check_ssh(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port("ssh")), timeout=20) as probe:
            if not probe.recv(64).startswith(b"SSH-"):
                raise OSError("no SSH banner")

    def announce_ssh(self) -> None:
        """Let `ssh -p PORT` know the session's own host key."""
        facts = self.reach.services.get("ssh")
        if facts and facts.get("host_key"):
            port, user = self.port("ssh"), str(facts["user"])
            ssh_config.add(self.reach.id, port, user, str(facts["host_key"]), self._identity_files)

    def port(self, name: str) -> int:
        return self._tunnels.port(name)

    def reconnect(self) -> None:
        self._tunnels.reconnect()

    def close(self) -> None:
        self._guest_expected.set()
        self._tunnels.close()
        ssh_config.remove(self.reach.id)
        shutil.rmtree(self._folder, ignore_errors=True)

    # ---- what the tunnels tell -------------------------------------------------------------------

    def _on_event(self, event: TunnelEvent) -> None:
        if not self._guest_expected.is_set():
            return
        if event.kind == "lost":
            self._say(f"tunnel lost ({event.reason}); reconnecting")
        elif event.kind == "retrying" and event.reason not in ("", self._told):
            self._told = event.reason
            self._say(f"still trying: {event.reason}")
        elif event.kind == "back":
            self._told = ""
            after = f" after {event.downtime:.1f} s" if event.downtime else ""
            self._say(f"tunnel is back{after}; the ports are the same")
        elif event.kind == "refused":
            threading.Thread(target=self._ask_host, daemon=True).start()

    def _ask_host(self) -> None:
        """ssh works and nobody is behind it: has the session ended?"""
        try:
            self._host.call("sessions", {"session": self.reach.id})
        except errors.NotFound as error:
            self.why = error.message
            self.ended.set()
        except errors.MlboxError:
            return  # the host is not to be asked just now; the next refusal asks again

    # ---- the block -------------------------------------------------------------------------------

    def urls(self) -> dict[str, str]:
        """Where each service is on this machine, with the token that opens it."""
        found = {}
        services = self.reach.services
        if "jupyter" in services:
            found["jupyter"] = f"http://localhost:{self.port('jupyter')}/lab?token={services['jupyter']['token']}"
        if "vscode" in services:
            facts = services["vscode"]
            found["vscode"] = f"http://localhost:{self.port('vscode')}/?tkn={facts['token']}&folder={facts['folder']}"
        if "ssh" in services:
            found["ssh"] = f"ssh://{services['ssh']['user']}@localhost:{self.port('ssh')}"
        return found


def block(attached: Attached, absent: Mapping[str, str]) -> str:
    """What a person needs to work in the session."""
    reach, urls = attached.reach, attached.urls()
    lines = [f"Interactive session is running:  {output.bold(reach.name)}  (job {reach.id})"]
    if "ssh" in urls:
        lines.append(f"SSH:        {ssh_config.words(reach.id, attached.port('ssh'), reach.services['ssh']['user'])}")
    for name in ("jupyter", "vscode"):
        if name in urls:
            lines.append(f"{TITLES[name] + ':':<12}{urls[name]}")
    lines += [f"{TITLES[name] + ':':<12}not there: {text.safe(why)}" for name, why in absent.items()]
    return "\n".join(lines)
