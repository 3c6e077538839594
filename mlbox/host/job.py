"""One job or session on disk: its folders, what was asked for, and its log."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core.job import JobSpec
from mlbox.core.log import State, fold, follow
from mlbox.core.slots import fold as stands
from mlbox.host import files, here, slots

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The folders of one job or session."""

    id: str
    owner: str
    folder: Path
    boot_folder: Path

    def attempt(self, number: int) -> Path:
        return self.folder / f"attempts/{number}"

    def keeper_log(self, state: State) -> Path:
        """Of its last attempt."""
        return self.attempt(state.attempt or 1) / "keeper.log"

    @property
    def sockets(self) -> Path:
        return self.boot_folder / "s"

    @property
    def dialled(self) -> Path:
        """The same sockets, for whoever follows links (sshd does): no container puts anything in their places."""
        return self.boot_folder.with_name(f"{self.boot_folder.name}.s")

    @property
    def conf(self) -> Path:
        return self.boot_folder / "conf"

    @property
    def logs(self) -> Path:
        return self.boot_folder / "log"

    @property
    def kernels(self) -> Path:
        """The sockets of Jupyter's kernels, as a container's root may make them in it (core/services.py)."""
        return self.boot_folder / "kernels"

    @property
    def guest(self) -> Path:
        """What the guest makes for its sshd: the session's host key, its settings."""
        return self.boot_folder / "guest"

    @property
    def inside(self) -> tuple[Path, ...]:
        """What a session's container writes to, of its boot folder. What is in these may be a link to anything."""
        return self.sockets, self.logs, self.kernels, self.guest

    @property
    def keeper_lock(self) -> Path:
        return self.boot_folder / "keeper.lock"

    @property
    def keeper_pid(self) -> Path:
        return self.boot_folder / "keeper.pid"

    @property
    def share(self) -> Path:
        """Beside the boot folder, which a container sees."""
        return self.boot_folder.with_name(f"{self.boot_folder.name}.share")

    @property
    def door_lock(self) -> Path:
        """Held by the end of its reverse tunnel that is at its door (host/rendezvous.py)."""
        return self.boot_folder.with_name(f"{self.boot_folder.name}.door")

    @property
    def control(self) -> Path:
        return self.boot_folder.with_name(f"{self.boot_folder.name}.control")

    @property
    def calls(self) -> Path:
        """Where its keeper answers as this host: beside the boot folder, for who calls is believed to be the owner."""
        return self.boot_folder.with_name(f"{self.boot_folder.name}.calls")

    @property
    def door(self) -> Path:
        return here.boot_folder().with_suffix(".shared") / self.id

    def clear_shares(self) -> None:
        """Nobody else joins it any more."""
        for path in (self.share, self.control, self.door_lock):
            path.unlink(missing_ok=True)
        self.clear_door()

    def clear_door(self) -> None:
        """Its folder may be another's, put there while nothing was shared."""
        if files.is_own(self.door.parent):
            import shutil

            shutil.rmtree(self.door, ignore_errors=True)

    @property
    def pruning(self) -> Path:
        """The mark that it is being removed (host/pruning.py)."""
        return self.folder.parents[2] / "pruning" / self.id

    def is_going(self) -> bool:
        return os.path.exists(self.pruning)

    def is_there(self) -> bool:
        """For commands: by its spec, which is the first to go when it is pruned."""
        return files.is_there(self.folder / "spec.json")

    def spec(self, owner: int | None = None) -> JobSpec:
        """Raises NotFound where there is none that can be read (and is of the uid `owner`)."""
        document = files.read_json(self.folder / "spec.json", owner)
        if not isinstance(document, dict):
            raise errors.NotFound(f"{self.id} has no readable spec.json")
        try:
            return JobSpec.from_wire(document, strict=False)
        except errors.Usage as error:
            raise errors.NotFound(f"{self.id} has a damaged spec.json: {error.message}") from None

    def shown(self) -> JobSpec:
        """For lists: a job whose spec can't be read is one without a name."""
        try:
            return self.spec()
        except errors.NotFound:
            return JobSpec()

    def name(self) -> str:
        """By which it is called; empty where that can't be read. The rest of its spec is not judged, which would cost
        several times as much: names are looked for among thousands."""
        document = files.read_json(self.folder / "spec.json")
        work = document.get("work") if isinstance(document, dict) else None
        return str(work.get("name", "")) if isinstance(work, dict) else ""

    def whole(self) -> JobSpec:
        """The spec, as it is to be run: ours, with its secrets, which only its owner can read. Raises NotFound, also
        where these are gone: it is not run with what stands in their places."""
        spec, kept = self.spec(os.getuid()), files.read_json(self.folder / "secret.json")
        if not isinstance(kept, dict) and any(spec.secrets().values()):
            raise errors.NotFound(f"{self.id} has no readable secret.json, with the values of its variables")
        try:
            return spec.with_secrets(kept if isinstance(kept, dict) else {})
        except errors.Usage as error:
            raise errors.NotFound(f"{self.id} has a damaged secret.json: {error.message}") from None

    def log(self) -> slots.Log:
        return slots.Log(self.folder / "ev", _Patient(self.folder / "ev"))

    def events(self) -> list[Json]:
        """Empty where there is no such job (any more): one that another host is removing is stale before it is gone."""
        pauses = iter(files.STALE)
        while True:
            try:
                return list(stands(self.log().read()).events.values())
            except (FileNotFoundError, NotADirectoryError):
                return []
            except OSError as error:
                pause = next(pauses)
                if error.errno != errno.ESTALE or not pause:
                    raise
                time.sleep(pause)

    def state(self) -> State:
        return fold(self.events())

    def foreseen(self, event: str, facts: Mapping[str, Any]) -> State:
        """As it would be with this event at the end of its log."""
        return fold([*self.events(), {"event": event, **facts}])

    def is_gone(self) -> bool:
        """By the word of the filesystem: what a look-up shows as absent or empty may only be not seen yet."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.rmdir()
            return True
        return False

    def append(self, event: str, facts: Mapping[str, Any], attempt: int = 0, patience: float = 10) -> bool:
        """Append to the log; False where the event is not legal (any more), or no longer about this attempt.

        Raises slots.Unsettled after `patience` seconds in which another writer neither went on nor died, and OSError
        where nothing is to be seen of a log that must be there: its filesystem is away, or shows what is old."""

        def decide(events: Sequence[Json]) -> Json | None:
            if not events and event != "submitted":
                raise OSError(errno.ESTALE, "its log is empty just now", str(self.folder / "ev"))
            return follow(events, {"event": event, **facts}, attempt)

        return isinstance(self.log().append(decide, here.this_writer(), patience), slots.Won)


class _Patient(slots.Files):
    """While an append waits for another writer, it looks whether that one, of this host, has died."""

    def sleep(self, seconds: float) -> None:
        with suppress(OSError):
            slots.Log(self.folder).sweep_intents(here.is_dead)
        super().sleep(seconds)
