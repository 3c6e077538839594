"""scripts/lab: up, down, status, ssh, exec, reboot, gpu.

For example:

    scripts/lab up [--only gpu1,gpu2] [--without-session-image]
    scripts/lab ssh gpu1 docker ps
    scripts/lab gpu gpu1 --busy 0=4711:2048 --util 0=93
    scripts/lab down [--purge]
"""

import argparse
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Callable, Optional

from . import engine as engines
from . import gpus, hosts, laptop, machine, router, share, sshfiles
from .engine import Engine
from .images import Store
from .inventory import (
    BARE_IMAGES,
    CACHE,
    HOSTS,
    LAB,
    LAB_RUN,
    ROUTER_IMAGE,
    RUN,
    SESSION_IMAGE,
    STORE,
    STORE_ADDRESS,
    STORE_IMAGE,
    Host,
    copies,
)
from .shell import LabError, say

PACKAGES = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "busybox": "busybox-static",
    "gcc": "gcc",
    "/usr/include/stdlib.h": "libc6-dev",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "/sbin/mount.glusterfs": "glusterfs-client",
}


@contextmanager
def _alone() -> Iterator[None]:
    """One `up` or `down` at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another `up` or `down` to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def up(args: argparse.Namespace) -> int:
    """Bring up the hosts; what is up and as it should be is left alone."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it starts containers that run Docker themselves")
    chosen = [_host(name) for name in args.only.split(",")] if args.only else list(HOSTS.values())
    with _alone():
        machine.install_packages(RUN / "logs" / "packages.log", PACKAGES)
        engine = engines.ensure()
        engine.docker("rm", "-f", *engine.containers("status=created", "status=exited"), check=False)
        hosts.prepare()
        names = list(BARE_IMAGES) + ([] if args.without_session_image else [SESSION_IMAGE])
        _make(engine, chosen, names, with_sources=not args.without_session_image)
        hosts.ensure_networks(engine)
        store = share.ensure(engine) if any(host.share for host in chosen) else ""
        if any(host.private for host in chosen):
            router.ensure(engine)
        laptop.ensure()
        sshfiles.write_all(HOSTS.values())
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda host: _bring_up(engine, host, store, names), chosen))
        Store(engine).drop_old()
    _table(status_facts())
    print(f"export MLBOX_SSH_CONFIG={sshfiles.CONFIG}")
    return 0


def _make(engine: Engine, chosen: list[Host], names: list[str], with_sources: bool) -> None:
    """Have all images; two at a time, the long ones first."""
    store = Store(engine)
    wanted = [host.image for host in chosen] + [ROUTER_IMAGE for host in chosen if host.private]
    if any(host.engine for host in chosen):
        wanted += names
    if any(host.share for host in chosen):
        wanted.append(STORE_IMAGE)
    if with_sources:
        wanted.insert(1, "sources")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(store.ensure, dict.fromkeys(wanted)))


def _bring_up(engine: Engine, host: Host, store: str, names: list[str]) -> None:
    fresh = hosts.start(engine, host, store)
    hosts.wait_ready(engine, host)
    if host.engine:
        hosts.fill(engine, host, names, fresh)
    if fresh:
        say(f"{host.name} is up")


def down(args: argparse.Namespace) -> int:
    """Take away all copies, and all but the cache (with --purge the cache too)."""
    if not CACHE.exists() and not LAB_RUN.exists():
        return 0
    if os.geteuid() != 0:
        raise LabError("the lab was started by root; only root can take it down")
    with _alone():
        for copy in copies():
            share.unmount(copy.run / "share")
            laptop.remove(copy)
        engine = engines.known()
        if engine:
            names = engine.containers()
            if names:
                engine.docker("rm", "-f", "-v", *names)
            networks = engine.docker("network", "ls", "--quiet", "--filter", f"label={LAB}").stdout.split()
            engine.docker("network", "rm", *networks, check=False)
            if args.purge:
                form = "{{.Repository}}:{{.Tag}}"
                images = engine.docker("images", "--format", form, "mlbox-lab/*").stdout.split()
                if images:
                    engine.docker("rmi", "-f", *images, check=False)
            engines.stop(engine)
        else:
            engines.bury()
        hosts.remove_leftovers()
        shutil.rmtree(LAB_RUN, ignore_errors=True)
        if args.purge:
            shutil.rmtree(CACHE, ignore_errors=True)
    say("the lab is down" + ("" if args.purge else f"; the cache stays in {CACHE}"))
    return 0


def status_facts() -> dict[str, object]:
    """What is up, as plain data (`status --json`)."""
    engine = engines.known()
    running = set(engine.containers("status=running")) if engine else set()
    return {
        "up": bool(running),
        "engine": {"socket": engine.socket, "started_by_lab": engine.started_by_lab} if engine else None,
        "ssh_config": str(sshfiles.CONFIG),
        "share": str(share.SHARE),
        "store": {"up": STORE in running, "address": STORE_ADDRESS, "container": STORE},
        "cache": str(CACHE),
        "hosts": {
            host.name: {
                "up": host.container in running,
                "address": host.address,
                "container": host.container,
                "about": host.about,
                "engine": host.engine,
                "users": list(host.users),
                "gpus": [asdict(gpu) for gpu in _gpus(host)],
            }
            for host in HOSTS.values()
        },
    }


