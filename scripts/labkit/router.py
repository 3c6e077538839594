"""The way out of the private network: a container in both networks, which lets out with NAT and nobody in."""

import hashlib
import shutil

from .catalog import tag_of
from .engine import Engine
from .inventory import (
    DATA,
    LAB,
    NETWORK,
    PRIVATE,
    PRIVATE_SUBNET,
    ROUTER,
    ROUTER_ADDRESS,
    ROUTER_IMAGE,
    ROUTER_INSIDE,
    RUN,
)  # fmt: skip
from .shell import wait_for

_SCRIPT = RUN / "router" / "router.sh"


def ensure(engine: Engine) -> None:
    """Have it running."""
    _SCRIPT.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / "router.sh", _SCRIPT)
    argv = ["--name", ROUTER, "--hostname", "router", "--network", NETWORK, "--ip", ROUTER_ADDRESS]
    argv += ["--cap-add", "NET_ADMIN", "--sysctl", "net.ipv4.ip_forward=1"]
    argv += ["-v", f"{_SCRIPT.parent}:/lab:ro", "-e", f"LAB_PRIVATE={PRIVATE_SUBNET}.0/24"]
    argv += [tag_of(ROUTER_IMAGE), "/bin/bash", "/lab/router.sh"]
    mark = hashlib.sha256(repr((argv, _SCRIPT.read_text())).encode()).hexdigest()[:16]
    form = '{{.State.Running}} {{index .Config.Labels "' + LAB + '"}}'
    if engine.docker("inspect", "-f", form, ROUTER, check=False).stdout.split() == ["true", mark]:
        return
    engine.docker("rm", "-f", "-v", ROUTER, check=False)
    engine.docker("create", "--label", f"{LAB}={mark}", *argv)
    engine.docker("network", "connect", "--ip", ROUTER_INSIDE, PRIVATE, ROUTER)
    engine.docker("start", ROUTER)

    def ready() -> bool:
        return engine.docker("exec", ROUTER, "test", "-e", "/run/ready", check=False).returncode == 0

    wait_for("the router", ready, 30)
