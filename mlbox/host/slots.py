"""A job's event log on disk: the actions of an append (core/slots.py), carried out in one folder.

    000001 …                                        slots: created exclusively, written once, never renamed or removed
    .<slot>.<host>.<boot>.<pid>.<started>.<token>   an intent; its writer removes it, or its host once that is dead,
                                                    or a person who knows that the host is gone (fence)

Assumed of the filesystem:
- O_CREAT|O_EXCL has one winner. Its losers get EEXIST, and EPERM from sshfs. (link() has two on GlusterFS.)
- A name that exists is found by opening it or in a new listing. Both are tried: a listing on sshfs can be 20 s
  old, and NFS may answer for an absent name from memory until the folder is listed.
- After fchmod, what is read is at least as new. Without it, GlusterFS and sshfs show a file as empty for up to a
  second after another mount has written it; over sshfs, two then act on one claim where intents are overlooked.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlbox import errors
from mlbox.core import slots
from mlbox.core.slots import Append, Decide, Found, Intent, Json, Reading, Writer

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 1.0  # seconds between two looks at a log that somebody else is writing


@dataclass(frozen=True)
class Won:
    """The event is in the log for good, and is this caller's to act on. Its slot is the fence."""

    slot: int
    event: Json


@dataclass(frozen=True)
class Refused:
    """Nothing was appended: it is not legal after these."""

    events: tuple[Json, ...]


class Unsettled(errors.MlboxError):
    """Somebody else is in the middle of a slot. The event may be in the log, as after an OSError, and may come to
    stand there: it is not to be acted on."""


class Files:
    """Every call that a log makes; tests let each of them fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> set[str]:
        return set(os.listdir(self.folder))

    def read(self, name: str, fresh: bool) -> bytes | None:
        """None where there is no such file. `fresh` asks the server, which only the file's owner can.

        On GlusterFS one that another host has just created may be opened, and not be there in the next call."""
        try:
            return self._content(name, fresh)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            if error.errno in (errno.ELOOP, errno.ENXIO):
                return b""
            raise

    def _content(self, name: str, fresh: bool) -> bytes:
        descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):  # before fdopen, which raises on a folder
                return b""
            if fresh:
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(slots.MAX_BYTES + 1)
        finally:
            with suppress(OSError):  # nothing was written
                os.close(descriptor)

    def create(self, name: str) -> int:
        return os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)

    def write(self, descriptor: int, content: bytes) -> int:
        return os.write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, name: str) -> None:
        os.unlink(self.folder / name)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Log:
    """The log in `folder`, the `ev/` of a job."""

    def __init__(self, folder: Path, files: Files | None = None) -> None:
        self._files = files or Files(folder)

    def read(self) -> Reading:
        """What is there, for display: with torn slots, or from a stale mount, it is not final."""
        return _read(self._files, fresh=False)

    def append(self, decide: Decide, writer: Writer, patience: float = 0.0) -> Won | Refused:
        """Append what `decide` makes of the events that are there, if anything.

        `patience` is in seconds; beyond it, Unsettled. An OSError leaves open whether the event is in the log.
        """
        run = _Run(self._files, writer, patience)
        state = Append(os.urandom(8).hex())
        try:
            while state.phase not in ("won", "refused"):
                state = slots.advance(state, getattr(run, state.phase)(state), decide)
        except BaseException:
            run.withdraw(state)
            raise
        if state.event is None:
            return Refused(tuple(slots.fold(run.last).events.values()))
        return Won(state.stands, state.event)

    def sweep_intents(self, is_dead: Callable[[Writer], bool]) -> int:
        """Remove the intents of the dead. A process of another host is not dead, as far as this host can tell."""
        found = slots.parse_intents(self._files.names())
        dead = [intent for intent in found if is_dead(intent.writer)]
        for intent in dead:
            with suppress(FileNotFoundError):
                self._files.unlink(slots.intent_name(intent))
        return len(dead)

    def fence(self, host: str) -> int:
        """Remove a host's intents, on the word of a person: it is gone, or what it is at may be overtaken."""
        return self.sweep_intents(lambda writer: writer.host == host)


def _read(files: Files, fresh: bool) -> Reading:
    """All slots as they were at one moment, which is when the last of them was read: those that were torn by
    then still are afterwards. Their intents are listed in between: none, and the creator has given up."""
    while True:
        names = files.names()
        found: list[slots.Slot | None] = []
        while len(found) < slots.MAX_SLOTS:
            slot = _slot(files, len(found) + 1, names)
            if not slot:
                break
            found += slot
        torn = [number for number, slot in enumerate(found, 1) if slot is None]
        if torn:
            names = files.names()
        if not any(any(_slot(files, number, names, fresh)) for number in torn):
            return Reading(tuple(found), slots.parse_intents(names))


def _slot(files: Files, number: int, names: set[str], fresh: bool = False) -> Found:
    """Empty where it is neither to be opened nor in the listing `names`."""
    name = slots.slot_name(number)
    content = files.read(name, fresh)
    if content is None:
        return (None,) if name in names else ()
    return (slots.decode(number, content),)


class _Run:
    """One append: a method for each phase of it, named like the phase."""

    def __init__(self, files: Files, writer: Writer, patience: float) -> None:
        self._files, self._writer, self._patience, self._pause = files, writer, patience, _FIRST_PAUSE
        self._descriptor = -1
        self.last = Reading()

    def _name(self, state: Append) -> str:
        return slots.intent_name(Intent(state.slot, self._writer, state.token))

    def read(self, state: Append) -> Reading:
        """Removes what an earlier append of this process could not."""
        reading = _read(self._files, fresh=True)
        left = {intent for intent in reading.intents if intent.writer == self._writer}
        for intent in left:
            with suppress(OSError):
                self._files.unlink(slots.intent_name(intent))
        self.last = Reading(reading.slots, reading.intents - left)
        return self.last

    def wait(self, state: Append) -> None:
        if self._patience <= 0:
            torn = slots.fold(self.last).torn
            writers = {intent.writer for intent in self.last.intents if intent.slot in torn}
            who = ", ".join(sorted(f"process {writer.pid} on {writer.host}" for writer in writers))
            raise Unsettled(
                f"{self._files.folder} is being written to by {who or 'others, unseen as yet'}",
                "try again; should a host be gone for good: mlbox host fence HOST",
            )
        pause = min(self._pause, self._patience)
        self._files.sleep(pause)
        self._patience -= pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def publish(self, state: Append) -> None:
        self._descriptor = self._files.create(self._name(state))
        self._put(state.document)

    def create(self, state: Append) -> bool:
        name = slots.slot_name(state.slot)
        try:
            self._descriptor = self._files.create(name)
        except FileExistsError:
            return False
        except PermissionError:
            if self._files.read(name, fresh=False) is None:
                raise
            return False  # sshfs
        return True

    def reread(self, state: Append) -> Found:
        files = self._files
        return tuple(slot for number in state.voids for slot in _slot(files, number, files.names(), fresh=True))

    def write(self, state: Append) -> None:
        self._put(state.document)
        self._files.sync_folder()

    def _put(self, content: bytes) -> None:
        if self._files.write(self._descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._files.folder))
        self._files.sync(self._descriptor)
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._files.close(descriptor)

    def look(self, state: Append) -> Found:
        return _slot(self._files, state.slot + 1, self._files.names())

    def withdraw(self, state: Append) -> None:
        """An intent that can't be removed costs others time, and not this append its answer."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._files.unlink(self._name(state))
