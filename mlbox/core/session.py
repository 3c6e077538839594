"""A session: what was asked for, and what its event log says of it.

The same checked dataclass is made on the laptop (from flags and YAML) and again on the host (from the
wire), so a host never trusts what a laptop sent.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mlbox.core import gpu, shape, text
from mlbox.errors import Usage

Json = dict[str, Any]

ENGINES = ("docker", "podman")
RUNTIMES = ("auto", *ENGINES, "process")
WANTED = ("auto", "yes", "no")
USERS = ("uid", "root")
TUNNELS = ("forward", "reverse")

MAX_FILE = 256 * 1024  # bytes; both files are kept in the session's spec.json (host/store.py)

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_GPUS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_EXTENSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[A-Za-z0-9][A-Za-z0-9._-]*(?:@[0-9A-Za-z.-]+)?")
_VSIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*\.vsix")  # it becomes a word of the layer's script
_VERSION = re.compile(r"[0-9]+(?:\.[0-9A-Za-z]+)*")
_CHECKED = re.compile(_VERSION.pattern + r"(?:@sha256:[0-9a-f]{64})?")  # and the release file's checksum
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")

# Engine options that cannot widen what the container may do to its host. The rest needs an allow-list
# of the lab's own; a docker argument such as --privileged or -v would hand out the host's root.
SAFE_ENGINE_ARGS = frozenset(
    [
        "--add-host",
        "--cpu-shares",
        "--cpus",
        "--cpuset-cpus",
        "--dns",
        "--dns-search",
        "--hostname",
        "--init",
        "--label",
        "--memory",
        "--memory-reservation",
        "--memory-swap",
        "--network",
        "--oom-score-adj",
        "--pids-limit",
        "--read-only",
        "--shm-size",
        "--stop-timeout",
        "--tmpfs",
        "--ulimit",
        "--workdir",
    ]
)
_FLAGS_WITHOUT_VALUE = frozenset(["--init", "--read-only"])
_NETWORKS = frozenset(["bridge", "none", "default"])


@dataclass(frozen=True)
class Mount:
    """A host folder or file seen inside the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Spec:
    """What a session is to be. Paths are the host's; `user_folder` may start with ~/."""

    name: str = ""
    gpus: str = "auto"
    image: str = ""
    runtime: str = ""
    user: str = "uid"
    user_folder: str = ""
    packages: tuple[str, ...] = ()
    requirements: str = ""  # the file's content
    init_script: str = ""  # the file's content
    vscode_extensions: tuple[str, ...] = ()
    extension_files: Mapping[str, str] = field(default_factory=dict)  # file name -> base64
    jupyter: str = "auto"
    vscode: str = "auto"
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    engine_args: tuple[str, ...] = ()
    authorized_keys: tuple[str, ...] = ()
    jupyter_version: str = ""
    vscode_version: str = ""
    sources: str = ""
    tunnel: str = ""  # forward or reverse; empty: as lab.yaml says of the host
    start_timeout: int = 120  # seconds a service may take to answer its first request

    def __post_init__(self) -> None:
        if self.name and not text.is_name(self.name):
            raise Usage(f"{text.safe(self.name)[:80]!r} can't be a name", text.name_hint(self.name))
        gpu.parse_request(self.gpus)
        _one_of("runtime", self.runtime, ("", *RUNTIMES))
        _one_of("user", self.user, USERS)
        _one_of("jupyter", self.jupyter, WANTED)
        _one_of("vscode", self.vscode, WANTED)
        _one_of("tunnel", self.tunnel, ("", *TUNNELS))
        if self.image and not _IMAGE.fullmatch(self.image):
            raise Usage(f"{text.safe(self.image)!r} is not an image's name")
        if self.runtime in ENGINES and not self.image:
            raise Usage(f"--runtime {self.runtime} needs an image", "add --image, such as pytorch/pytorch")
        if self.runtime == "process" and self.image:
            raise Usage("--runtime process takes no image", "leave out --image or --runtime")
        for version, form in ((self.jupyter_version, _VERSION), (self.vscode_version, _CHECKED)):
            if version and not form.fullmatch(version):
                hint = "write V, or V@sha256:… with the checksum of its release file" if form is _CHECKED else ""
                raise Usage(f"{text.safe(version)!r} is not a version", hint)
        for name, value in self.env.items():
            if not _ENV_NAME.fullmatch(name) or "\0" in value:
                raise Usage(f"{text.safe(name)!r} can't be a variable's name", "write --env NAME=value")
        for package in self.packages:
            if package.lstrip().startswith("-") or len(package.splitlines()) != 1:
                raise Usage(f"{text.safe(package)!r} is not a package", "pip's options belong in a requirements file")
        for extension in self.vscode_extensions:
            if not _EXTENSION.fullmatch(extension):
                raise Usage(f"{text.safe(extension)!r} is not an extension", "write publisher.name, or a .vsix file")
        for file_name in self.extension_files:
            if not _VSIX.fullmatch(file_name):
                raise Usage(f"{text.safe(file_name)!r} is not a .vsix file's name")
        for what, content in (("requirements", self.requirements), ("init script", self.init_script)):
            if len(content.encode(errors="replace")) > MAX_FILE:
                raise Usage(f"the {what} file is larger than {MAX_FILE >> 10} KiB")
        if any(c in self.user_folder for c in ",:\n\0"):
            raise Usage(f"{text.safe(self.user_folder)!r} can't be the user folder", "its path may hold no , and no :")
        if not 5 <= self.start_timeout <= 3600:
            raise Usage("the start time-out is 5 to 3600 seconds")

    def wants(self, service: str) -> str:
        """`yes` (its absence is an error), `auto` (its absence is said) or `no`."""
        return str(getattr(self, service)) if service in ("jupyter", "vscode") else "auto"

    def without_secrets(self) -> Spec:
        """What may be shown, and kept on a share: no value of the environment, no password in a URL, and no
        script, which may export one."""
        return replace(
            self,
            env={name: text.mask(value) for name, value in self.env.items()},
            packages=tuple(text.without_credentials(package) for package in self.packages),
            requirements=text.without_credentials(self.requirements),
            init_script=text.mask(self.init_script),
        )

    def to_wire(self) -> Json:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Spec:
        """Raises Usage where a field is unknown or of another type."""
        known = {f.name: f for f in fields(cls)}
        values: Json = {}
        for key, value in data.items():
            if key not in known:
                raise Usage(f"a session has no {text.safe(str(key))!r}")
            values[key] = _typed(key, value, cls)
        return cls(**values)

    @classmethod
    def from_stored(cls, data: Mapping[str, Any]) -> Spec:
        """A spec.json, also one that a newer mlbox wrote: what is unknown here is passed over."""
        known = {f.name for f in fields(cls)}
        return cls.from_wire({key: value for key, value in data.items() if key in known})


