"""What Docker and podman have in common: one command line.

    image inspect  -> is it there, and under which id; also whether this user may use the engine at all
    run (attached) -> the guest; its exit is the container's, its output ends in the keeper's log
    commit         -> a layer: a throw-away root container that ran the layer's script
    rm -f          -> by the label mlbox.session=<id>, so a container is found after its keeper died

Never published ports, never the engine's socket, never `--rm`: a container that ended can still be asked why.
Nobody logs in for the user, and no password passes here: `docker login` on the host, as the user, is the engine's.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

from mlbox import errors
from mlbox.core import layer as layers
from mlbox.core.facts import Facts
from mlbox.core.layer import Layer
from mlbox.core.pull import Pull
from mlbox.core.session import Spec, check_engine_args
from mlbox.core.stored import Others, Stored
from mlbox.host import files, image, store
from mlbox.host.engines import PATIENCE, Build, Paths, Run, Say, Silent, command, refusal, selinux
from mlbox.host.run import NO_ANSWER, Cancel, Result, capture, stream

LAYERS = "mlbox-layer"
_NEVER_RAN = ("created", "configured", "initialized")


class Container:
    program, title = "", ""

    def __init__(self, found: store.Store) -> None:
        self._found, self._user = found, found.user

    # ---- what an engine has of its own

    def unusable(self, error: str) -> errors.MlboxError:
        """Why it does not answer, by what it printed."""
        raise NotImplementedError

    def identity(self, user: str) -> list[str]:
        """The arguments by which the command inside is this user's (`uid`), or root's."""
        raise NotImplementedError

    def devices(self, gpus: Sequence[str]) -> list[str]:
        """The arguments that give a container exactly these GPUs. Raises HostUnready."""
        raise NotImplementedError

    def storage(self) -> Path | None:
        raise NotImplementedError

    def login(self, registry: str) -> str:
        """The command by which its user logs in to a registry."""
        return f"{self.program} login {registry}".strip()

    # ---- images

    def ask(self, *arguments: str, timeout: float = PATIENCE) -> tuple[int, str, str]:
        try:
            return capture((self.program, *arguments), timeout)
        except FileNotFoundError:
            hint = f"install {self.title}, or use --runtime process (no container)"
            raise errors.HostUnready(f"there is no {self.program} on this host", hint) from None

    def failed(self, code: int, error: str) -> errors.MlboxError:
        """As `unusable`; Silent where it said nothing."""
        return Silent(error, f"`{self.program} info` on the host") if code == NO_ANSWER else self.unusable(error)

    def identify(self, spec: Spec, patience: float = PATIENCE) -> str:
        code, out, error = self.ask("image", "inspect", "--format", "{{.Id}}", spec.image, timeout=patience)
        if code == 0:
            return out.strip()
        # What no image can be called is refused by the pull, in words.
        if re.search("no such image|image not known|invalid reference format", error, re.I):
            return ""
        raise self.failed(code, error)

    def fetch(self, spec: Spec, say: Say, cancel: Cancel) -> str:
        result = self.pull(spec.image, say, cancel)
        if result.code != 0:
            raise refusal.of_pull(self.program, spec.image, result.tail, self.login, self._user)
        return self.identify(spec)

    def pull(self, image: str, say: Say, cancel: Cancel) -> Result:
        pull = Pull()
        say(f"pulling {image}")

        def on_line(line: str) -> None:
            if pull.hear(line, time.monotonic()):
                say(f"pulling {image}", pull.said(time.monotonic()))

        # On a terminal, for elsewhere neither engine says how much has come.
        return stream((self.program, "pull", image), on_line, cancel, terminal=True)

    def facts(self, spec: Spec, identity: str, cancel: Cancel, guest: bool) -> Facts:
        """As the one sees it who will work in it: what is closed to that user is not there."""
        known = image.recall(identity, spec.user)
        if known:
            return known
        found = self._probe(spec, identity, spec.user, cancel)
        if spec.user != "root" and (found is None or not found.python):
            whole = self._probe(spec, identity, "root", cancel)
            if whole is not None and (found is None or whole.python):
                found = replace(whole, root_only=True)
        if found is None:
            raise errors.Refused(f"image {spec.image} has no shell (/bin/sh) that runs", "use an image with a shell")
        return image.remember(identity, spec.user, found)

    def _probe(self, spec: Spec, identity: str, user: str, cancel: Cancel) -> Facts | None:
        argv = (self.program, "run", "--rm", "--network", "none", *self.identity(user), "--entrypoint", "/bin/sh")
        result = stream((*argv, identity, "-c", image.PROBE), lambda line: None, cancel)
        if result.code == 125:  # the engine did not start it
            from mlbox.host import failure

            raise failure.not_started(self.program, result.tail)
        return image.parse(identity, result.lines) if result.code == 0 else None

    # ---- layers

    def _tag(self, layer: Layer) -> str:
        return f"{LAYERS}:{layer.key}"

    def has_layer(self, layer: Layer) -> str:
        code, _, _ = self.ask("image", "inspect", "--format", "{{.Id}}", self._tag(layer))
        return self._tag(layer) if code == 0 else ""

    def build(self, work: Build, say: Say, cancel: Cancel) -> str:
        layer, context = work.layer, work.context
        builder = f"mlbox-builder-{work.session[-8:].lower()}"
        build, fetched = layers.CONTAINER_BUILD, f"{layers.CONTAINER_BUILD}-sources"
        environment = work.environment(layers.CONTAINER_PREFIX, build, fetched)
        argv = [self.program, "run", "--name", builder, "--label", f"mlbox.session={work.session}", "--user", "0:0"]
        argv += ["--network", "host", "--entrypoint", "/bin/sh", *selinux.arguments()]
        argv += ["-v", f"{context}:{build}:ro", "-v", f"{work.sources}:{fetched}:ro"]
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
            self.ask("rm", "-f", "-v", builder)
        return self._tag(layer)

    def _commit(self, builder: str, original: str, layer: Layer, cancel: Cancel) -> None:
        """The layer keeps the image's own user and commands; the builder's are not the image's."""
        _, out, _ = self.ask("image", "inspect", "--format", "{{json .Config}}", original)
        config = json.loads(out or "{}")
        changes = [f"LABEL mlbox.layer={layer.key}", f"LABEL mlbox.from={original}"]
        changes += [f"LABEL mlbox.base={layer.after.id}"]
        changes += [f"LABEL mlbox.user={self._user}", f"USER {config.get('User') or '0'}"]
        changes += [
            f"ENTRYPOINT {json.dumps(config.get('Entrypoint') or [])}",
            f"CMD {json.dumps(config.get('Cmd') or [])}",
        ]
        flags = [word for change in changes for word in ("--change", change)]
        result = stream((self.program, "commit", *flags, builder, self._tag(layer)), lambda line: None, cancel)
        if result.code != 0:
            raise errors.StartFailed(f"the layer could not be saved:\n{result.tail}", "is the engine's disk full?")

    def layers(self) -> list[Stored]:
        code, out, error = self.ask("images", "-q", "--no-trunc", "--filter", "label=mlbox.layer")
        if code != 0:
            raise self.unusable(error)
        found = []
        for document in self._inspect(*dict.fromkeys(out.split())):
            labels = _labels(document)
            name = f"{LAYERS}:{labels.get('mlbox.layer')}"
            if any(tag.endswith(name) for tag in document.get("RepoTags") or ()):
                stays = "" if labels.get("mlbox.user", self._user) == self._user else f"{labels['mlbox.user']}'s"
                about = f"{self.program} {labels.get('mlbox.from', '')}".strip()
                found.append(
                    Stored("layer", name, self._own_size(document, labels), _seconds(document["Created"]), about, stays)
                )
        return found

    def others(self) -> Others | None:
        code, out, error = self.ask("images", "-q", "--no-trunc")
        if code != 0:
            raise self.unusable(error)
        pulled = [one for one in self._inspect(*dict.fromkeys(out.split())) if "mlbox.layer" not in _labels(one)]
        return Others(self.program, len(pulled), sum(int(one["Size"]) for one in pulled)) if pulled else None

    def _own_size(self, document: Mapping[str, Any], labels: Mapping[str, str]) -> int:
        """Without what it stands on, where that is still there."""
        base = self._inspect(labels["mlbox.base"]) if "mlbox.base" in labels else []
        return int(document["Size"]) - sum(int(one["Size"]) for one in base)

    def _inspect(self, *images: str) -> list[dict[str, Any]]:
        code, out, _ = self.ask("image", "inspect", *images) if images else (1, "", "")
        return list(json.loads(out)) if code == 0 else []

    def forget(self, name: str) -> bool:
        """The engine itself refuses where there is a container of it."""
        return self.ask("rmi", name)[0] == 0

    def prefix(self, layer: Layer) -> str:
        return layers.CONTAINER_PREFIX

    def as_root(self) -> bool:
        return True

    # ---- containers

    def paths(self, run_folder: Path, folder: Path, home: Path, spec: Spec) -> Paths:
        return Paths(command.RUN, "/workspace", "/root" if command.is_root(spec.user) else f"/home/{self._user}")

    def visible(self, gpus: Sequence[str]) -> dict[str, str]:
        return {}

    def start(self, run: Run, log: int) -> Popen[bytes]:
        return Popen(self.arguments(run), stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def batch(self, run: Run) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Its environment is in a file that only its user reads: `inspect` and ps show none of it, and the engine's
        own command is not disturbed by a HOME or a PATH that is the container's."""
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in run.env.items())
        files.write_whole(run.boot_folder / "conf/environment", exports.encode())
        return self.arguments(replace(run, argv=command.in_shell(run.argv), env={})), {}

    def arguments(self, run: Run) -> tuple[str, ...]:
        if run.engine_args:
            from mlbox.host import lab  # few have any

            check_engine_args(run.engine_args, lab.rules(self._found).lab.engine_args)
        devices = self.devices(run.gpus) if run.gpus else []
        return command.of(self.program, run, self.identity(run.user), devices)

    def ending(self, session: str) -> tuple[int | None, bool]:
        seen = "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}"
        for container in self._containers(session):
            _, out, _ = self.ask("inspect", "--format", seen, container)
            status, code, oom = (out.split() or ["", "", ""])[:3]
            return (int(code) if code and status not in _NEVER_RAN else None), oom == "true"
        return None, False

    def remove(self, session: str, grace: float) -> None:
        found = self._containers(session)
        if not found:
            return
        self.ask("stop", "-t", str(int(grace)), *found, timeout=grace + 60)
        _, _, error = self.ask("rm", "-f", "-v", *found)  # -v: with the volumes that the image declares
        if self._containers(session):
            raise errors.HostUnready(
                f"{self.title} does not remove a container: {error[-400:]}", f"`{self.program} ps -a` there"
            )

    def _containers(self, session: str) -> list[str]:
        code, out, error = self.ask("ps", "-aq", "--filter", f"label=mlbox.session={session}")
        if code != 0:  # no answer is not the answer "none"
            raise self.unusable(error)
        return out.split()


def _labels(document: Mapping[str, Any]) -> dict[str, str]:
    return (document.get("Config") or {}).get("Labels") or {}


def _seconds(time_: str) -> float:
    """Of `2026-11-25T20:22:52.123456789Z` or with an offset; Python reads no more than six digits of a second."""
    whole = re.sub(r"\.\d+", "", time_).replace("Z", "+00:00")
    try:
        return datetime.datetime.fromisoformat(whole).timestamp()
    except ValueError:
        return 0.0
