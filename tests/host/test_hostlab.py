"""ROOT as a lab: which one it is, and lab.yaml, read while people edit it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from mlbox import errors
from mlbox.core.lab import Lab
from mlbox.core.session import Mount, Spec
from mlbox.host import files, lab
from mlbox.host.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lab.make_root(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def found(root: Path) -> Store:
    return Store(root)


# ---- mlbox.json ----------------------------------------------------------------------------------


def test_a_root_is_founded_once(tmp_path: Path) -> None:
    first = lab.make_root(tmp_path / "a/b")
    assert lab.make_root(tmp_path / "a/b") == lab.identify(tmp_path / "a/b") == first
    assert len(first) == 16


def _text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "not a folder of mlbox's"),
        (_text("{"), "not a folder of mlbox's"),
        (_text("[]"), "not a folder of mlbox's"),
        (_text('{"format": 1}'), "not a folder of mlbox's"),
        (_text('{"format": 1, "id": 5}'), "not a folder of mlbox's"),
        (_text('{"format": 2, "id": "x"}'), "of format 2"),
        (_text('{"format": 2, "ident": "x"}'), "of format 2"),
        (_text('{"format": "\\u001b[2J", "id": "x"}'), "of format"),
        (_text("[" * 100_000), "not a folder of mlbox's"),
        (lambda path: path.symlink_to("/etc/hostname"), "not a folder of mlbox's"),
        (lambda path: path.mkdir(), "not a folder of mlbox's"),
        (lambda path: os.mkfifo(path), "not a folder of mlbox's"),
    ],
    ids=["absent", "torn", "list", "no id", "odd id", "newer", "other", "escape", "deep", "link", "folder", "fifo"],
)  # fmt: skip
def test_what_is_no_root(root: Path, make: Callable[[Path], object], words: str) -> None:
    (root / "mlbox.json").unlink()
    make(root / "mlbox.json")
    with pytest.raises(errors.HostUnready, match=words) as caught:
        lab.identify(root)
    assert "\x1b" not in caught.value.message
    if "format" in words:
        assert "newer" in caught.value.hint


def test_who_named_no_root_is_told_how_to(tmp_path: Path) -> None:
    for root, hint in ((Store().root, "--root DIR"), (tmp_path / "other", "is its filesystem mounted?")):
        with pytest.raises(errors.HostUnready, match="not a folder of mlbox's") as caught:
            lab.identify(root)
        assert hint in caught.value.hint


def test_a_founder_that_died_in_the_middle(root: Path) -> None:
    """An empty mlbox.json is nobody's; a foreign one is left alone."""
    (root / "mlbox.json").write_text("")
    assert lab.make_root(root) == lab.identify(root)
    (root / "mlbox.json").write_text('{"format": 9, "id": "x"}')
    with pytest.raises(errors.HostUnready, match="format 9"):
        lab.make_root(root)


def test_many_found_at_once(tmp_path: Path) -> None:
    read, write = os.pipe()
    finders = []
    for _ in range(6):
        finders.append(os.fork())
        if finders[-1] == 0:
            try:
                os.write(write, lab.make_root(tmp_path / "new").encode())
            finally:
                os._exit(0)
    for pid in finders:
        os.waitpid(pid, 0)
    told = os.read(read, 4096).decode()
    assert told == lab.identify(tmp_path / "new") * 6


# ---- lab.yaml ------------------------------------------------------------------------------------

GOOD = "queues:\n  night: {max_running: 2}\n"


def write(root: Path, text: str) -> None:
    (root / "lab.yaml").write_text(text)


