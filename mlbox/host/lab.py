"""ROOT as a lab: which one it is, and what its people decided.

mlbox.json   {"format": 1, "id": …}, written once; without it this is no ROOT (an unmounted mount point is an
             empty folder, and nothing may be made in it)
lab.yaml     core/lab.py; read again whenever it has changed. While it can't be read, is empty or gone, the last one
             that could be goes on holding, and everybody is told. Where none is known, nothing is started, or there are
             no rules yet
users/<user>/on/<host>/lab.json      the last good document, as this user's calls on that host saw it: it outlives
             a reboot, and a tick parses no YAML
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlbox import errors
from mlbox.core import lab
from mlbox.core.session import Spec, check_engine_args
from mlbox.host import edit, files, here, store

Json = dict[str, Any]
FORMAT = 1
_VIEW = 1.1  # s; GlusterFS's mounts go on showing the old file for one more after another host replaced it
_AGAIN = (0.01, 0.1, 0.4, 1.2)  # s; a client's view of a name that just came may be a second old
_NO_RULES = "`{}` in it is a lab without rules"
_HEAD = "# The lab's hosts, queues and rules; conf/lab.yaml in mlbox's sources shows every key. Read at every tick.\n"


def identify(root: Path) -> str:
    """This ROOT's id. Raises HostUnready where it is none, or of another format."""
    try:
        document = files.read_json(root / "mlbox.json")
    except OSError as error:
        raise errors.HostUnready(f"{root} does not answer: {error.strerror}", "is its filesystem mounted?") from None
    if isinstance(document, dict) and document.get("format", FORMAT) != FORMAT:
        what = f"{root} is of format {document['format']!r:.40}, and this mlbox knows {FORMAT}"
        raise errors.HostUnready(what, "use a newer mlbox")
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        from mlbox.host import os_error  # only such a failure pays for it

        os_error.check_open(root)
        hint = "is its filesystem mounted? `mlbox init` makes a new one"
        if root == here.data_home():
            hint = "a lab's is another: --root DIR, or root in config.toml; the first mlbox submit makes this one"
        raise errors.HostUnready(f"{root} is not a folder of mlbox's: it has no mlbox.json", hint)
    return str(document["id"])


def make_root(root: Path) -> str:
    """Make `root` a ROOT where it is none yet; its id. Once: whoever comes second takes the first one's."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = root / "mlbox.json"
    content = json.dumps({"format": FORMAT, "id": os.urandom(8).hex()}).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        for pause in _AGAIN:
            if path.exists():
                break
            time.sleep(pause)
        if files.stays_empty(path):  # whoever was first died
            files.write_whole(path, content, 0o644)
        return identify(root)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    files.sync_folder(root)
    return identify(root)


@dataclass(frozen=True)
class Rules:
    """lab.yaml as it holds now, and what is wrong with the file, if it is another."""

    lab: lab.Lab
    trouble: str = ""
    usable: bool = True  # False: the file is broken and no good one is known here, so `lab` is nobody's decision


def rules(found: store.Store) -> Rules:
    path = found.root / "lab.yaml"
    seen = files.status(path)
    known = files.read_json(_memo(found))
    known = known if isinstance(known, dict) else {}
    good, trouble = _still_good(known.get("document")), str(known.get("trouble", ""))
    had_rules = good is not None and bool(known["document"])
    if seen is None:
        return _holding(good, f"{path} is gone: {_NO_RULES}") if had_rules else Rules(lab.Lab())
    mark = [seen.st_ino, seen.st_mtime_ns, seen.st_size]
    program = Path(sys.argv[0]).name
    if known.get("mark") == mark and (known.get("by") == program if trouble else good is not None):
        return _holding(good, trouble)
    try:
        content = _content(path)
        if had_rules and not content.strip():  # as an editor, cp or GlusterFS leave it for a moment
            return _holding(good, f"{path} is empty: {_NO_RULES}")
        document = _document(content, str(path))
        checked = lab.from_document(document, str(path), lambda keys: _place(content, keys))
    except OSError as error:  # of the share, perhaps, and gone the next time: not remembered
        return _holding(good, f"{path} can't be read: {error.strerror}")
    except errors.Usage as error:
        # Looked for again only when the file changes, or by another version of mlbox, which may know more: the sentence
        # is kept beside the last good document.
        kept = known.get("document") if good is not None else None
        _remember(found, {"mark": mark, "document": kept, "trouble": error.message, "by": program})
        return _holding(good, error.message)
    _remember(found, {"mark": mark, "document": document})
    return Rules(checked)


def _holding(good: lab.Lab | None, trouble: str) -> Rules:
    if good is None:
        return Rules(lab.Lab(), f"{trouble}; no good one is known on this host, so nothing is started", usable=False)
    return Rules(good, trouble and f"{trouble}; the last good lab.yaml holds")


def _still_good(document: Any) -> lab.Lab | None:
    """What another version of mlbox remembered may be none to this one."""
    try:
        return lab.from_document(document) if isinstance(document, dict) else None
    except errors.Usage:
        return None


def _memo(found: store.Store) -> Path:
    return found.on() / "lab.json"


def _remember(found: store.Store, content: Json) -> None:
    """Where it can't be written, the YAML is parsed again the next time."""
    if found.dry:
        return
    with suppress(OSError, errors.HostUnready):
        found.own_place()
        files.make_folder(found.on())
        files.write_whole(_memo(found), json.dumps(content).encode(), 0o644)


