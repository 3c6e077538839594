"""A session's tunnels as the rest of the client sees them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence

from mlbox.client.tunnels import inside
from mlbox.client.tunnels.events import Backoff, OnEvent, Timing
from mlbox.client.tunnels.gate import Key, admit
from mlbox.client.tunnels.handover import Handover
from mlbox.client.tunnels.held import Held
from mlbox.client.tunnels.listener import Listener, Port, Service, allow_many_files
from mlbox.client.tunnels.probe import Probe, ping
from mlbox.client.tunnels.supervisor import LinkFactory, Supervisor
from mlbox.splice import Splice, let_go

WAIT = 60.0  # seconds that a new connection waits for a link
_AGAIN_FIRST, _AGAIN_LAST = 0.05, 1.0  # seconds until a socket that took nobody is tried again


class Tunnels:
    """The ports are bound by open() and stay the same until close(), whatever becomes of the links.

    probe_service need not be among `services`: it is the link's name for the socket that the probe asks, and that
    leads to ports inside the session.
    """

    def __init__(
        self,
        services: Sequence[Service],
        link_factory: LinkFactory,
        on_event: OnEvent,
        key: Key,
        *,
        probe: Probe = ping,
        probe_service: str = "guest",
        timing: Timing = Timing(),  # noqa: B008 (frozen)
        wait: float = WAIT,
    ) -> None:
        self._services = tuple(services)
        self._key = key
        self._wait = wait
        self._supervisor = Supervisor(link_factory, on_event, probe, probe_service, timing)
        self._ports: dict[str, Port] = {}
        self._listener: Listener | None = None
        self._closing = threading.Lock()

    def open(self) -> None:
        """Bind the ports and return; the link comes up meanwhile. Raises MlboxError if no port is free."""
        allow_many_files()
        try:
            for service in self._services:
                self._ports[service.name] = Port(service)
        except BaseException:  # ^C too: all ports or none
            for port in self._ports.values():
                port.close()
            raise
        self._listener = Listener(list(self._ports.values()), self._serve)
        self._listener.start()
        self._supervisor.start()

    def add(self, service: Service) -> int:
        """One more port, while they are open; its number. Raises MlboxError if none is free."""
        assert self._listener is not None
        port = self._ports[service.name] = Port(service)
        self._listener.add(port)
        return port.number

    def remove(self, name: str) -> None:
        """Free that port again."""
        assert self._listener is not None
        self._listener.remove(self._ports.pop(name))

    def port(self, name: str) -> int:
        return self._ports[name].number

    @property
    def moved(self) -> Mapping[str, tuple[int, int]]:
        """{service: (wanted, got)} where the wanted port was taken."""
        pairs = {name: (port.service.wanted_port, port.number) for name, port in self._ports.items()}
        return {name: (wanted, got) for name, (wanted, got) in pairs.items() if wanted not in (0, got)}

    def wait_up(self, timeout: float) -> bool:
        """Whether a link answers, within `timeout` seconds."""
        return self._supervisor.current(timeout) is not None

    def reconnect(self) -> None:
        """A new link now; the ports and the connections that still work stay."""
        self._supervisor.reconnect()

    def hurry(self) -> None:
        """The guest is there by now, as somebody else knows."""
        self._supervisor.hurry()

    def anew(self, key: Key, reason: str) -> None:
        """The session was started anew: `key` opens it, and the link factory leads to it. The ports stay."""
        self._supervisor.anew(reason)  # first: what the new key lets in goes nowhere else
        self._key = key

    def close(self, reason: str = "") -> None:
        """Free the ports, end every connection and process, wait for every thread. Any number of times."""
        self._supervisor.close(reason)
        with self._closing:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _serve(self, service: Service, connection: socket.socket) -> None:
        head: bytes | None = b""
        if service.gated:
            head = admit(connection, self._key)
        if head is not None:
            self._carry(service, connection, head)

    def _carry(self, service: Service, connection: socket.socket, head: bytes) -> None:
        """Wait for a link that takes the connection, and see it to its end."""
        deadline, again = time.monotonic() + self._wait, Backoff(_AGAIN_FIRST, _AGAIN_LAST)
        while True:
            held = self._supervisor.current(max(0.0, deadline - time.monotonic()))
            whole = not head and not service.inside  # nothing is to be said before its own bytes
            if held is None or (whole and self._hand_over(held, service, connection)):
                return
            if held.stale():  # it was cut before ssh had taken it
                continue
            try:
                far = inside.connect(held.link, service) if service.inside else _connect(held.link.path(service.name))
            except ConnectionRefusedError:
                _reset(connection)
                return
            if far is not None:
                splice = Splice(connection, far)
                if held.splices.add(splice, service.page):
                    break
                far.close()
            self._supervisor.pause(again.delay())  # its process has just gone, which is noticed at once; or its service
        try:
            splice.run(head)
        finally:
            self._leave(held, splice)

    def _hand_over(self, held: Held, service: Service, connection: socket.socket) -> bool:
        """Whether the link's own process took it, which it had to its end."""
        offer = held.link.handover(service.name)
        if offer is None:
            return False
        with Handover(*offer, connection) as handover:
            try:
                taken = held.splices.add(handover, service.page) and handover.run()
            finally:
                self._leave(held, handover)
        if taken:
            let_go(connection)
        return taken

    def _leave(self, held: Held, carried: Splice | Handover) -> None:
        held.splices.remove(carried)
        self._supervisor.drained(held.generation)


def _connect(path: str) -> socket.socket | None:
    far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        far.settimeout(5.0)  # also makes a full backlog an error: a stopped ssh accepts nobody
        far.connect(path)
        far.settimeout(None)
    except OSError:
        far.close()
        return None
    return far


def _reset(connection: socket.socket) -> None:
    """As the kernel refuses a port where nobody listens, as far as a connection that was accepted can still be."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
