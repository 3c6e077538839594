"""The laptop's side of SSH: a key, a known_hosts with the hosts' real keys, and a config.

Host keys are kept in the cache, so known_hosts is the same after `down` and `up`. Besides
`HOST` (user ada) and `HOST-USER` there are aliases for trouble:
`changed` (another key is known for it), `unknown-key` (no key is known), `unreachable`.
"""

from collections.abc import Iterable
from pathlib import Path

from .inventory import CACHE, HOSTS, RUN, UNREACHABLE, Host
from .shell import run, write

SSH = RUN / "ssh"
CONFIG = SSH / "config"
CHANGED = "mlbox-lab-changed"
UNKNOWN = "mlbox-lab-unknown"


def host_key(name: str) -> Path:
    """A host's private key in the cache, made when it is missing; its public half is NAME.pub."""
    path = CACHE / "hostkeys" / name
    if not path.exists():
        _keygen(path, name)
    return path


def _keygen(path: Path, comment: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".new-{path.name}")
    for old in (partial, partial.with_name(f"{partial.name}.pub")):
        old.unlink(missing_ok=True)
    run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(partial)))
    partial.with_name(f"{partial.name}.pub").replace(path.with_name(f"{path.name}.pub"))
    partial.replace(path)


def laptop_key() -> Path:
    """The laptop's private key."""
    path = SSH / "id_ed25519"
    if not path.exists():
        _keygen(path, "laptop")
    return path


def public(key: Path) -> str:
    return Path(f"{key}.pub").read_text().strip()


def write_all(hosts: Iterable[Host]) -> None:
    """Write known_hosts and config for these hosts."""
    hosts = [host for host in hosts if not host.private]
    known = [f"{host.address} {_bare(host.name)}" for host in hosts]
    known.append(f"{CHANGED} {_bare('changed')}")
    write(SSH / "known_hosts", "\n".join(known) + "\n")
    write(CONFIG, "\n".join(_config(hosts)) + "\n")
    laptop_key()


def _bare(name: str) -> str:
    return " ".join(public(host_key(name)).split()[:2])


def _config(hosts: list[Host]) -> list[str]:
    lines = ["# Written by scripts/lab up."]
    names = []

    def block(name: str, address: str, *more: str) -> None:
        names.append(name)
        lines.extend([f"Host {name}", f"    HostName {address}", *(f"    {m}" for m in more)])

    for host in hosts:
        block(host.name, host.address, "User ada")
        for user in host.users:
            block(f"{host.name}-{user}", host.address, f"User {user}")
    first = next((h for h in hosts if h.name == "gpu1"), hosts[0] if hosts else HOSTS["gpu1"])
    block("changed", first.address, "User ada", f"HostKeyAlias {CHANGED}")
    block("unknown-key", first.address, "User ada", f"HostKeyAlias {UNKNOWN}")
    lines.append("    StrictHostKeyChecking ask")
    block("unreachable", UNREACHABLE, "User ada", "ConnectTimeout 3")
    lines += [
        f"Host {' '.join(names)}",
        f'    IdentityFile "{SSH / "id_ed25519"}"',
        "    IdentitiesOnly yes",
        f'    UserKnownHostsFile "{SSH / "known_hosts"}"',
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
    ]
    return lines