def catch_up(root: Path) -> None:
    """From here on lab.yaml is seen as others last wrote it. Whoever changes an old view undoes what came since."""
    with suppress(FileNotFoundError):
        if not os.major((root / "lab.yaml").stat().st_dev):  # on no disk of this host's own
            time.sleep(_VIEW)


@dataclass(frozen=True)
class Edit:
    """A change of lab.yaml. `lab`: what the file says then; `line`: the one that is new."""

    root: Path
    change: Callable[[str], str]
    lab: lab.Lab
    line: str = ""

    def write(self) -> None:
        edit.change(self.root / "lab.yaml", self.change, lambda: catch_up(self.root))


def adding(root: Path, section: str, name: str, value: str, first: str = "") -> Edit:
    """Put `name: value` into a section of lab.yaml, as text, so that its comments stay; `first`: a line that goes
    before it in a section that is new. A name that somebody put there meanwhile stays as it is. Raises Usage or Refused
    for what would break the file."""
    path, entry = root / "lab.yaml", f"  {name}: {value}\n"

    def change(there: str) -> str:
        old = there or _HEAD
        if name in _names_in(_document(old.encode(), str(path)), section):
            return there
        head = re.search(rf"^{section}:[ \t]*(#.*)?\n", old, re.MULTILINE)
        if head:
            return old[: head.end()] + entry + old[head.end() :]
        if re.search(rf"^{section}:", old, re.MULTILINE):
            raise errors.Refused(f"{path} has its {section} in one line", f"add {name} there yourself")
        return f"{old.rstrip()}\n\n{section}:\n{first}{entry}"

    return _edit(root, change, entry.rstrip())


def removing(root: Path, section: str, name: str) -> Edit:
    """Take out what `adding` put in. Raises Refused where people have made more of it."""
    path = root / "lab.yaml"

    def change(old: str) -> str:
        if name not in _names_in(_document(old.encode(), str(path)), section):
            return old
        new, count = re.subn(rf"^  {re.escape(name)}: \{{[^\n]*\}}[ \t]*\n", "", old, flags=re.MULTILINE)
        if count != 1 or name in _names_in(_document(new.encode(), str(path)), section):
            raise errors.Refused(f"{path} has {name} in more than one line", "take it out there yourself")
        return new

    return _edit(root, change)


def _edit(root: Path, change: Callable[[str], str], line: str = "") -> Edit:
    """As the file is seen now; what is written, and checked, is made of it as it is then."""
    path = root / "lab.yaml"

    def checked(old: str) -> str:
        new = change(old)
        lab.from_document(_document(new.encode(), str(path)), str(path))
        return new

    old = path.read_text() if path.exists() else ""
    new = checked(old)
    return Edit(root, checked, lab.from_document(_document(new.encode(), str(path))), line if new != old else "")


def _names_in(document: Any, section: str) -> Any:
    return (document.get(section) or {}) if isinstance(document, dict) else {}


def _content(path: Path) -> bytes:
    """Raises Usage, and OSError."""
    if path.is_symlink():
        raise errors.Usage(f"{path} is a link, and none is followed: put the file itself there")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise errors.Usage(f"{path} is not a file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(files.MAX_FILE + 1)
    if len(content) > files.MAX_FILE:
        raise errors.Usage(f"{path} is larger than {files.MAX_FILE >> 10} KiB")
    return content


def _place(content: bytes, keys: Sequence[object]) -> str:
    """Where in a file that could be read the last of these keys is, or the last that is there."""
    import yaml

    node, mark = yaml.compose(content, Loader=yaml.SafeLoader), None
    for key in keys:
        for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if name.value == key:
                node, mark = value, name.start_mark
                break
        else:
            break
    return _words(mark)


def _words(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _document(content: bytes, where: str) -> Any:
    """Raises Usage with line and column."""
    import yaml

    try:
        document = yaml.safe_load(content)
        if not _is_small(document):
            raise errors.Usage(f"{where}: its aliases come to more than {files.MAX_FILE >> 10} Ki values")
        return json.loads(json.dumps(document or {}, allow_nan=False))  # dates and such are not meant
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        raise errors.Usage(f"{where}: {_words(mark)}{problem}") from None


def _is_small(document: Any) -> bool:
    """Whether it comes to no more values than a file may have bytes: few lines of aliases can come to billions."""
    left = [iter([document])]
    for _ in range(files.MAX_FILE):
        while left and (value := next(left[-1], left)) is left:
            left.pop()
        if not left:
            return True
        if isinstance(value, dict):
            left.append(iter([*value, *value.values()]))
        elif isinstance(value, (list, tuple)):
            left.append(iter(value))
    return False


def others(found: store.Store, hosts: Iterable[str]) -> list[str]:
    """What laptops call these but this one; not those that can't be dialled."""
    known = rules(found).lab
    return [ssh for name in hosts if name != found.host and (ssh := known.ssh_name(name))]


def allowed(rules_: lab.Lab, spec: Spec) -> None:
    """Raises Usage for an engine argument that is neither safe nor the lab's own, and Refused where its list of mounts
    forbids one; an empty list leaves that to the file's rights."""
    check_engine_args(spec.engine_args, rules_.engine_args)
    if not rules_.mounts:
        return
    for mount in spec.mounts:
        real = os.path.realpath(os.path.expanduser(mount.source))
        if not any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in rules_.mounts):
            raise errors.Refused(f"{mount.source} may not be mounted", "lab.yaml allows: " + ", ".join(rules_.mounts))