def _one_of(what: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise Usage(f"{what} can't be {text.safe(value)!r}", "it is one of: " + ", ".join(a for a in allowed if a))


def _typed(key: str, value: Any, cls: type[Spec]) -> Any:
    default = next(f for f in fields(cls) if f.name == key)
    if key == "mounts":
        return tuple(_mount_from_wire(m) for m in shape.sequence(key, value))
    if key in ("env", "extension_files"):
        return shape.texts_by_name(key, value)
    if isinstance(default.default, tuple):
        return shape.texts(key, value)
    return shape.like(key, value, default.default)


def _mount_from_wire(value: Any) -> Mount:
    if not isinstance(value, dict) or set(value) - {"source", "target", "read_only"}:
        raise Usage("a mount needs source, target and read_only")
    source, target = value.get("source"), value.get("target")
    if not (isinstance(source, str) and isinstance(target, str)):
        raise Usage("a mount needs source and target")
    return checked_mount(Mount(source, target, bool(value.get("read_only"))))


def parse_mount(value: str) -> Mount:
    """`HOST:CONTAINER` or `HOST:CONTAINER:ro`."""
    parts = value.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise Usage(f"--mount {text.safe(value)} can't be read", "write HOST_FOLDER:CONTAINER_FOLDER or …:ro")
    return checked_mount(Mount(parts[0], parts[1], parts[2:] == ["ro"]))


def checked_mount(mount: Mount) -> Mount:
    if not (mount.source.startswith("/") or mount.source.startswith("~/")) or any(c in mount.source for c in ",:\n"):
        raise Usage(f"{text.safe(mount.source)!r} can't be mounted", "give the host folder's full path, or ~/…")
    target = re.sub("^/+", "/", posixpath.normpath(mount.target))  # normpath keeps two leading slashes
    reserved = (
        "/",
        "/run/mlbox",
        "/opt/mlbox",
        "/workspace",
        "/etc",
        "/proc",
        "/sys",
        "/dev",
        "/etc/passwd",
        "/etc/group",
    )
    if not target.startswith("/") or any(c in target for c in ",:\n") or target in reserved:
        raise Usage(f"nothing can be mounted at {text.safe(mount.target)!r}")
    return Mount(mount.source, target, mount.read_only)


def check_env(names: Iterable[str]) -> None:
    """Raises Usage for a variable that mlbox sets itself. Not a part of `Spec`: older versions stored such ones."""
    for name in names:
        if name in _OF_GPUS:
            raise Usage(f"--env {name}: mlbox sets it, to the GPUs that it assigns", "--gpus says how many, and which")
        if name.startswith("MLBOX_"):
            raise Usage(f"--env {text.safe(name)}: names that begin with MLBOX_ are mlbox's own", "use another name")


def check_engine_args(arguments: Iterable[str], allowed: Iterable[str] = ()) -> None:
    """Raises Usage for an engine argument outside the safe list and the lab's own `allowed` names. Not a part of
    `Spec`: what the lab allows is only known on its hosts."""
    permitted = SAFE_ENGINE_ARGS | set(allowed)
    expects_value = ""
    for argument in arguments:
        if expects_value:
            _check_engine_value(expects_value, argument)
            expects_value = ""
            continue
        name, has_value, value = argument.partition("=")
        if name not in permitted:
            hint = "allowed: " + " ".join(sorted(permitted))
            raise Usage(f"the engine argument {text.safe(argument)!r} is not allowed", hint)
        if has_value:
            _check_engine_value(name, value)
        elif name in SAFE_ENGINE_ARGS - _FLAGS_WITHOUT_VALUE:  # what the lab allows has its value after a `=`
            expects_value = name
    if expects_value:
        raise Usage(f"the engine argument {expects_value} needs a value")


def _check_engine_value(name: str, value: str) -> None:
    if name == "--network" and value not in _NETWORKS:
        raise Usage(f"--network {text.safe(value)} is not allowed", "a session's network is bridge or none")
    if name == "--label" and value.startswith("mlbox."):
        raise Usage(f"--label {text.safe(value)} is not allowed", "mlbox finds its containers by its own labels")
