"""Starting the hosts, filling their engines with images, and taking them away."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from . import machine, sshfiles
from .catalog import sources, tag_of
from .engine import Engine, unmount
from .gpus import default_gpus, gpus_file, set_gpus
from .inventory import (
    BRIDGE,
    CACHE,
    CGROUP,
    DATA,
    HERE,
    HOSTS,
    LAB,
    LAB_RUN,
    NETWORK,
    PODMAN_IMAGES,
    PODMAN_USERS,
    PRIVATE,
    PRIVATE_BRIDGE,
    PRIVATE_SUBNET,
    ROUTER_INSIDE,
    RUN,
    STORE_ADDRESS,
    SUBNET,
    USERS,
    VOLUME,
    Host,
)
from .shell import pipe, run, say, wait_for, write

FILES = ("init.sh", "hook.py", "sshd.conf", "banner", "noisy.bashrc")


def prepare() -> None:
    """Files that all hosts share: certificates, the false driver."""
    machine.copy_certificates(RUN / "certs")
    library = RUN / "libnvidia-ml.so.1"
    flags = ("-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1")
    run(("gcc", *flags, "-o", str(library), str(DATA / "nvml.c")))


def ensure_networks(engine: Engine) -> None:
    _ensure_network(engine, NETWORK, BRIDGE, SUBNET)
    _ensure_network(engine, PRIVATE, PRIVATE_BRIDGE, PRIVATE_SUBNET)


def _ensure_network(engine: Engine, name: str, bridge: str, net: str) -> None:
    if engine.docker("network", "inspect", name, check=False).returncode != 0:
        options = (
            f"com.docker.network.bridge.name={bridge}",
            f"com.docker.network.driver.mtu={machine.mtu()}",
        )
        args = [part for option in options for part in ("--opt", option)]
        subnet = ("--subnet", f"{net}.0/24", "--gateway", f"{net}.1", "--label", LAB)
        engine.docker("network", "create", *args, *subnet, name)


def _furnish(host: Host) -> None:
    """Write what the host's init takes from /lab."""
    lab = host.folder / "lab"
    lab.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(DATA / name, lab / name)
    if host.models:
        shutil.copyfile(RUN / "libnvidia-ml.so.1", lab / "libnvidia-ml.so.1")
    key = sshfiles.host_key(host.name)
    write(lab / "ssh_host_ed25519_key", key.read_text(), 0o600)
    write(lab / "ssh_host_ed25519_key.pub", sshfiles.public(key) + "\n")
    write(lab / "authorized_keys", sshfiles.public(sshfiles.laptop_key()) + "\n")
    pip = {"cert": str(machine.BUNDLE), **machine.pip_settings()}
    write(lab / "pip.conf", "[global]\n" + "".join(f"{k} = {v}\n" for k, v in pip.items()))
    gpus_file(host.name).parent.mkdir(parents=True, exist_ok=True)


def start(engine: Engine, host: Host, store: str) -> bool:
    """Have the host's container running; True when it was (re)started just now. `store`: the share's server, by id."""
    _furnish(host)
    argv = _arguments(host)
    lab = host.folder / "lab"
    digest = hashlib.sha256(repr((argv, store if host.share else "")).encode())
    for path in sorted(lab.iterdir()):
        digest.update(path.read_bytes())
    mark = digest.hexdigest()[:16]
    form = '{{.State.Running}} {{index .Config.Labels "' + LAB + '"}}'
    seen = engine.docker("inspect", "-f", form, host.container, check=False)
    if seen.stdout.split() == ["true", mark]:
        return False
    engine.docker("rm", "-f", "-v", host.container, check=False)
    set_gpus(host.name, default_gpus(host.name))
    engine.docker("run", "--detach", "--label", f"{LAB}={mark}", *argv)
    return True


