"""Docker, by its command line.

    image inspect  -> is it there, and under which id; also whether this user may use docker at all
    run (attached) -> the guest; its exit is the container's, its output ends in the keeper's log
    commit         -> a layer: a throw-away root container that ran the layer's script
    rm -f          -> by the label mlbox.session=<id>, so a container is found after its keeper died

Assumes: the user may use the daemon (group docker, or rootless); for GPUs the NVIDIA container toolkit.
Never published ports, never the engine's socket, never `--rm`: a container that ended can still be asked why.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Callable

from mlbox import errors
from mlbox.core import layer as layers
from mlbox.core.layer import Facts, Layer
from mlbox.core.session import Mount, Spec, check_engine_args
from mlbox.host import image, store
from mlbox.host.engines import Build, Paths, Run, Say
from mlbox.host.run import Cancel, capture, stream

RUN = "/run/mlbox"


class Docker:
    program = "docker"

    def __init__(self, found: store.Store) -> None:
        self._user = found.user

    def identify(self, spec: Spec) -> str:
        code, out, error = self._ask("image", "inspect", "--format", "{{.Id}}", spec.image)
        if code == 0:
            return out.strip()
        if "No such image" in error or "no such image" in error:
            return ""
        raise self._unusable(error)

    def _ask(self, *arguments: str, timeout: float = 60) -> tuple[int, str, str]:
        try:
            return capture((self.program, *arguments), timeout)
        except FileNotFoundError:
            hint = "install Docker, or use --runtime process (no container)"
            raise errors.HostUnready(f"there is no {self.program} on this host", hint) from None

    def _unusable(self, error: str) -> errors.MlboxError:
        user = self._user
        if "permission denied" in error.lower():
            hint = f"an administrator can allow it: usermod -aG docker {user}; or use --runtime process"
            return errors.HostUnready(f"{user} may not use Docker here", hint)
        if "Cannot connect" in error or "daemon running" in error:
            return errors.HostUnready("Docker is installed, but its daemon does not answer", "systemctl status docker")
        return errors.HostUnready(f"Docker does not work here: {error[-400:]}", "`docker info` on the host")

    def fetch(self, spec: Spec, say: Say, cancel: Cancel) -> str:
        say(f"pulling {spec.image}")
        result = stream((self.program, "pull", spec.image), _pull_progress(spec.image, say), cancel)
        if result.code != 0:
            hint = (
                "check the name and the tag; a private registry needs `docker login` on the host; "
                "`docker images` there lists what is at hand"
            )
            raise errors.Refused(f"image {spec.image} is not on this host and can't be pulled:\n{result.tail}", hint)
        return self.identify(spec)

    def facts(self, spec: Spec, identity: str, cancel: Cancel) -> Facts:
        known = image.recall(identity)
        if known:
            return known
        argv = (
            self.program,
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "/bin/sh",
            identity,
            "-c",
            image.PROBE,
        )
        result = stream(argv, lambda line: None, cancel)
        if result.code != 0:
            raise errors.Refused(
                f"image {spec.image} has no shell (/bin/sh) that runs:\n{result.tail}", "use an image with a shell"
            )
        return image.remember(identity, image.parse(identity, result.lines))

    def _tag(self, layer: Layer) -> str:
        return f"mlbox-layer:{layer.key}"

    def has_layer(self, layer: Layer) -> str:
        code, _, _ = self._ask("image", "inspect", "--format", "{{.Id}}", self._tag(layer))
        return self._tag(layer) if code == 0 else ""

    def build(self, work: Build, say: Say, cancel: Cancel) -> str:
        layer, context = work.layer, work.context
        builder = f"mlbox-builder-{work.session[-8:].lower()}"
        build, fetched = layers.CONTAINER_BUILD, f"{layers.CONTAINER_BUILD}-sources"
        environment = {"PREFIX": layers.CONTAINER_PREFIX, "BUILD": build, "SOURCES": fetched}
        argv = [self.program, "run", "--name", builder, "--label", f"mlbox.session={work.session}", "--user", "0:0"]
        argv += [
            "--network",
            "host",
            "--entrypoint",
            "/bin/sh",
            "-v",
            f"{context}:{build}:ro",
            "-v",
            f"{work.sources}:{fetched}:ro",
        ]
        bundle = image.ca_bundle()
        if bundle:
            argv += ["-v", f"{bundle}:{build}-ca.pem:ro"]
        image.write_environment(context, environment, f"{build}-ca.pem" if bundle else "", f"{build}/pip.conf")
        try:
            result = stream((*argv, layer.after.id or work.image, f"{build}/run"), image.step_progress(say), cancel)
            if result.code != 0:
                raise image.build_failed(result)
            say("saving the layer")
            self._commit(builder, work.image, layer, cancel)
        finally:
            self._ask("rm", "-f", "-v", builder)
        return self._tag(layer)

    def _commit(self, builder: str, original: str, layer: Layer, cancel: Cancel) -> None:
        """The layer keeps the image's own user and commands; the builder's are not the image's."""
        _, out, _ = self._ask("image", "inspect", "--format", "{{json .Config}}", original)
        config = json.loads(out or "{}")
        changes = [f"LABEL mlbox.layer={layer.key}", f"USER {config.get('User') or '0'}"]
        changes += [
            f"ENTRYPOINT {json.dumps(config.get('Entrypoint') or [])}",
            f"CMD {json.dumps(config.get('Cmd') or [])}",
        ]
        flags = [word for change in changes for word in ("--change", change)]
        result = stream((self.program, "commit", *flags, builder, self._tag(layer)), lambda line: None, cancel)
        if result.code != 0:
            raise errors.StartFailed(f"the layer could not be saved:\n{result.tail}", "is the engine's disk full?")

    def prefix(self, layer: Layer) -> str:
        return layers.CONTAINER_PREFIX

    def as_root(self) -> bool:
        return True

    def paths(self, run_folder: Path, folder: Path, home: Path, spec: Spec) -> Paths:
        return Paths(RUN, "/workspace", "/root" if spec.user == "root" else f"/home/{self._user}")

    def start(self, run: Run, log: int) -> Popen[bytes]:
        return Popen(arguments(self.program, run), stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def batch(self, run: Run) -> tuple[str, ...]:
        program = shutil.which(self.program) or self.program  # the PATH that it runs with is the container's
        return arguments(program, replace(run, argv=("/bin/sh", "-c", _FIRST, "mlbox", *run.argv)), values=False)

    def out_of_memory(self, session: str) -> bool:
        found = self._containers(session)
        _, out, _ = self._ask("inspect", "--format", "{{.State.OOMKilled}}", *found) if found else (0, "", "")
        return "true" in out.split()

    def remove(self, session: str, grace: float) -> None:
        found = self._containers(session)
        if not found:
            return
        if grace:
            self._ask("stop", "-t", str(int(grace)), *found, timeout=grace + 60)
        _, _, error = self._ask("rm", "-f", "-v", *found)  # -v: with the volumes that the image declares
        if self._containers(session):
            raise errors.HostUnready(f"Docker does not remove a container: {error[-400:]}", "`docker ps -a` there")

    def _containers(self, session: str) -> list[str]:
        code, out, error = self._ask("ps", "-aq", "--filter", f"label=mlbox.session={session}")
        if code != 0:  # no answer is not the answer "none"
            raise self._unusable(error)
        return out.split()

    def storage(self) -> Path | None:
        try:
            code, out, _ = self._ask("info", "--format", "{{.DockerRootDir}}")
        except errors.HostUnready:  # said by identify
            return None
        return Path(out.strip()) if code == 0 and out.strip() else None


# A container's first process ignores SIGTERM unless it handles it, and most commands don't: a shell that does.
_FIRST = """\
"$@" & child=$!
trap 'kill -TERM $child 2>/dev/null' TERM
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""


def arguments(program: str, run: Run, values: bool = True) -> tuple[str, ...]:
    """The whole command that starts a container. No secret is in it: a session's are in files, a job's (not
    `values`) in the environment of the process that runs this."""
    check_engine_args(run.engine_args)
    argv = [program, "run", "--name", f"mlbox-{run.name}-{run.session[-6:].lower()}", "--hostname", run.name]
    argv += ["--label", f"mlbox.session={run.session}"]
    argv += ["--security-opt", "no-new-privileges", "--workdir", "/workspace", *_identity(run), *_gpus(run)]
    if not any(a.split("=")[0] == "--shm-size" for a in run.engine_args):
        # Data loaders pass batches through shared memory; the engine's default is 64 MiB.
        argv += ["--shm-size", str(max(64 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2))]
    for name, value in run.env.items():
        argv += ["--env", f"{name}={value}" if values else name]
    for mount in _mounts(run):
        argv += ["-v", f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")]
    return (*argv, *run.engine_args, "--entrypoint", run.argv[0], run.image, *run.argv[1:])


def _identity(run: Run) -> list[str]:
    if run.user == "root":
        return ["--user", "0:0"]
    groups = [word for gid in os.getgroups() if gid != os.getgid() for word in ("--group-add", str(gid))]
    return ["--user", f"{os.getuid()}:{os.getgid()}", *groups]


def _gpus(run: Run) -> list[str]:
    if not run.gpus:
        return ["--env", "NVIDIA_VISIBLE_DEVICES=void"]  # CUDA images carry "all", which would show every GPU
    return ["--gpus", '"device=' + ",".join(run.gpus) + '"']


def _mounts(run: Run) -> Sequence[Mount]:
    mounts = [Mount(str(run.boot_folder), RUN), Mount(str(run.folder), "/workspace")]
    if run.user != "root":
        mounts.append(Mount(str(run.home), f"/home/{store.user_name()}"))
        mounts += [Mount(str(run.boot_folder / f"conf/{n}"), f"/etc/{n}", True) for n in ("passwd", "group")]
    return [*mounts, *(Mount(os.path.expanduser(m.source), m.target, m.read_only) for m in run.mounts)]


def _pull_progress(name: str, say: Say) -> Callable[[str], None]:
    """`docker pull` without a terminal prints a line for each layer's change of state."""
    layers_seen: set[str] = set()
    done: set[str] = set()

    def on_line(line: str) -> None:
        digest, _, what = line.partition(": ")
        if what.startswith("Pulling fs layer"):
            layers_seen.add(digest)
        elif what.startswith(("Pull complete", "Already exists")):
            layers_seen.add(digest)
            done.add(digest)
        if layers_seen:
            say(f"pulling {name}", f"{len(done)} of {len(layers_seen)} layers")

    return on_line


def make(found: store.Store) -> Docker:
    return Docker(found)