def test_no_file_is_a_lab_with_one_queue(found: Store) -> None:
    assert list(lab.rules(found).lab.queues) == ["default"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queues:\n  night: {max_running: 2\nhosts: {}\n", "line 3, column 6"),
        ("queues:\n\tnight: {}\n", "line 2, column 1"),
        ("a: [1, 2\n", "line 2, column 1"),
        ("a: b: c\n", "line 1, column 5"),
        ("queues: [night]\n", "queues must map"),
        ("queues:\n  night: {max_runing: 2}\n", "did you mean max_running"),
        ("queue: {}\n", "did you mean queues"),
        ("when: 2026-11-25\n", "JSON"),
        ("x: .nan\n", "JSON"),
        ("!!python/object/apply:os.system ['touch /tmp/owned']\n", "could not determine a constructor"),
        ("a: &a [1]\nb: *c\n", "undefined alias"),
        ("\x00", "special characters"),
        ("- a\n", "must map names"),
        ("queues:\n  default:\n    max_runing: 5\n", "line 3, column 5: queues.default.max_runing is unknown"),
        ("hosts:\n  gpu1.lab: {labels: [a, a]}\n", "line 2, column 14: hosts.gpu1.lab.labels has a word twice"),
        ("hosts:\n  gpu1: {tunnel: reverse}\n", "line 2, column 3: hosts.gpu1.via must name"),
        ("a: &a {x: 1}\nqueues: {default: {<<: *a}}\n", "line 1, column 1: a is unknown"),
        ("queues: {default: {<<: {shiny: 1}}}\n", "line 1, column 10: queues.default.shiny is unknown"),
        ("on: {}\n", "lab.yaml: true is unknown"),
        ("[" * 10_000, ""),
    ],
)
def test_a_broken_lab_yaml_keeps_the_last_good_one(root: Path, found: Store, text: str, words: str) -> None:
    write(root, GOOD)
    assert lab.rules(found) == lab.Rules(lab.rules(found).lab)
    good = lab.rules(found).lab
    write(root, text)
    for _ in range(2):  # the second time from the memo
        rules = lab.rules(found)
        assert rules.lab == good
        assert str(root / "lab.yaml") in rules.trouble and words in rules.trouble
    write(root, GOOD.replace("2", "3"))
    assert lab.rules(found).trouble == ""
    assert lab.rules(found).lab.queues["night"].max_running == 3


