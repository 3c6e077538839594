"""A shared filesystem in memory, as far as logs use it: what one process sees of it may be old."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlbox.host.slots import Files


class Killed(BaseException):
    """What a process meets at the call that it no longer makes."""


class Share:
    """Files as the server has them, and the names as they were: what a client shows may be older."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.past: list[set[str]] = [set()]
        self.has_old_listings = False  # as sshfs, where an open is answered by the server; else as NFS, the reverse
        self.hides_intents = False

    def changed(self) -> None:
        self.past.append(set(self.files))


class Remote(Files):
    """One process's view of a share. It stops before each call, until it is told how that is to go."""

    def __init__(self, share: Share) -> None:
        super().__init__(Path("ev"))
        self.share = share
        self.listed = 0  # of the share's past: what is older is known to be so
        self.open: list[str] = []
        self.next, self.how, self.age = "", "well", 0
        self.mine, self.theirs = threading.Semaphore(0), threading.Semaphore(0)

    def call(self, name: str, do: Callable[[], Any]) -> Any:
        """`error`: not done. `lost`: done, and said to have failed. `dead` and `late`, the same for a process that
        does not live to be told."""
        self.next = name
        self.theirs.release()
        self.mine.acquire()
        how = self.how
        result = do() if how not in ("error", "dead") else None
        if how in ("dead", "late"):
            raise Killed
        if how in ("error", "lost"):
            raise OSError(errno.EEXIST if (name, how) == ("create", "lost") else errno.EIO, how)
        return result

    def names(self) -> set[str]:
        def do() -> set[str]:
            newest = len(self.share.past) - 1
            if not self.share.has_old_listings:
                self.listed = newest
            names = self.share.past[max(self.listed, newest - self.age)]
            return {name for name in names if not (self.share.hides_intents and name.startswith("."))}

        names: set[str] = self.call("names", do)
        return names

    def read(self, name: str, fresh: bool) -> bytes | None:
        def do() -> bytes | None:
            was_there = name in self.share.past[max(self.listed, len(self.share.past) - 1 - self.age)]
            if name not in self.share.files or not (was_there or self.share.has_old_listings):
                return None
            return b"" if self.age and not fresh else self.share.files[name]

        content: bytes | None = self.call("read", do)
        return content

    def create(self, name: str) -> int:
        def do() -> int:
            if name in self.share.files:
                raise FileExistsError(errno.EEXIST, name)
            self.share.files[name] = b""
            self.share.changed()
            self.open.append(name)
            return len(self.open) - 1

        descriptor: int = self.call("publish" if name.startswith(".") else "create", do)
        return descriptor

    def write(self, descriptor: int, content: bytes) -> int:
        def do() -> int:
            self.share.files[self.open[descriptor]] = content
            return len(content)

        size: int = self.call("put" if self.open[descriptor].startswith(".") else "write", do)
        return size

    def unlink(self, name: str) -> None:
        def do() -> None:
            if self.share.files.pop(name, None) is None:
                raise FileNotFoundError(errno.ENOENT, name)
            self.share.changed()

        self.call("unlink", do)

    def sync(self, descriptor: int) -> None:
        self.call("sync", lambda: None)

    def close(self, descriptor: int) -> None:
        self.call("close", lambda: None)

    def sync_folder(self) -> None:
        self.call("sync_folder", lambda: None)

    def sleep(self, seconds: float) -> None:
        self.call("sleep", lambda: None)


class Direct(Remote):
    """The share as it is."""

    def call(self, name: str, do: Callable[[], Any]) -> Any:
        return do()
