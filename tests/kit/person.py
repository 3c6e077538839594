"""A person beside ada: with a login on hosts, and a laptop with a key of their own, as a colleague comes."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aftermath import watched
from labbox import SSH_CONFIG, Attached, Laptop, as_root
from labkit.inventory import RUN

# What is heard at a socket: a greeting, or the answer to a question; nothing of a connection that is closed.
HEAR = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.sendall(b'{"op": "ping"}\\n{"op": "facts"}\\n' if len(sys.argv) < 3 else sys.argv[2].encode() + b"\\n")
    s.settimeout(10)
    print("heard", s.recv(4096))
except OSError as error:
    print("heard b'' ", error)
"""


@dataclass(frozen=True)
class Person:
    """One with a login of their own, and a laptop that has a key which is nobody else's."""

    user: str
    laptop: Laptop
    key: Path
    open: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ssh(self, *words: str) -> list[str]:
        """To a session by its name, with this person's own key only."""
        file = str(self.laptop.home / ".local/state/mlbox/ssh_config")
        return ["ssh", "-F", file, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(self.key), *words]

    def inside(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.ssh(name, command), env=self.laptop.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=90,
        )  # fmt: skip

    def shell(self, name: str) -> subprocess.Popen[bytes]:
        """An open connection that says again what it hears."""
        process = subprocess.Popen(
            self.ssh(name, "echo up; exec cat"), env=self.laptop.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.open.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        return process


@contextmanager
def person(user: str, home: Path, *hosts: str) -> Iterator[Person]:
    """With a runtime folder of their own: by ada's they would join ada's tunnels."""
    with watched(home) as laptop:
        made = Person(user, laptop, home / "own_key")
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", user, "-f", str(made.key)), check=True)
        config = home / "ssh_config"
        config.write_text(SSH_CONFIG.read_text().replace(str(RUN / "ssh/id_ed25519"), str(made.key)))
        laptop.env["MLBOX_SSH_CONFIG"] = str(config)
        line = shlex.quote(made.key.with_suffix(".pub").read_text().strip())
        try:
            for host in hosts:
                as_root(host, "sh", "-c", f"echo {line} >>/home/{user}/.ssh/authorized_keys")
                assert laptop.run("status", f"{host}-{user}").code == 0  # plants mlbox, and is known from now on
            yield made
        finally:
            for process in made.open:
                process.kill()
                process.communicate()
            for host in hosts:
                as_root(host, "sh", "-c", f"sed -i '/ {user}$/d' /home/{user}/.ssh/authorized_keys")


def echoes(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"there?\n")
    process.stdin.flush()
    return process.stdout.readline() == b"there?\n"


@contextmanager
def joined(person: Person, *words: str) -> Iterator[tuple[Attached, dict[str, str]]]:
    client = person.laptop.attach("attach", *words)
    try:
        yield client, client.block()
    finally:
        client.stop()
