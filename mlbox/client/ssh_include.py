"""The one line in the user's own ssh configuration that includes mlbox's: shown first, asked for once, removable.

    ~/.ssh/config        Include ~/.local/state/mlbox/ssh_config        its first line: ssh takes the first value
    asked.json           what the user has said to it, also where that was no

The file is somebody's: it is replaced whole (temporary name beside it, rename), with its mode and owner, and where it
is a symbolic link, the file that it leads to. What looks kept by another program is left alone, and the line is said.
"""

from __future__ import annotations

import difflib
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlbox import errors
from mlbox.client import output, ssh_config, state

_ASKED = "asked.json"
_KEY = "ssh-config"


def config() -> Path:
    return Path.home() / ".ssh/config"


def line() -> str:
    home, top = str(Path.home()), str(ssh_config.top())
    short = f"~{top[len(home) :]}" if top.startswith(f"{home}/") else top
    return f'Include "{short}"' if any(c.isspace() for c in short) else f"Include {short}"


def install(dry: bool = False) -> str:
    """The change that it made (or would make); empty where the line is there. Raises MlboxError where it can't."""
    return _change(
        lambda lines: lines if ssh_config.holds(lines) else [f"{line()}\n", *_others(lines)], dry, "installed"
    )


def remove(dry: bool = False) -> str:
    return _change(_others, dry, "removed")


def offer(yes: bool) -> None:
    """Ask, once in a lifetime, whether to put the line in; `yes` answers. Never in the way of what was asked for."""
    if ssh_config.included() or state.load(_ASKED).get(_KEY) or not (yes or output.may_ask()):
        return
    try:
        change = install(dry=True)
        output.note(
            f"One line in your SSH configuration lets ssh, scp, rsync, git and editors know sessions:\n{change}"
        )
        question = "  add it? [y]es, [n]o (you are not asked again) [y]"
        if not yes and output.ask(question, ("yes", "no"), "yes") == "no":
            state.update(_ASKED, _KEY, "declined")
            output.note(
                f"  left as it is; `mlbox ssh-config install` adds it, `{ssh_config.by_file()} NAME` needs no line"
            )
            return
        install()
        output.note(f"  added to {config()}; `mlbox ssh-config remove` takes it out")
    except errors.MlboxError as error:
        state.update(_ASKED, _KEY, "refused")
        output.warn(f"{error.message}\n{error.hint}")


def _others(lines: list[str]) -> list[str]:
    return [one for one in lines if not ssh_config.includes(one)]


def _change(edit: Callable[[list[str]], list[str]], dry: bool, said: str) -> str:
    path = config()
    before = _read(path)
    lines = before.decode(errors="surrogateescape").splitlines(keepends=True)
    after = edit(lines)
    if after != lines:
        _check(path)
        if not dry:
            _replace(path, before, "".join(after).encode(errors="surrogateescape"))
    if not dry:
        state.update(_ASKED, _KEY, said)
    shown = [one.encode(errors="surrogateescape").decode(errors="replace").rstrip("\n") for one in lines]
    new = [one.encode(errors="surrogateescape").decode(errors="replace").rstrip("\n") for one in after]
    return "\n".join(difflib.unified_diff(shown, new, str(path), str(path), n=2, lineterm=""))


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise errors.MlboxError(f"{path} is not a file", f"its first line should be: {line()}")
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise errors.MlboxError(
            f"{path} can't be read: {error.strerror}", f"its first line should be: {line()}"
        ) from None


def _check(path: Path) -> None:
    """Raises MlboxError where the file is another program's to write, or nobody's."""
    real, why = Path(os.path.realpath(path)), ""
    try:
        found = real.lstat()
    except FileNotFoundError:
        why = f"leads to {real}, which is not there" if path.is_symlink() else ""
    else:
        if not found.st_mode & 0o222 or not os.access(real, os.W_OK):
            why = "is read-only" if real == path else f"leads to {real}, which is read-only"
        elif found.st_nlink > 1:
            why = "has another name as well (a hard link)"
        elif found.st_uid != os.getuid():
            why = "is somebody else's"
    if not why and real.parent.exists() and not os.access(real.parent, os.W_OK):
        why = f"is in {real.parent}, which is read-only"
    if why:
        hint = f"have this as its first line, by whatever keeps it: {line()}"
        raise errors.MlboxError(f"{path} {why}; it was left as it is", hint)


def _replace(path: Path, before: bytes, content: bytes) -> None:
    real = Path(os.path.realpath(path))
    if not real.parent.exists():
        real.parent.mkdir(mode=0o700, parents=True)
    descriptor, temporary = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.mlbox.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(FileNotFoundError):
                kept = real.stat()
                os.fchmod(file.fileno(), stat.S_IMODE(kept.st_mode))
                if (kept.st_uid, kept.st_gid) != (os.getuid(), os.getgid()):
                    os.fchown(file.fileno(), kept.st_uid, kept.st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if _read(path) != before:
            raise errors.MlboxError(
                f"{path} was changed just now by somebody else; it was left as it is", "run the same command again"
            )
        os.replace(temporary, real)
    except OSError as error:
        raise errors.MlboxError(f"{path} can't be written: {error.strerror}", f"have this in it: {line()}") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
