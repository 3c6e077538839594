"""The command that starts a container: what every session's and job's has in common, whichever engine runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mlbox.core.session import Mount
from mlbox.host import here
from mlbox.host.engines import Run, cdi, selinux

RUN = "/run/mlbox"


def of(program: str, run: Run, identity: Sequence[str], devices: Sequence[str]) -> tuple[str, ...]:
    """The whole of it. No secret is in it: those are in files of the boot folder. `identity` and `devices`: the
    engine's words for whose the command inside is, and for the GPUs, if there are any."""
    argv = [program, "run", "--name", f"mlbox-{run.name}-{run.session[-6:].lower()}", "--hostname", run.name]
    argv += ["--label", f"mlbox.session={run.session}", "--security-opt", "no-new-privileges", *selinux.arguments()]
    # The image's signal and check are for its own program; its check may start a Python every few seconds.
    argv += ["--stop-signal", "SIGTERM", "--no-healthcheck"]
    # Its output comes to whoever runs this: kept by the engine too, it would fill the host's disk without a limit.
    argv += ["--log-driver", "none", "--workdir", "/workspace", *identity]
    # CUDA images carry "all", which would show every GPU.
    argv += devices if run.gpus else ["--env", cdi.NONE]
    if not any(a.split("=")[0] == "--shm-size" for a in run.engine_args):
        # Data loaders pass batches through shared memory; the engine's default is 64 MiB.
        half = max(64 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
        argv += ["--shm-size", str(half)]
    for name, value in run.env.items():
        argv += ["--env", f"{name}={value}"]
    for mount in _mounts(run):
        argv += ["-v", f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")]
    return (*argv, *run.engine_args, "--entrypoint", run.argv[0], run.image, *run.argv[1:])


# A container's first process ignores SIGTERM unless it handles it, and most commands don't: a shell that does.
_SHELL = f"""\
. {RUN}/conf/environment
"$@" & child=$!
trap 'kill -TERM $child 2>/dev/null' TERM
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""


def in_shell(argv: Sequence[str]) -> tuple[str, ...]:
    """A job's command, below such a shell."""
    return ("/bin/sh", "-c", _SHELL, "mlbox", *argv)


def is_root(user: str) -> bool:
    """Whether the command inside is the container's root: by choice, or because root itself asks. It has the image's
    own accounts and home."""
    return user == "root" or os.getuid() == 0


def _mounts(run: Run) -> Sequence[Mount]:
    # Host-side code believes names in the boot folder: who works inside replaces none of them, whoever that is.
    mounts = [Mount(str(run.boot_folder), RUN, True)]
    mounts += [Mount(str(folder), f"{RUN}/{folder.name}") for folder in run.writable]
    mounts.append(Mount(str(run.folder), "/workspace"))
    if not is_root(run.user):
        mounts.append(Mount(str(run.home), f"/home/{here.user_name()}"))
        mounts += [Mount(str(run.boot_folder / f"conf/{n}"), f"/etc/{n}", True) for n in ("passwd", "group")]
    return [*mounts, *(Mount(os.path.expanduser(m.source), m.target, m.read_only) for m in run.mounts)]
