"""What is left when a test is over: a laptop's own processes and folders, and traces of anybody's on a host."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labbox import Laptop, as_root

# Containers, volumes, images, files, leases, processes: everybody's, seen by the host's root. Not what is a user's
# for as long as the host is up, and no session's: the locks, when cron and other hosts were last heard, a tick's word
# to the next one, and what of lab.yaml was said.
_TRACES = """
docker ps -aq --no-trunc; docker volume ls -q; docker images -q
find /tmp/mlbox-1* -mindepth 1 |
  grep -vE '^/tmp/mlbox-[0-9]+/((layer|tick)-[0-9a-f]+|archive|cron|driver|submit|usage)[.](lock|said|wanted|heard)$'
ls -d /tmp/mlbox-layer-* /home/*/.cache/mlbox/.?*[0-9]
find /home/*/.local/share/mlbox/users/*/on/*/live -type f
for lease in /tmp/mlbox-leases/GPU-*; do [ ! -e $lease ] || flock --nonblock $lease true || echo $lease; done
grep -laz '^MLBOX_SESSION=' /proc/[0-9]*/environ
pgrep -af 'mlbox[-]builder|layer[.]sh|init[-]script'
true
"""


def traces(host: str) -> list[str]:
    """Of anybody's sessions on a host; after a session there must be nothing that was not there before it."""
    return as_root(host, "bash", "-c", f"exec 2>/dev/null\n{_TRACES}").splitlines()


def all_processes(laptop: Laptop) -> list[str]:
    """What this (watched) laptop's commands still run."""
    return list(marked(laptop.env["XDG_RUNTIME_DIR"]).values())


def own_processes(laptop: Laptop) -> list[str]:
    """The same without the shared connections, dialled behind a command or in front of it: they stay, by design."""
    return [command for command in all_processes(laptop) if "[mux]" not in command and " -f -N " not in command]


def marked(runtime: str) -> dict[int, str]:
    """The command lines of processes that were started with this runtime folder; a zombie has none."""
    mark, found = f"XDG_RUNTIME_DIR={runtime}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def tunnel_folders(laptop: Laptop) -> list[str]:
    """The socket folders of tunnels that are up, or were and left theirs."""
    return [path.name for path in Path(laptop.env["XDG_RUNTIME_DIR"]).glob("mlbox/t*")]


@contextmanager
def watched(home: Path, *hosts: str) -> Iterator[Laptop]:
    """A laptop with a runtime folder of its own. Afterwards it runs nothing, and its hosts have nothing new."""
    before = {host: traces(host) for host in hosts}
    runtime = tempfile.mkdtemp(prefix="mb", dir="/tmp")
    laptop = Laptop(home)
    laptop.env["XDG_RUNTIME_DIR"] = runtime
    try:
        yield laptop
        processes, folders = own_processes(laptop), tunnel_folders(laptop)
        assert processes == folders == [], f"still on the laptop: {processes} {folders}"
        for host in hosts:
            left = [found for found in traces(host) if found not in before[host]]
            assert left == [], f"left on {host}: {left}"
    finally:
        laptop.close()
        for pid in marked(runtime):  # the shared connections; after a failure, whatever there is
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        shutil.rmtree(runtime, ignore_errors=True)  # ssh takes its socket away while it ends