def _arguments(host: Host) -> list[str]:
    """The arguments of `docker run`. The capabilities and devices are those an inner dockerd needs."""
    users = " ".join(f"{user}:{USERS[user]}" for user in host.users)
    argv = ["--name", host.container, "--hostname", host.name, "--network", PRIVATE if host.private else NETWORK]
    argv += ["--ip", host.address, "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE"]
    argv += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
    argv += ["--device", "/dev/fuse", "--device", "/dev/net/tun"]
    argv += ["-v", f"{host.folder / 'lab'}:/lab:ro", "-v", f"{host.folder / 'gpus'}:/etc/mlbox-lab"]
    argv += ["-v", f"{RUN / 'certs'}:/lab-certs:ro"]
    argv += ["-v", f"{machine.resolv_conf()}:/etc/resolv.conf:ro"]
    argv += ["-e", f"LAB_USERS={users}", "-e", f"LAB_ENGINE={int(host.engine)}", "-e", f"LAB_CDI={int(host.cdi)}"]
    argv += ["-e", f"LAB_PODMAN={int(host.podman)}"]
    argv += ["-e", f"LAB_MTU={machine.mtu()}", "-e", f"LAB_CGROUP=/{host.cgroup}"]
    if host.private:
        argv += ["-e", f"LAB_ROUTER={ROUTER_INSIDE}"]
    for other in HOSTS.values():
        if other is not host and not other.private:
            argv += ["--add-host", f"{other.name}:{other.address}"]
    if host.share:
        argv += ["-e", f"LAB_SHARE={STORE_ADDRESS}:/{VOLUME}"]
        if sources().is_dir():
            argv += ["-v", f"{sources()}:/lab-sources:ro"]
    if host.engine:
        docker = HERE.stores / f"docker-{host.name}"
        docker.mkdir(parents=True, exist_ok=True)
        argv += ["-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "-v", f"{docker}:/var/lib/docker"]
    if host.podman:
        podman = HERE.stores / f"podman-{host.name}"
        podman.mkdir(parents=True, exist_ok=True)
        argv += ["-v", f"{podman}:/var/lib/containers"]
    return [*argv, tag_of(host.image), "/bin/bash", "/lab/init.sh"]


def wait_ready(engine: Engine, host: Host) -> None:
    """Wait for sshd, and for the inner dockerd where there is one."""

    def ssh() -> bool:
        argv = ("ssh", "-F", str(sshfiles.CONFIG), "-o", "BatchMode=yes", "-o", "ConnectTimeout=2")
        return run((*argv, host.name, "true"), check=False).returncode == 0

    def docker() -> bool:
        return engine.docker("exec", host.container, "docker", "info", check=False).returncode == 0

    def past_ssh() -> bool:
        return engine.docker("exec", host.container, "pgrep", "-x", "cron", check=False).returncode == 0

    wait_for(f"sshd on {host.name}", past_ssh if host.private else ssh, 30)
    if host.engine:
        wait_for(f"dockerd on {host.name}", docker, 60)


def fill(engine: Engine, host: Host, names: Iterable[str], fresh: bool) -> None:
    """Give the host's engines these images, and nothing from an earlier life when it is `fresh`."""
    _fill(engine, host, ("docker",), names, fresh)
    for user in PODMAN_USERS if host.podman else ():
        home = "/root" if user == "root" else f"/home/{user}"
        _fill(engine, host, ("env", f"HOME={home}", f"USER={user}", "podman"), PODMAN_IMAGES, fresh, user)


def _fill(
    engine: Engine, host: Host, program: tuple[str, ...], names: Iterable[str], fresh: bool, user: str = "root"
) -> None:
    inside = ("exec", "--user", user, "--workdir", "/", host.container, *program)
    if fresh:
        old = engine.docker(*inside, "ps", "-aq").stdout.split()
        if old:
            engine.docker(*inside, "rm", "-f", "-v", *old)
        engine.docker(*inside, "system", "prune", "-f", "--volumes")
    wanted = {f"mlbox-lab/{name}:1": engine.image_id(f"mlbox-lab/{name}:1") for name in names}
    form = "{{.Repository}}:{{.Tag}} {{.ID}}"
    listing = engine.docker(*inside, "images", "--no-trunc", "--format", form).stdout
    # podman has a registry for every name: this machine.
    have = dict(line.replace("localhost/", "", 1).split() for line in listing.splitlines())
    if fresh:
        strange = [tag for tag in have if not tag.startswith("mlbox-lab/") and "<none>" not in tag]
        if strange:
            engine.docker(*inside, "rmi", "-f", *strange, check=False)
    missing = [tag for tag, image in wanted.items() if have.get(tag) != image]
    if missing:
        say(f"loading {' '.join(missing)} into {host.name} ({program[-1]}, {user})")
        load = ("docker", "exec", "-i", *inside[1:], "load", "--quiet")
        pipe(("docker", "save", *missing), load, engine.env)
        engine.docker(*inside, "image", "prune", "-f")


def remove_leftovers() -> None:
    """Unmount what is mounted under the lab's folders, and remove its control groups."""
    for folder in (LAB_RUN, CACHE):
        unmount(folder)
    for top in (*Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"), Path("/sys/fs/cgroup") / CGROUP):
        if top.is_dir():
            subprocess.run(
                ("find", str(top), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"),
                stderr=subprocess.DEVNULL,
            )
