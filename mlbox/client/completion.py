"""What a shell may complete a command line with: the commands' own parsers say what can stand there, and what this
laptop remembers fills in names. Nothing is asked over a network: a key press waits for this.

    shell: TAB ─> mlbox completion words SHELL WORD… CURRENT ─> one `word<TAB>what it is` a line
                                                                `<TAB>files`: the shell completes with its own files
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Callable

from mlbox.core import ids

Words = Iterable[tuple[str, str]]  # what can be typed, and what it is
FILES = ("", "files")
_PLAIN = re.compile(r"[\w@%+=:,./-]+")  # no shell reads more into these
_REPEATED = ("*", "+", argparse.REMAINDER)
# By the metavar of an option or argument.
_FILES = ("F", "FOLDER", "session.yaml", "job.yaml", "COMMAND", "…")


def candidates(
    parser: argparse.ArgumentParser, words: Sequence[str], current: str, known: Mapping[str, Callable[[], Words]]
) -> list[tuple[str, str]]:
    """What `current`, a word that is being typed behind `words`, may become. `known`: names by their metavar."""
    parser, waits, positionals, options = _reached(parser, words)
    option, equals, value = current.partition("=")
    if waits is None and options and equals and _of(parser, option) is not None:
        found = _values(_of(parser, option), known)
        return _matching(((f"{option}={word}", help) for word, help in found if word), f"{option}={value}")
    if waits is not None:
        return _matching(_values(waits, known), current)
    if options and current.startswith("-"):
        return _matching(_options(parser), current)
    return _matching(_values(positionals[0], known) if positionals else (), current)


def _reached(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.ArgumentParser, argparse.Action | None, list[argparse.Action], bool]:
    """Where the words lead: the parser, the option that waits for its value, the arguments that may come next, and
    whether options may."""
    waits, options = None, True
    left = [action for action in parser._actions if not action.option_strings]
    for at, word in enumerate(words):
        if waits is not None:
            waits = None
        elif options and word == "--":
            options = False
        elif options and word.startswith("-"):
            option = _of(parser, word.partition("=")[0])
            waits = option if option is not None and option.nargs != 0 and "=" not in word else None
        elif left and isinstance(left[0], argparse._SubParsersAction):
            inner = left[0].choices.get(word)
            return _reached(inner, words[at + 1 :]) if inner is not None else (parser, None, [], False)
        elif left:
            left = left if left[0].nargs in _REPEATED else left[1:]
            options = options and not (left and left[0].nargs == argparse.REMAINDER)
    return parser, waits, left, options


def _of(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return parser._option_string_actions.get(word)


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            yield from ((option, action.help or "") for option in action.option_strings if option.startswith("--"))


def _values(action: argparse.Action | None, known: Mapping[str, Callable[[], Words]]) -> Words:
    if action is None:
        return ()
    if isinstance(action, argparse._SubParsersAction):  # commands of a command, with their words
        return [(one.dest, one.help or "") for one in action._choices_actions]
    if action.choices is not None:
        return [(str(choice), "") for choice in action.choices]
    metavar = str(action.metavar or action.dest.upper())
    if metavar == "NAME" and action.option_strings:  # one that is given, not one that there is
        return ()
    if metavar in known:
        return known[metavar]()
    return (FILES,) if metavar in _FILES else ()


def _matching(found: Words, current: str) -> list[tuple[str, str]]:
    """Each once, as it was told first. Ids are for whoever has begun one: they have names."""
    told: dict[str, str] = {}
    for word, help in found:
        if not current and ids.is_ulid(word):
            continue
        if (word, help) == FILES or (word.startswith(current) and _PLAIN.fullmatch(word)):
            told.setdefault(word, " ".join(help.split()))
    return list(told.items())


def rejoined(words: Sequence[str]) -> tuple[list[str], str]:
    """bash breaks words at `=` and `:` too: the words as they were typed, and what of the last one it holds fixed."""
    typed: list[str] = []
    glued = False
    for word in words:
        breaks = word != "" and not word.strip("=:")
        if typed and (breaks or glued):
            typed[-1] += word
        else:
            typed.append(word)
        glued = breaks
    last = typed[-1] if typed else ""
    return typed, last[: max(last.rfind("="), last.rfind(":")) + 1]


# ---- what this laptop remembers ----------------------------------------------------------------------------


def known(verb: str) -> dict[str, Callable[[], Words]]:
    """Names by metavar, for a command's parser."""
    return {
        "HOST": _hosts, "NAME|ID": _sessions, "NAME": _hosts if verb == "host" else _sessions, "ID|NAME": _jobs,
        "Q": _queues, "QUEUE": _queues,
    }  # fmt: skip


def _hosts() -> Words:
    from mlbox.client import ssh_config, ssh_files, state, transports

    config = state.config()
    yield from ((name, "of config.toml") for name in config.hosts)
    yield from ((name, "seen before") for name in sorted({*state.load("hosts.json")} - {transports.LOCAL}))
    yield from ((name, "of ssh's configuration") for name in ssh_files.hosts(config.ssh_config, ssh_config.top()))
    yield transports.LOCAL, "this machine"


def _sessions() -> Words:
    """Those that ssh can reach by name first: they run, as far as is known here."""
    from mlbox.client import ssh_config, state

    places = state.load("sessions.json")
    for id_ in sorted(set(ssh_config.names()) & set(places), reverse=True):
        yield str(places[id_].get("name")), f"on {places[id_].get('host')}"


def _jobs() -> Words:
    from mlbox.client import state

    jobs = state.load("seen.json").get("jobs", {})
    for id_, name in sorted(jobs.items(), reverse=True):
        yield str(id_), str(name)
    yield from ((str(jobs[id_]), "job") for id_ in sorted(jobs, reverse=True))


def _queues() -> Words:
    from mlbox.client import state

    yield from ((str(name), "queue") for name in state.load("seen.json").get("queues", ["default"]))