def test_what_another_version_found_wrong_is_looked_for_again(
    root: Path, found: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one, of cron, does not know a key that this one knows."""
    write(root, "queues: {default: {shiny: true}}")
    monkeypatch.setattr(sys, "argv", ["mlbox-old.pyz"])
    assert "shiny is unknown" in lab.rules(found).trouble
    real, parsed = lab._content, list[Path]()

    def parse(path: Path) -> bytes:
        parsed.append(path)
        return real(path)

    monkeypatch.setattr(lab, "_content", parse)
    assert lab.rules(found).trouble and parsed == []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["mlbox-new.pyz"])
        assert lab.rules(found).trouble
    assert len(parsed) == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("folder", "is not a file"),
        ("fifo", "is not a file"),
        ("link", "is a link, and none"),
        ("dangling", "is a link, and none"),
        ("large", "larger than"),
    ],
)
def test_a_hostile_lab_yaml_keeps_the_last_good_one(root: Path, found: Store, kind: str, words: str) -> None:
    write(root, GOOD)
    good = lab.rules(found).lab
    path = root / "lab.yaml"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.write_text("# " + "x" * 2_000_000)
    rules = lab.rules(found)
    assert rules.lab == good and words in rules.trouble


@pytest.mark.parametrize("looks", [1, 2, 9])
def test_while_another_host_replaces_it_a_lab_is_not_one_without_rules(
    root: Path, found: Store, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, GOOD)
    good, left = lab.rules(found).lab, [looks]

    def look(path: Path, **how: Any) -> os.stat_result:
        if path.name == "lab.yaml" and left[0]:
            left[0] -= 1
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return os.stat(path, **how)

    monkeypatch.setattr(Path, "stat", look)
    monkeypatch.setattr(Path, "lstat", partialmethod(look, follow_symlinks=False))
    if looks < len(files.STALE):
        assert lab.rules(found).lab == good != Lab()
    else:
        with pytest.raises(FileNotFoundError):
            lab.rules(found)
    monkeypatch.undo()
    assert lab.rules(found) == lab.Rules(good)


@pytest.mark.parametrize(("how", "words"), [("empty", "is empty: `{}` in it"), ("gone", "is gone: `{}` in it")])
def test_one_that_is_empty_or_gone_is_about_to_be_written(root: Path, found: Store, how: str, words: str) -> None:
    path = root / "lab.yaml"

    def vanish() -> None:
        path.write_text("") if how == "empty" else path.unlink()

    write(root, GOOD)
    good = lab.rules(found).lab
    for _ in range(2):
        vanish()
        rules = lab.rules(Store(root))
        assert (rules.lab, rules.usable) == (good, True)
        assert words in rules.trouble and "the last good lab.yaml holds" in rules.trouble
        write(root, "queues: [")  # half of it
        assert lab.rules(found).lab == good
    write(root, "{}\n")
    assert lab.rules(found) == lab.Rules(Lab())
    vanish()
    assert lab.rules(found) == lab.Rules(Lab())


def test_what_was_always_empty_has_no_rules(root: Path, found: Store) -> None:
    for text in ("", "# nothing yet\n", ""):
        write(root, text)
        assert lab.rules(found) == lab.Rules(Lab())


def test_a_bomb_of_aliases_is_refused_in_no_time(root: Path, found: Store) -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
    write(root, "l0: &l0 x\n" + levels)
    assert lab.rules(found).trouble


def test_a_reboot_does_not_forget_the_last_good_one(
    root: Path, found: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, GOOD)
    good = lab.rules(found).lab
    write(root, "queues: [")
    (tmp_path / "boot").mkdir()
    monkeypatch.setattr(Store, "boot_folder", lambda _: tmp_path / "boot")  # what was in /tmp is gone
    rules = lab.rules(Store(root))
    assert (rules.lab, rules.usable) == (good, True)


def test_where_none_is_known_a_broken_one_is_not_to_be_used(root: Path, found: Store) -> None:
    write(root, "queues: [")
    for _ in range(2):
        rules = lab.rules(found)
        assert not rules.usable and "nothing is started" in rules.trouble
    write(root, GOOD)
    assert lab.rules(found).usable


def test_where_nothing_can_be_kept_the_file_is_read_each_time(root: Path, found: Store) -> None:
    (root / "users").write_text("not a folder")
    write(root, GOOD)
    for _ in range(2):
        assert list(lab.rules(found).lab.queues) == ["night"]


def test_a_memo_that_an_older_mlbox_left_is_not_believed(root: Path, found: Store) -> None:
    write(root, GOOD)
    lab.rules(found)
    memo = lab._memo(found)
    kept = json.loads(memo.read_text())
    documents: list[object] = [{"queues": {"x": {"no_such_key": 1}}}, [], None]
    for document in documents:
        memo.write_text(json.dumps({**kept, "document": document}))
        assert list(lab.rules(found).lab.queues) == ["night"]


# ---- add -----------------------------------------------------------------------------------------

COMMENTED = """# our lab
hosts:  # two of them
  gpu1: {ssh: a}   # the old one

queues:
  # at night only
  night: {}
"""


def test_add_keeps_comments(root: Path) -> None:
    write(root, COMMENTED)
    lab.adding(root, "hosts", "gpu2", '{"ssh": "me@gpu2"}').write()
    lab.adding(root, "queues", "day", "{}").write()
    lines = (root / "lab.yaml").read_text().splitlines()
    assert set(COMMENTED.splitlines()) <= set(lines)
    assert len(lines) == len(COMMENTED.splitlines()) + 2
    made = lab.rules(Store(root)).lab
    assert set(made.hosts) == {"gpu1", "gpu2"} and made.hosts["gpu2"].ssh == "me@gpu2"
    assert set(made.queues) == {"night", "day"}


def test_add_makes_file_and_section(root: Path) -> None:
    lab.adding(root, "queues", "day", "{}", "  default: {}\n").write()
    lab.adding(root, "hosts", "gpu1", "{}").write()
    made = lab.rules(Store(root)).lab
    assert (set(made.queues), set(made.hosts)) == ({"day", "default"}, {"gpu1"})


def test_add_leaves_what_is_there(root: Path) -> None:
    write(root, COMMENTED)
    lab.adding(root, "queues", "night", "{max_running: 1}").write()
    assert (root / "lab.yaml").read_text() == COMMENTED


def test_what_another_host_undid_is_added_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had read the file before, and wrote it after."""
    write(root, COMMENTED)
    others = [COMMENTED.replace("night:", "evening: {}\n  night:"), ""]

    def wait(root: Path) -> None:
        other = others.pop() if others else ""
        if other:
            write(root, other)

    monkeypatch.setattr(lab, "catch_up", wait)
    lab.adding(root, "queues", "day", "{}").write()
    assert set(lab.rules(Store(root)).lab.queues) == {"night", "day", "evening"}


def test_what_came_between_a_look_and_the_rename_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, COMMENTED)
    real, others = files.write_whole, [COMMENTED.replace("night:", "evening: {}\n  night:")]

    def slow(path: Path, *rest: Any) -> None:
        real(path, *rest)
        if others:
            write(root, others.pop())

    monkeypatch.setattr(files, "write_whole", slow)
    lab.adding(root, "queues", "day", "{}").write()
    assert set(lab.rules(Store(root)).lab.queues) == {"night", "day", "evening"}
    assert [path.name for path in root.iterdir() if path.name[0] == "."] == []