def _gpus(host: Host) -> list[gpus.Gpu]:
    return gpus.read_gpus(host.name) if gpus.gpus_file(host.name).exists() else []


def status(args: argparse.Namespace) -> int:
    facts = status_facts()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        _table(facts)
    return 0


def _table(facts: dict[str, object]) -> None:
    entries = facts["hosts"]
    assert isinstance(entries, dict)
    for name, entry in entries.items():
        models = [gpu["name"].replace("NVIDIA ", "") for gpu in entry["gpus"]]
        cards = ", ".join(f"{models.count(m)}x {m}" for m in dict.fromkeys(models)) or "no GPUs"
        state = "up" if entry["up"] else "down"
        docker = "Docker" if entry["engine"] else "no engine"
        print(f"{name:6} {state:5} {entry['address']:15} {docker:10} {entry['about']}; {cards}")
    store = facts["store"]
    assert isinstance(store, dict)
    state = "up" if store["up"] else "down"
    print(f"{'store':6} {state:5} {store['address']:15} {'GlusterFS':10} /share of the hosts; {facts['share']} here")


def ssh(args: argparse.Namespace) -> int:
    """ssh to a host (or alias) with the lab's config; replaces this process."""
    os.execvp("ssh", ["ssh", "-F", str(sshfiles.CONFIG), args.host, *args.command])


def execute(args: argparse.Namespace) -> int:
    """Run a command as root inside a host; replaces this process."""
    engine = engines.known()
    if not engine:
        raise LabError("the lab is not up; start it with: scripts/lab up")
    os.environ.update(engine.env)
    tty = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    host = _host(args.host)
    os.execvp("docker", ["docker", "exec", "-i", *tty, host.container, *args.command])


def reboot(args: argparse.Namespace) -> int:
    """Power off and on: all processes gone, /run and /tmp's locks too, the share mounted anew, a new boot id."""
    engine = engines.known()
    if not engine:
        raise LabError("the lab is not up; start it with: scripts/lab up")
    host = _host(args.host)
    engine.docker("restart", "--time", "0", host.container)
    hosts.wait_ready(engine, host)
    return 0


def gpu(args: argparse.Namespace) -> int:
    """Show or change a host's GPUs."""
    host = _host(args.host).name
    if args.reset:
        gpus.set_gpus(host, gpus.default_gpus(host))
    for which in args.free:
        gpus.change(host, which, lambda g: replace(g, procs=(), util=0))
    for text in args.busy:
        which, value = _pair(text)
        pid, _, memory = value.partition(":")
        proc = gpus.Proc(int(pid), int(memory or 512))
        gpus.change(host, which, lambda g, p=proc: replace(g, procs=(*g.procs, p)))  # type: ignore[misc]
    for name in ("util", "temp", "used"):
        for text in getattr(args, name):
            which, value = _pair(text)
            number = int(value)
            gpus.change(host, which, lambda g, k=name, v=number: replace(g, **{k: v}))  # type: ignore[misc]
    for which in args.lost:
        gpus.change(host, which, lambda g: replace(g, lost=True))
    for i, g in enumerate(gpus.read_gpus(host)):
        procs = " ".join(f"{p.pid}:{p.memory}MiB" for p in g.procs) or "idle"
        lost = "  LOST" if g.lost else ""
        print(f"{i} {g.uuid} {g.name}  {g.util}% {g.temp}C  {procs}{lost}")
    return 0


def _pair(text: str) -> list[str]:
    which, equals, value = text.partition("=")
    if not equals or not value.replace(":", "").isdigit():
        raise LabError(f"expected GPU=NUMBER, got {text}")
    return [which, value]


def _host(name: str) -> Host:
    if name not in HOSTS:
        raise LabError(f"no host named {name}; there are {', '.join(HOSTS)}")
    return HOSTS[name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/lab", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, work: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(work=work)
        return sub

    sub = verb("up", up, "bring up the lab")
    sub.add_argument("--only", metavar="HOST,…", help="just these hosts")
    sub.add_argument("--without-session-image", action="store_true", help="neither session:1 nor code-server")
    sub = verb("down", down, "take it away; the cache stays")
    sub.add_argument("--purge", action="store_true", help="remove the cache as well")
    verb("status", status, "what is up").add_argument("--json", action="store_true")
    sub = verb("ssh", ssh, "ssh to a host or alias")
    sub.add_argument("host")
    sub.add_argument("command", nargs=argparse.REMAINDER)
    sub = verb("exec", execute, "run a command as root inside a host")
    sub.add_argument("host")
    sub.add_argument("command", nargs=argparse.REMAINDER)
    verb("reboot", reboot, "power a host off and on").add_argument("host")
    sub = verb("gpu", gpu, "show or change a host's false GPUs; GPU is a UUID or an index")
    sub.add_argument("host")
    sub.add_argument("--reset", action="store_true", help="idle, as at the start")
    many = {"action": "append", "default": []}
    sub.add_argument("--busy", metavar="GPU=PID[:MIB]", **many)  # type: ignore[arg-type]
    sub.add_argument("--free", metavar="GPU", **many)  # type: ignore[arg-type]
    for name in ("util", "temp", "used"):
        sub.add_argument(f"--{name}", metavar="GPU=NUMBER", **many)  # type: ignore[arg-type]
    sub.add_argument("--lost", metavar="GPU", **many)  # type: ignore[arg-type]
    return parser


def main(argv: Optional[list[str]] = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.work(args))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
