"""What the laptop keeps between runs. Nothing here is secret, and nothing here is needed: it saves typing and trips.

~/.local/state/mlbox/   last.json      the last answers per host (never environment values)
                        hosts.json     hosts seen, and which host part each has
                        away.json      hosts of the lab that no connection came about to, and when
                        seen.json      jobs and queues, for completing their names
                        sessions.json  where the last sessions were started: their name, id and host
                        ssh_config     `ssh -F` this, or Include it: sessions by name (ssh.d, proxy.py)
                        asked.json     what was answered about that Include
                        tunnels.log    what befell the tunnels; the older half of it is tunnels.log.1
~/.config/mlbox/config.toml            the user's own defaults (conf/config.toml explains them)
runtime folder, 0700                   sockets of connections and tunnels; a socket's path must stay short
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlbox import errors

Json = dict[str, Any]


def home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "mlbox"


def runtime() -> Path:
    """A private folder with a short name for sockets; raises HostUnready where it is not ours.

    Not in /run/user: logind empties that at logout, and tunnels in the background outlive it."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    fit = base and len(base) < 30 and not base.startswith("/run/user/")
    return private(Path(base) / "mlbox" if fit else Path(f"/tmp/mlbox-client-{os.getuid()}"))


def private(folder: Path) -> Path:
    """Made where it is absent; raises HostUnready where others can reach into it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise errors.HostUnready(f"{folder} is not a private folder of yours", f"remove it, or chmod 700 {folder}")
    return folder


def tunnel_folders() -> list[Path]:
    """Of sessions' tunnels, held (client/owners.py) or left behind. None where the runtime folder can't be used: it is
    told by whoever needs that."""
    try:
        return sorted(runtime().glob("t*"))
    except (errors.MlboxError, OSError):
        return []


def write(path: Path, content: str) -> None:
    """Whole or not at all."""
    import tempfile

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def load(name: str) -> Json:
    """A state file; what is damaged counts as empty, for it only saves typing."""
    try:
        found = json.loads((home() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def update(name: str, key: str, value: Any) -> None:
    """Set (or with None remove) one entry. A full disk costs the entry, not the command."""
    with contextlib.suppress(OSError), locked():
        found = load(name)
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
        write(home() / name, json.dumps(found, indent=1) + "\n")


_REMEMBERED = 100


def remember_seen(jobs: Iterable[Mapping[str, Any]] = (), queues: Iterable[str] = ()) -> None:
    """For completing them on a command line: the newest jobs, and the queues as they were told last."""
    found = load("seen.json")
    told = {str(job["id"]): str(job["name"]) for job in jobs}
    kept = sorted({**found.get("jobs", {}), **told}.items())[-_REMEMBERED:]
    seen = {"jobs": dict(kept), "queues": list(queues) or found.get("queues", [])}
    if seen != found:
        with contextlib.suppress(OSError):
            write(home() / "seen.json", json.dumps(seen) + "\n")


def remember_session(session: str, name: str, host: str, root: str, via: str = "", owner: str = "") -> None:
    """Where a session runs, also after its end: then its name still tells how it ended. Ids sort by age.
    `owner`: of a colleague's."""
    update("sessions.json", session, {"name": name, "host": host, "root": root, "via": via, "owner": owner})
    for old in sorted(load("sessions.json"))[:-_REMEMBERED]:
        update("sessions.json", old, None)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One writer at a time, of all of this user's mlbox processes and threads here."""
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Config:
    """config.toml; every key is optional. dry_run: of this call, whose hosts change nothing either."""

    hosts: tuple[str, ...] = ()
    image: str = ""
    root: str = ""
    sources: str = ""
    ssh_config: str = ""
    transport: str = "openssh"
    ports: Mapping[str, int] = field(default_factory=dict)
    dry_run: bool = False


def config_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mlbox/config.toml"


def config() -> Config:
    """Raises Usage with the line where the file can't be read."""
    path = config_file()
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return _with_environment(Config())
    except OSError as error:
        raise errors.Usage(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise errors.Usage(f"{path}: line {line} is not UTF-8 text") from None
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document = toml.loads(text)
    except ValueError as error:  # TOMLDecodeError is one, and tells the line
        raise errors.Usage(f"{path}: {error}") from None
    return _with_environment(_checked(document, path))


_KINDS = {list: 'list of names: ["gpu1", "gpu2"]', str: "text", dict: "table"}


def _checked(document: Json, path: Path) -> Config:
    kinds = {
        "hosts": list,
        "image": str,
        "root": str,
        "sources": str,
        "ssh_config": str,
        "transport": str,
        "ports": dict,
    }
    for key, value in document.items():
        if key not in kinds:
            raise errors.Usage(f"{path}: mlbox has no setting {key!r}", "it has: " + ", ".join(kinds))
        if not isinstance(value, kinds[key]) or (key == "hosts" and not all(isinstance(host, str) for host in value)):
            raise errors.Usage(f"{path}: {key} must be a {_KINDS[kinds[key]]}")
    ports = document.get("ports", {})
    if set(ports) - {"jupyter", "ssh", "vscode"} or not all(
        isinstance(p, int) and 0 < p < 65536 for p in ports.values()
    ):
        raise errors.Usage(f"{path}: ports takes jupyter, vscode and ssh, each 1 to 65535")
    return Config(**{**document, "hosts": tuple(document.get("hosts", ()))})


def _with_environment(found: Config) -> Config:
    from dataclasses import replace

    override = os.environ.get("MLBOX_SSH_CONFIG")
    return replace(found, ssh_config=os.path.expanduser(override or found.ssh_config))