def test_many_at_once_on_one_host_all_stand(root: Path) -> None:
    names = [f"q{number}" for number in range(12)]
    lab.adding(root, "queues", names[0], "{}").write()
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: lab.adding(root, "queues", name, "{}").write(), names))
    assert set(lab.rules(Store(root)).lab.queues) == set(names)


def test_one_who_is_always_undone_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, COMMENTED)
    monkeypatch.setattr(lab, "catch_up", lambda root: write(root, COMMENTED))
    with pytest.raises(errors.HostUnready, match="all the time"):
        lab.adding(root, "queues", "day", "{}").write()


@pytest.mark.parametrize("mode", [0o664, 0o644, 0o600])
def test_its_mode_stays(root: Path, mode: int) -> None:
    write(root, COMMENTED)
    (root / "lab.yaml").chmod(mode)
    lab.adding(root, "hosts", "gpu7", "{}").write()
    lab.removing(root, "hosts", "gpu7").write()
    assert (root / "lab.yaml").read_text() == COMMENTED
    assert (root / "lab.yaml").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        ("queues: {night: {}}\n", "day", "{}"),
        (COMMENTED, "day", "{max_runing: 1}"),
        (COMMENTED, "day", "{"),
        (COMMENTED, "Day Time", "{}"),
        (COMMENTED, "x: {}\nhosts: {}\n  y", "{}"),
    ],
)
def test_add_does_not_break_the_file(root: Path, old: str, name: str, value: str) -> None:
    write(root, old)
    with pytest.raises((errors.Usage, errors.Refused)):
        lab.adding(root, "queues", name, value).write()
    assert (root / "lab.yaml").read_text() == old


# ---- the allow-list of mounts --------------------------------------------------------------------


def test_mounts_are_of_the_allowed_folders(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data/x").mkdir(parents=True)
    (tmp_path / "data-private").mkdir()
    (tmp_path / "data/out").symlink_to(tmp_path / "data-private")
    write(root, f"allow: {{mounts: [{tmp_path}/data]}}\n")
    rules = lab.rules(Store(root)).lab
    for inside in ("data", "data/x"):
        lab.allowed(rules, Spec(mounts=(Mount(str(tmp_path / inside), "/a"),)))
    for outside in ("data-private", "data/out", "data/../data-private", ""):
        with pytest.raises(errors.Refused, match="may not be mounted"):
            lab.allowed(rules, Spec(mounts=(Mount(f"{tmp_path}/{outside}", "/a"),)))
    shutil.rmtree(tmp_path / "data")


def test_engine_arguments_are_safe_or_the_lab_s(root: Path) -> None:
    write(root, "allow: {engine_args: [--ipc]}\n")
    rules = lab.rules(Store(root)).lab
    lab.allowed(rules, Spec(engine_args=("--ipc=host", "--init")))
    for given in (("--privileged",), ("--ipc=host", "--device=/dev/sda"), ("--network", "host")):
        with pytest.raises(errors.Usage, match="not allowed"):
            lab.allowed(rules, Spec(engine_args=given))
    with pytest.raises(errors.Usage, match="not allowed"):
        lab.allowed(replace(rules, engine_args=()), Spec(engine_args=("--ipc=host",)))


def test_an_error_of_the_share_is_not_the_files(found: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again, though the file has not changed."""
    (found.root / "lab.yaml").write_text("queues: {night: {}}\n")
    real, failing = lab._content, [True]

    def parsed(path: Path) -> Any:
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(lab, "_content", parsed)
    assert not lab.rules(found).usable and "Input/output error" in lab.rules(found).trouble
    failing.clear()
    assert lab.rules(found).usable and lab.rules(found).trouble == ""


def test_others_of_the_lab_as_laptops_call_them(root: Path, found: Store) -> None:
    (root / "lab.yaml").write_text(
        f"hosts: {{{found.host}: {{}}, a: {{ssh: a.lab}}, ws: {{tunnel: reverse, via: a}}}}\n"
    )
    assert lab.others(found, [found.host, "a", "b", "ws"]) == ["a.lab", "b"]
