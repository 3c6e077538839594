"""What the documents name is there: files, commands and their options, make's targets, settings. And every option has
somebody who reads it."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mlbox import cli
from mlbox.client import state

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "conf").iterdir()
)]  # fmt: skip
SOURCES = sorted(str(path.relative_to(ROOT)) for top in ("mlbox", "scripts") for path in (ROOT / top).rglob("*.py"))
_ROOMS = ("", "mlbox", "mlbox/host", "mlbox/client", "scripts")
_FILE = re.compile(r"(?<![\w/.~*}<-])(?:[a-z_]+/)+[a-z_]+\.(?:py|c|yaml|toml|svg|sh)\b")
_EXAMPLE = "rename"  # CONTRIBUTING's new verb
_ELSEWHERE = "mlbox/config.toml"  # below a user's folder of settings


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*DOCUMENTS, *SOURCES])
def test_files_that_are_named_are_there(name: str) -> None:
    named = set(_FILE.findall(text(name)))
    gone = {path for path in named if not any((ROOT / room / path).exists() for room in _ROOMS)}
    assert {path for path in gone if not path.endswith(f"/{_EXAMPLE}.py")} <= {_ELSEWHERE}


@cache
def parsers() -> dict[str, list[argparse.ArgumentParser]]:
    """Verb -> its parser, those of what it has below it, and of its files (session list)."""
    found: dict[str, list[argparse.ArgumentParser]] = {}
    below = [[verb, word] for verb, more in cli.BELOW.items() for word in more]
    for words in [*([verb] for verb in cli.VERBS), *below]:
        parser = cli.parser_of(words)
        inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        found.setdefault(words[0], []).extend([parser, *(one for action in inner for one in action.choices.values())])
    return found


def options(verb: str) -> set[str]:
    return {option for parser in parsers()[verb] for option in parser._option_string_actions}


def verbs_below(verb: str) -> set[str]:
    actions = (action for parser in parsers()[verb] for action in parser._actions if not action.option_strings)
    given = {str(choice) for action in actions for choice in action.choices or ()}
    more = {**cli.BELOW, "completion": ["words"]}  # `words`: what the shells' scripts call
    return given | {*more.get(verb, ())}


def commands(name: str) -> Iterator[list[str]]:
    """Each `mlbox …` of a document: a line of a block or of an example's head, or between backticks."""
    whole = text(name)
    blocks = re.findall(r"^```\n(.*?)^```", whole, re.MULTILINE | re.DOTALL) if name.endswith(".md") else [whole]
    for line in re.findall(r"^(?:# )?mlbox ([^#;(\n]+)", "".join(blocks), re.MULTILINE):
        yield line.split()
    for span in re.findall(r"`mlbox ([^`]+)`", whole):
        yield span.split()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_are_named_are_there(name: str) -> None:
    for words in commands(name):
        verb = words[0]
        if verb in ("help", "COMMAND", "--help", _EXAMPLE):
            continue
        own = words[: words.index("--")] if "--" in words else words
        for number, part in enumerate(" ".join(own).split(" | ")):  # `session list | info`, and `jobs | show ID`
            first = part.split()[0]
            assert first in cli.VERBS or (number and first in verbs_below(verb)), words
            if not number and verb not in cli.BELOW and verbs_below(verb):
                assert {*"|".join(own[1:2]).split("|")} <= {"", *verbs_below(verb)}, words
            named = set(re.findall(r"(?:^|[ \[])(--?[a-z][a-z-]*)", part))
            assert named <= options(first if first in cli.VERBS else verb), words


@pytest.mark.parametrize("name", DOCUMENTS)
def test_options_that_are_named_are_there(name: str) -> None:
    known = {option for verb in cli.VERBS for option in options(verb)} | {"--help", "--version"}
    named = set(re.findall(r"`(--[a-z-]+)", text(name)))
    assert named <= known


def test_a_document_s_commands_are_found() -> None:
    assert len(list(commands("README.md"))) > 30
    assert ["ssh-config", "install", "|", "remove", "|", "show"] in commands("README.md")


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_what_is_made_can_be_made(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text(name), re.MULTILINE)) <= targets


def test_the_example_of_one_s_own_defaults_shows_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlbox").mkdir()
    (tmp_path / "mlbox/config.toml").write_text(re.sub(r"(?m)^# (?=[a-z_]+ =)", "", text("conf/config.toml")))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = state.config()
    shown = set(re.findall(r"(?m)^# ([a-z_]+) =", text("conf/config.toml")))
    assert shown == {field.name for field in dataclasses.fields(found)} - {"dry_run"}
    assert (found.hosts, dict(found.ports)) == (("gpu1", "gpu2"), {"jupyter": 8878, "vscode": 8898, "ssh": 8022})


def test_every_option_has_a_reader() -> None:
    """By its name, as an attribute that is read or a field that takes it (client/answers.py)."""
    read: set[str] = set()
    for path in [*(ROOT / "mlbox/client").rglob("*.py"), ROOT / "mlbox/cli.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                read.add(node.target.id)
    named = {action.dest for verb in cli.VERBS for parser in parsers()[verb] for action in parser._actions}
    assert named - read - {"help", argparse.SUPPRESS} == set()
