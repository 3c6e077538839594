"""No container: the session is ordinary processes of the user's, for hosts without an engine.

    the image is the host itself; a layer is a folder of the user's (a venv, code-server), made once by content
    GPUs are limited by CUDA_VISIBLE_DEVICES with UUIDs: a promise among colleagues, not a wall
    every process of the session carries MLBOX_SESSION=<id>, by which it is found and ended

Assumes: python3 with venv and pip. Nothing is installed into the host itself.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen

from mlbox import errors
from mlbox.core.facts import Facts
from mlbox.core.layer import Layer
from mlbox.core.session import Spec
from mlbox.core.stored import Stored
from mlbox.host import files, here, image, processes, store
from mlbox.host.engines import PATIENCE, Build, Paths, Run, Say
from mlbox.host.run import Cancel, stream

_COMPLETE, _HOST = ".complete", ".host"
_OF_A_LOGIN = ("SSH_", "XDG_RUNTIME_DIR", "XDG_SESSION_", "DBUS_SESSION_BUS_ADDRESS")
_KILLED = 15.0  # s within which a process is gone after SIGKILL, unless it hangs in the kernel


class Process:
    def __init__(self, found: store.Store) -> None:
        self._environments = found.environments

    def identify(self, spec: Spec, patience: float = PATIENCE) -> str:
        if spec.user == "root":
            raise errors.Refused("--user root needs a container", "add --image")
        if spec.mounts or spec.engine_args:
            raise errors.Refused("--mount and --engine-args need a container", "add --image, or leave them out")
        system = f"{os.uname()} {sys.version} {sys.executable}"
        return "host:" + hashlib.sha256(system.encode()).hexdigest()

    def fetch(self, spec: Spec, say: Say, cancel: Cancel) -> str:
        return self.identify(spec)

    def facts(self, spec: Spec, identity: str, cancel: Cancel, guest: bool) -> Facts:
        """Nothing is kept of them, for a host changes; so a job that adds nothing to it does not wait for a probe."""
        if not (guest or spec.packages or spec.requirements or spec.init_script):
            return Facts(identity, path=os.environ.get("PATH", os.defpath))
        result = stream(("/bin/sh", "-c", image.PROBE), lambda line: None, cancel)
        return image.parse(identity, result.lines)

    def _folder(self, layer: Layer) -> Path:
        return self._environments / layer.key

    def has_layer(self, layer: Layer) -> str:
        folder = self._folder(layer)
        return str(folder) if (folder / _COMPLETE).exists() else ""

    def build(self, work: Build, say: Say, cancel: Cancel) -> str:
        """In its final place, because a venv can't be moved; the mark that it is whole comes last."""
        import shutil

        context, folder = work.context, self._folder(work.layer)
        # What pip unpacks goes with it, also when it is killed. TMPDIR may have ended with a login.
        temporary = os.environ.get("TMPDIR", "")
        scratch = Path(temporary if os.path.isdir(temporary) else context) / f"mlbox-{work.session}"
        for left in (folder, scratch):  # by a keeper that was killed
            shutil.rmtree(left, ignore_errors=True)
        files.make_folder(folder, 0o700)
        (folder / _HOST).write_text(here.host_name())  # hosts may share this folder; none uses another's
        environment = work.environment(str(folder), str(context), str(work.sources))
        image.write_environment(context, environment, "", str(context / "pip.conf"))
        try:
            scratch.mkdir(mode=0o700)
            marked = {**os.environ, "MLBOX_SESSION": work.session, "TMPDIR": str(scratch)}
            result = stream(("/bin/sh", str(context / "run")), image.step_progress(say), cancel, marked)
            if result.code != 0:
                raise image.build_failed(result)
            files.write_whole(folder / _COMPLETE, b"")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            if not (folder / _COMPLETE).exists():
                shutil.rmtree(folder, ignore_errors=True)
        return str(folder)

    def layers(self) -> list[Stored]:
        found = []
        for folder in self._environments.glob("*"):
            with suppress(OSError):
                host = (folder / _HOST).read_text()
                stays = "" if host == here.host_name() else f"{host}'s"
                made = folder.stat().st_mtime
                size = 0 if stays else files.size_of(folder)
                found.append(Stored("environment", folder.name, size, made, "process", stays))
        return found

    def others(self) -> None:
        return None

    def forget(self, name: str) -> bool:
        """Under another name first: half an environment is never found."""
        import shutil

        going = self._environments / f".{name}.{os.getpid()}"
        os.rename(self._environments / name, going)
        shutil.rmtree(going, ignore_errors=True)
        return True

    def prefix(self, layer: Layer) -> str:
        return str(self._folder(layer))

    def as_root(self) -> bool:
        return False

    def paths(self, run_folder: Path, folder: Path, home: Path, spec: Spec) -> Paths:
        return Paths(str(run_folder), str(folder), str(Path.home()))

    def visible(self, gpus: Sequence[str]) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "NVIDIA_VISIBLE_DEVICES": ",".join(gpus) or "void"}

    def start(self, run: Run, log: int) -> Popen[bytes]:
        environment = {**_lasting(os.environ), **run.env, **self.visible(run.gpus)}
        return Popen(
            run.argv, stdin=DEVNULL, stdout=log, stderr=log, env=environment, cwd=run.folder, start_new_session=True
        )

    def batch(self, run: Run) -> tuple[tuple[str, ...], Mapping[str, str]]:
        return run.argv, run.env

    def ending(self, session: str) -> tuple[int | None, bool]:
        return None, False  # its runner sees the end, and looks at the kernel's counter (host/runner.py)

    def remove(self, session: str, grace: float) -> None:
        """SIGTERM lets the guest end its services in order; SIGKILL ends what is left, orphans too."""
        left = processes.marked(session)
        processes.send(left, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while left and time.monotonic() < deadline:
            time.sleep(0.05)  # orphans are nobody's children here: there is no event to await
            left = processes.marked(session)
        deadline = time.monotonic() + _KILLED
        while left:
            if time.monotonic() > deadline:
                raise errors.HostUnready(
                    f"processes {', '.join(map(str, left))} do not end, not even by SIGKILL",
                    "they wait for the kernel: a hung mount or device?",
                )
            processes.send(left, signal.SIGKILL)
            time.sleep(0.02)
            left = processes.marked(session)

    def storage(self) -> Path | None:
        return None


def _lasting(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what ends with the login by which it was started: systemd removes its runtime folder then, where
    code-server would go on putting its sockets."""
    login = "SSH_CONNECTION" in environment
    return {name: value for name, value in environment.items() if not (login and name.startswith(_OF_A_LOGIN))}


def make(found: store.Store) -> Process:
    return Process(found)
