"""What the lab takes over from the machine it runs on: packages, mirrors, certificates, DNS, MTU."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from .shell import LabError, run, run_logged, say

BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def install_packages(log: Path, wanted: dict[str, str]) -> None:
    """Install what is missing. `wanted`: a program or file → its Debian package."""
    missing = [
        package
        for probe, package in wanted.items()
        if not (Path(probe).exists() if probe.startswith("/") else shutil.which(probe))
    ]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise LabError(f"the lab needs these packages, or root to install them: {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run_logged(("apt-get", "-q", "update"), log, env)
    argv = ("apt-get", "-qy", "install", "--no-install-recommends", *missing)
    run_logged(argv, log, env)


def _apt_entries() -> Iterator[tuple[str, list[str], list[str]]]:
    """(URI, suites, components) of each `deb` entry in /etc/apt."""
    folder = Path("/etc/apt")
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            lines = [line for line in stanza.splitlines() if not line.startswith("#")]
            pairs = (line.partition(":") for line in lines if line[:1].strip())
            field = {key.strip().lower(): value.split() for key, _, value in pairs}
            if "deb" in field.get("types", []) and "no" not in field.get("enabled", []):
                for uri in field.get("uris", []):
                    yield uri, field.get("suites", []), field.get("components", [])
    for path in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]:
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            match = re.match(r"deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
            if match:
                yield match[1], [match[2]], match[3].split()


def debian_mirrors() -> tuple[Optional[str], Optional[str]]:
    """The machine's mirrors of Debian and of its security suite; None where it has none to copy."""
    try:
        release = Path("/etc/os-release").read_text()
    except OSError:
        return None, None
    code = re.search(r"^VERSION_CODENAME=\"?(\w+)", release, re.M)
    if not re.search(r"^ID=\"?debian\b", release, re.M) or not code:
        return None, None
    main = security = None
    for uri, suites, components in _apt_entries():
        if not uri.startswith("http") or "main" not in components:
            continue
        if code[1] in suites:
            main = main or uri
        if f"{code[1]}-security" in suites:
            security = security or uri
    return main, security


def copy_certificates(to: Path) -> None:
    """The machine's CA certificates with links resolved, so that they mean the same elsewhere."""
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(BUNDLE.parent.iterdir()) if BUNDLE.parent.is_dir() else ():
        if path.is_file():
            target = to / path.name
            if not target.exists() or target.stat().st_size != path.stat().st_size:
                shutil.copyfile(path, target)


def pip_settings() -> dict[str, str]:
    """The machine's pip settings that hold on other machines too: index, timeout, trusted hosts."""
    found: dict[str, str] = {}
    listing = run(("pip3", "config", "list"), check=False).stdout if shutil.which("pip3") else ""
    for line in listing.splitlines():
        match = re.match(r"(?:global|install|:env:)\.([a-z-]+)='(.*)'$", line)
        if not match:
            continue
        name, value = match[1].replace("default-", ""), match[2].replace("\\n", " ")
        if name in ("timeout", "retries", "proxy", "trusted-host"):
            found[name] = value
        elif name in ("index-url", "extra-index-url"):
            urls = [url for url in value.split() if url.startswith("http")]
            if urls:
                found[name] = " ".join(urls)
    return found


def npm_registry() -> Optional[str]:
    """The machine's npm registry, None for npm's own default."""
    if not shutil.which("npm"):
        return None
    value = run(("npm", "config", "get", "registry"), check=False).stdout.strip()
    return value if value.startswith("http") else None


def resolv_conf() -> Path:
    """A resolv.conf that holds in other network namespaces: no resolver on the loopback."""
    stub = Path("/etc/resolv.conf")
    real = Path("/run/systemd/resolve/resolv.conf")
    loopback = re.search(r"^nameserver\s+127\.", stub.read_text(), re.M)
    return real if loopback and real.exists() else stub


def mtu() -> int:
    """The MTU of the way out, which the lab's networks must not exceed."""
    words = run(("ip", "-o", "route", "show", "default"), check=False).stdout.split()
    if "dev" not in words:
        return 1500
    device = words[words.index("dev") + 1]
    return int(Path(f"/sys/class/net/{device}/mtu").read_text())
