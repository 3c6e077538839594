"""Where a session's settings come from, and which word wins."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import homes
import pytest

from mlbox.client import answers, state
from mlbox.client.answers import Answers, from_yaml, remembered, to_remember, to_spec
from mlbox.client.commands import session_start
from mlbox.core.session import Mount
from mlbox.errors import Usage


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.fresh(tmp_path / "home", monkeypatch)


def yaml(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "session.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", Answers()),
        ("# nothing\n", Answers()),
        ("host: gpu1\ngpus: 2\n", Answers(host="gpu1", gpus="2")),
        ("gpus: A100:2\n", Answers(gpus="A100:2")),
        ("start-timeout: 60\n", Answers(start_timeout=60)),
        ("jupyter: false\nvscode: yes\n", Answers(jupyter=False, vscode=True)),
        ("packages: [numpy, 'torch>=2']\n", Answers(packages=("numpy", "torch>=2"))),
        ("packages: numpy 'torch >= 2'\n", Answers(packages=("numpy", "torch >= 2"))),
        ("packages: []\n", Answers(packages=())),
        ("env:\n  A: 1\n  B: x=y\n", Answers(env=("A=1", "B=x=y"))),
        ("env: [A=1, HOME]\n", Answers(env=("A=1", "HOME"))),
        ("engine_args: --shm-size 8g --init\n", Answers(engine_args=("--shm-size", "8g", "--init"))),
        ("port: 6006\n", Answers(port=("6006",))),
        ("port: [6006, '8000:80']\n", Answers(port=("6006", "8000:80"))),
        ("vscode_version: 4.10\njupyter_version: 4.0\n", Answers(vscode_version="4.10", jupyter_version="4.0")),
        ("env:\n  A: yes\n  B: 010\n  HOME:\n", Answers(env=("A=yes", "B=010", "HOME"))),
        ("name: no\nuser_folder: 2024-01-01\n", Answers(name="no", user_folder="2024-01-01")),
        ("image:\nname: kind-otter\n", Answers(name="kind-otter")),
        ("image: &i pytorch\nname: *i\n", Answers(image="pytorch", name="pytorch")),
    ],
    ids=lambda v: v.splitlines()[0] if isinstance(v, str) and v else "",
)
def test_yaml(tmp_path: Path, content: str, said: Answers) -> None:
    assert from_yaml(yaml(tmp_path, content)) == said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("gpus: 2\nimage: [a\n", r"session.yaml: line 3, column 1: "),
        ("a: b: c\n", r"session.yaml: line 1, column 5: "),
        ("gpus: 2\n\timage: x\n", r"session.yaml: line 2, column 1: "),
        (b"gpus: 2\nimage: \xff\n", "session.yaml: line 2 is not UTF-8 text"),
        ("image: \x1b[31m\n", "session.yaml: "),
        ("- a\n", "must be `name: value` lines"),
        ("just words\n", "must be `name: value` lines"),
        ("imagee: x\n", "there is no setting 'imagee'"),
        ("3: x\n", "there is no setting '3'"),
        ('"\\e[31m": x\n', "there is no setting '�"),
        ("jupyter: maybe\n", "jupyter is true or false"),
        ("jupyter: 1\n", "jupyter is true or false"),
        ("start_timeout: soon\n", "start_timeout is a number of seconds"),
        ("start_timeout: true\n", "start_timeout is a number of seconds"),
        ("packages: {a: b}\n", "packages is a list"),
        ("packages: [[a]]\n", "packages is a list"),
        ("image: [a]\n", "image is one value"),
        ("env: {A: [b]}\n", "env is `NAME: value` lines"),
        ("start_timeout: 1e3\n", "start_timeout is a number of seconds"),
        ("image: !!python/object/apply:os.system ['touch hacked']\n", "line 1, column 8"),
        ("name: !!timestamp 2024-13-45\n", "session.yaml"),
        ("[" * 5000, "session.yaml: it is nested too deeply"),
        ("name: x\n" * (1 << 17) + "#", "session.yaml is larger than 1 MiB"),
        ("engine_args: --label 'x\n", "engine_args"),
    ],
)  # fmt: skip
def test_bad_yaml_is_a_usage_error_that_says_where(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(Usage, match=words) as caught:
        from_yaml(yaml(tmp_path, content))
    assert "\x1b" not in caught.value.message
    assert not (tmp_path / "hacked").exists()


def test_the_example_shows_every_setting(tmp_path: Path) -> None:
    example = (Path(__file__).parents[2] / "conf/session.yaml").read_text()
    everything = yaml(tmp_path, re.sub(r"(?m)^# (?=[a-z_]+:|  )", "", example))
    said = from_yaml(everything)
    assert [f.name for f in fields(said) if getattr(said, f.name) is None] == []


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="can't be read: No such file"):
        from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("said", ["pandas, einops", "pandas,einops", "pandas einops", "[pandas, einops]"])
def test_packages_in_yaml_as_people_write_them(tmp_path: Path, said: str) -> None:
    assert from_yaml(yaml(tmp_path, f"packages: {said}\n")).packages == ("pandas", "einops")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("imagee", "image"),
        ("package", "packages"),
        ("vs-code", "vscode"),
        ("mounts", "mount"),
        ("user-foldr", "user_folder"),
    ],
)
def test_an_unknown_key_suggests_the_right_one(tmp_path: Path, key: str, meant: str) -> None:
    with pytest.raises(Usage) as caught:
        from_yaml(yaml(tmp_path, f"{key}: x\n"))
    assert caught.value.hint == f"did you mean {meant}?"


def test_a_key_like_no_other_suggests_where_they_are_told(tmp_path: Path) -> None:
    with pytest.raises(Usage) as caught:
        from_yaml(yaml(tmp_path, "zzzz: x\n"))
    assert caught.value.hint == "mlbox session --help shows every setting"


def test_files_that_are_too_large_together_are_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LARGEST_FILE", 1 << 20)
    for name in ("a.vsix", "b.vsix"):
        (tmp_path / name).write_bytes(b"x" * (1 << 19))
    both = Answers(vscode_extensions=(str(tmp_path / "a.vsix"), str(tmp_path / "b.vsix")))
    to_spec(both, ())
    (tmp_path / "b.vsix").write_bytes(b"x" * ((1 << 19) + 1))
    with pytest.raises(Usage, match=r"larger than 1 MiB together: a\.vsix, b\.vsix"):
        to_spec(both, ())


def test_files_are_relative_to_the_yaml_s_folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (tmp_path / "p").mkdir()
    path = tmp_path / "p/session.yaml"
    path.write_text("requirements: req.txt\ninit_script: ~/init.sh\nvscode_extensions: [a.b, my.vsix]\n")
    for name in ("p/req.txt", "home/init.sh", "p/my.vsix"):
        (tmp_path / name).write_text(name)
    spec = to_spec(from_yaml(path), ())
    assert (spec.requirements, spec.init_script) == ("p/req.txt", "home/init.sh")
    assert spec.vscode_extensions == ("a.b",)
    assert spec.extension_files == {"my.vsix": base64.b64encode(b"p/my.vsix").decode()}


# ---- which word wins -----------------------------------------------------------------------------

FLAGS, FILE, LAST, CONFIG = "from-flags", "from-file", "from-last", "from-config"


@pytest.mark.parametrize(
    ("flags", "file", "last", "config", "expected"),
    [
        (FLAGS, FILE, LAST, CONFIG, FLAGS),
        (None, FILE, LAST, CONFIG, FILE),
        (None, None, LAST, CONFIG, LAST),
        (None, None, None, CONFIG, CONFIG),
        (None, None, None, None, None),
        ("", FILE, LAST, CONFIG, ""),
    ],
    ids=["flags", "file", "last", "config", "nothing", "an empty word is a word"],
)
def test_precedence(
    flags: str | None, file: str | None, last: str | None, config: str | None, expected: str | None
) -> None:
    if last is not None:
        state.update("last.json", "gpu1", to_remember(Answers(sources=last)))
    said = Answers(sources=flags).over(Answers(sources=file))
    found = session_start._complete(said, "gpu1", state.Config(sources=config or ""), fresh=False)
    assert getattr(found, "sources", None) == expected


def test_false_is_a_word_too() -> None:
    assert Answers(jupyter=False).over(Answers(jupyter=True, vscode=True)) == Answers(jupyter=False, vscode=True)


def test_lists_are_replaced_not_joined() -> None:
    assert Answers(packages=()).over(Answers(packages=("a",))).packages == ()


def test_last_answers_are_one_host_s() -> None:
    state.update("last.json", "gpu1", to_remember(Answers(packages=("a",))))
    for host, fresh, expected in (("gpu1", False, ("a",)), ("gpu2", False, None), ("gpu1", True, None)):
        assert session_start._complete(Answers(), host, state.Config(), fresh).packages == expected


def test_what_is_taken_over_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    state.update("last.json", "gpu1", to_remember(Answers(packages=("a",), sources="/s")))
    session_start._complete(Answers(sources="/t"), "gpu1", state.Config(), fresh=False)
    said = capsys.readouterr()
    assert "packages" in said.err and "sources" not in said.err and said.out == ""


@pytest.mark.parametrize(
    ("host", "said", "image", "runtime"),
    [
        ("gpu1", Answers(), "x", "docker"),
        ("gpu1", Answers(image="y"), "y", "docker"),
        ("gpu1", Answers(runtime="process"), None, "process"),
        ("local", Answers(), "x", "docker"),
        ("local", Answers(runtime="process"), None, "process"),
    ],
    ids=["as last time", "another image", "without a container", "local", "local without a container"],
)
def test_image_and_runtime_go_together(host: str, said: Answers, image: str | None, runtime: str | None) -> None:
    state.update("last.json", host, to_remember(Answers(image="x", runtime="docker")))
    found = session_start._complete(said, host, state.Config(image="z"), fresh=False)
    assert (found.image, found.runtime) == (image, runtime)


@pytest.mark.parametrize(("host", "image"), [("gpu1", "z"), ("local", None)])
def test_this_machine_needs_no_engine_unless_an_image_was_said_for_it(host: str, image: str | None) -> None:
    assert session_start._complete(Answers(), host, state.Config(image="z"), fresh=False).image == image


# ---- what is remembered --------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "host": "gpu1", "name": "kind-otter", "gpus": "2", "image": "x", "runtime": "docker", "user": "root",
    "user_folder": "~/w", "packages": ("a", "b"), "vscode_extensions": ("a.b",), "jupyter": False, "vscode": True,
    "env": ("TOKEN=s3cret", "HOME"), "mount": ("/a:/b",), "engine_args": ("--init",), "jupyter_version": "4",
    "vscode_version": "4", "sources": "/s", "start_timeout": 60, "requirements": "/r", "init_script": "/i",
    "tunnel": "reverse",
}  # fmt: skip


def test_everything_is_remembered_but_the_place_the_name_and_the_environment() -> None:
    stored = to_remember(Answers(**EVERYTHING))
    assert set(EVERYTHING) - set(stored) == {"host", "name", "env"}
    assert "s3cret" not in json.dumps(stored)
    state.update("last.json", "gpu1", stored)
    found = remembered(state.load("last.json")["gpu1"])
    assert found == Answers(**{**EVERYTHING, "host": None, "name": None, "env": None})


def test_an_environment_in_a_state_file_is_not_believed() -> None:
    assert remembered({"env": ["A=b"], "host": "x", "unheard_of": 1}) == Answers()


def test_remembered_files_do_not_depend_on_the_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    stored = to_remember(Answers(requirements="req.txt", init_script="~/init.sh"))
    assert (stored["requirements"], stored["init_script"]) == (f"{home}/req.txt", f"{home}/init.sh")


def test_remembered_extensions_do_not_depend_on_the_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert list(to_remember(Answers(vscode_extensions=("a.b", "my.vsix")))["vscode_extensions"]) == [
        "a.b", f"{home}/my.vsix",
    ]  # fmt: skip


def test_a_package_with_a_password_is_neither_remembered_nor_shown() -> None:
    given = Answers(packages=("einops", "git+https://ada:s3cret@git.lab/x.git"))
    assert to_remember(given)["packages"] == ["einops"]
    assert given.beyond(Answers()) == ["--packages einops git+https://***@git.lab/x.git"]


# ---- the session asked for -----------------------------------------------------------------------


def test_to_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "its value = here")
    (tmp_path / "req").write_text("torch\n")
    spec = to_spec(
        Answers(
            name="kind-otter", gpus="2", image="x", packages=("a",), requirements=str(tmp_path / "req"), jupyter=True,
            vscode=False, env=("A=1=2", "FROM_HERE", "EMPTY="), mount=("/a:/b:ro",), engine_args=("--init",),
            start_timeout=60, tunnel="reverse",
        ),
        ("ssh-ed25519 AAAA",),
    )  # fmt: skip
    assert (spec.name, spec.gpus, spec.jupyter, spec.vscode, spec.start_timeout) == ("kind-otter", "2", "yes", "no", 60)
    assert spec.env == {"A": "1=2", "FROM_HERE": "its value = here", "EMPTY": ""}
    assert (spec.requirements, spec.mounts) == ("torch\n", (Mount("/a", "/b", True),))
    assert (spec.authorized_keys, spec.tunnel) == (("ssh-ed25519 AAAA",), "reverse")


def test_nothing_said_is_everything_default() -> None:
    spec = to_spec(Answers(), ())
    assert (spec.gpus, spec.jupyter, spec.vscode, spec.start_timeout, spec.user) == ("auto", "auto", "auto", 120, "uid")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Answers(env=("NOT_SET_HERE",)), "there is no such variable"),
        (Answers(env=("A-B=1",)), "can't be a variable's name"),
        (Answers(env=("=x",)), "can't be a variable's name"),
        (Answers(env=("CUDA_VISIBLE_DEVICES=0",)), "mlbox sets it, to the GPUs that it assigns"),
        (Answers(env=("NVIDIA_VISIBLE_DEVICES=all",)), "mlbox sets it"),
        (Answers(env=("MLBOX_SESSION=x",)), "are mlbox's own"),
        (Answers(mount=("/a",)), "can't be read"),
        (Answers(requirements="/no/such/file"), "can't be read: No such file"),
        (Answers(requirements="/"), "can't be read: Is a directory"),
        (Answers(vscode_extensions=("/no/such.vsix",)), "can't be read"),
        (Answers(name="No"), "can't be a name"),
        (Answers(tunnel="sideways"), "tunnel can't be 'sideways'"),
    ],
    ids=lambda v: str(v)[:30] if isinstance(v, str) else "",
)
def test_bad_answers_are_usage_errors(said: Answers, words: str) -> None:
    with pytest.raises(Usage, match=words):
        to_spec(said, ())


def test_a_file_that_is_too_large_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LARGEST_FILE", 1 << 20)
    path = tmp_path / "large.vsix"
    path.write_bytes(b"")
    os.truncate(path, 1 << 20)
    to_spec(Answers(vscode_extensions=(str(path),)), ())
    os.truncate(path, (1 << 20) + 1)
    with pytest.raises(Usage, match="larger than 1 MiB"):
        to_spec(Answers(vscode_extensions=(str(path),)), ())
