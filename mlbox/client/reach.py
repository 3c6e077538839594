"""What it takes to reach a session: which host ssh dials, and which sockets there its services listen on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlbox.core import reverse

Json = dict[str, Any]
PORTS = {"jupyter": 8878, "vscode": 8898, "ssh": 8022}
GUEST = "guest"  # the link's name for the socket of the guest itself
_LATER = ("guest_key", "owner", "moves", "lab")  # which an older mlbox does not know


@dataclass(frozen=True)
class Reach:
    """`host`: as this laptop's ssh calls it; `root`: mlbox's folder there. The rest is host/keeper.py's word."""

    id: str
    name: str
    host: str
    root: str
    services: Mapping[str, Json]
    guest_socket: str
    guest_key: str = ""  # by which the guest is known (core/proof.py); an older mlbox's session has none
    via: str = ""  # the rendezvous where these sockets are, at the end of a reverse tunnel; empty: they are on `host`
    owner: str = ""  # of a colleague's
    moves: bool = False  # it is from a queue: after a loss it waits in line again, and may then run elsewhere
    lab: str = ""  # where it is on record, as its host calls that: of that queue's ROOT

    @classmethod
    def of(cls, session: Json, host: str, root: str) -> Reach:
        id_, name, services, place = session["id"], session["name"], session["services"], session.get("via")
        key, owner, moves = session.get("guest_key", ""), session.get("owner", ""), bool(session.get("queued"))
        lab = session.get("lab", "")
        if not place:
            return cls(id_, name, host, root, services, session["guest_socket"], key, "", owner, moves, lab)
        at = {service: f"{place['folder']}/{reverse.lasting(id_, service)}" for service in (*services, GUEST)}
        services = {service: {**facts, "socket": at[service]} for service, facts in services.items()}
        return cls(id_, name, host, root, services, at[GUEST], key, place["via"], owner, moves, lab)

    def to_wire(self) -> Json:
        """Without what is not there: an older mlbox may hold the tunnels."""
        return {name: value for name, value in asdict(self).items() if value or name not in _LATER}

    def forwards(self) -> dict[str, str]:
        """What a link leads to: its name for a socket -> the socket's path there. The guest's is first: it is asked as
        soon as all of them are bound, and the last one may not listen yet."""
        return {GUEST: self.guest_socket, **{name: str(facts["socket"]) for name, facts in self.services.items()}}

    def start(self) -> list[Any]:
        """What is of one start of the session, at one place: another one has other keys, and perhaps other sockets."""
        return [self.guest_key, self.forwards(), self.urls(PORTS)]

    def gate_token(self) -> str:
        """What opens the services that have no password of their own."""
        return str(self.services.get("vscode", {}).get("token", ""))

    def urls(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Where each service is on this machine, with the token that opens it."""
        found, services = {}, self.services
        if "jupyter" in services:
            found["jupyter"] = f"http://localhost:{ports['jupyter']}/lab?token={services['jupyter']['token']}"
        if "vscode" in services:
            facts = services["vscode"]
            found["vscode"] = f"http://localhost:{ports['vscode']}/?tkn={facts['token']}&folder={facts['folder']}"
        if "ssh" in services:
            found["ssh"] = f"ssh://{services['ssh']['user']}@localhost:{ports['ssh']}"
        return found
