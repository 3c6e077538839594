"""Words for people: sizes, durations, names, and other people's text made harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")

_ADJECTIVES = [
    "amber",
    "bold",
    "brave",
    "brisk",
    "calm",
    "clear",
    "clever",
    "cosy",
    "crisp",
    "dapper",
    "eager",
    "early",
    "fair",
    "fleet",
    "fond",
    "gentle",
    "glad",
    "golden",
    "grand",
    "green",
    "happy",
    "hardy",
    "hazel",
    "honest",
    "jolly",
    "keen",
    "kind",
    "lively",
    "lucky",
    "mellow",
    "merry",
    "mild",
    "neat",
    "nimble",
    "noble",
    "plucky",
    "polite",
    "proud",
    "quick",
    "quiet",
    "rapid",
    "ready",
    "royal",
    "silver",
    "smart",
    "snug",
    "solid",
    "sunny",
    "swift",
    "tidy",
    "vivid",
    "warm",
    "wise",
    "witty",
    "zesty",
]
_NOUNS = [
    "badger",
    "beaver",
    "bison",
    "crane",
    "curlew",
    "dolphin",
    "eagle",
    "egret",
    "falcon",
    "ferret",
    "finch",
    "fox",
    "gecko",
    "gibbon",
    "hare",
    "hawk",
    "heron",
    "ibex",
    "jackal",
    "kestrel",
    "koala",
    "lark",
    "lemur",
    "lion",
    "lynx",
    "magpie",
    "marten",
    "merlin",
    "mole",
    "moose",
    "newt",
    "ocelot",
    "orca",
    "osprey",
    "otter",
    "owl",
    "panda",
    "pelican",
    "pika",
    "plover",
    "puffin",
    "quail",
    "rabbit",
    "raven",
    "robin",
    "seal",
    "shrew",
    "sparrow",
    "stoat",
    "stork",
    "swan",
    "tapir",
    "tern",
    "tiger",
    "trout",
    "vole",
    "walrus",
    "weasel",
    "wombat",
    "wren",
    "yak",
    "zebra",
]


def safe(text: str) -> str:
    """Text from elsewhere without control and bidirectional characters (terminal escapes do nothing)."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\r", "\n"))


def is_name(text: str) -> bool:
    """A session's name: a DNS label of at most 40 characters, so it can be an SSH host name."""
    return _NAME.fullmatch(text) is not None


def name_hint(wanted: str) -> str:
    """What a name is made of, with one like this: `resnet-50-lr3e-4` for `ResNet_50 lr3e-4`."""
    like = re.sub("[^a-z0-9]+", "-", wanted.lower()).strip("-")[:40].strip("-")
    return "use a-z, 0-9 and '-', at most 40 characters" + (f": {like}" if like else "")


def pet_name(number: int) -> str:
    """A name that can be said aloud, from any non-negative number (a random one, say)."""
    adjective, noun = number % len(_ADJECTIVES), number // len(_ADJECTIVES) % len(_NOUNS)
    return f"{_ADJECTIVES[adjective]}-{_NOUNS[noun]}"


def mebibytes(amount: float) -> str:
    """Memory given in MiB, as people say it: 512 MiB, 24 GiB."""
    return f"{amount:.0f} MiB" if amount < 1024 else f"{amount / 1024:.0f} GiB"


def duration(seconds: float) -> str:
    """At most two units: 5s, 3m 20s, 2h 5m, 4d 1h."""
    total = max(0, int(seconds))
    for big, name, small, sub in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if total >= big:
            rest = total % big // small
            return f"{total // big}{name} {rest}{sub}" if rest else f"{total // big}{name}"
    return f"{total}s"


def count(number: int, noun: str) -> str:
    """1 GPU, 2 GPUs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that was meant, as likely as not; empty where none is near."""
    import difflib  # only a mistake pays for its import

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")


_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?!git@)[^/\s]+@")


def without_credentials(value: str) -> str:
    """The same text with `user:password@` and `token@` of its URLs masked (a private package index, a repository)."""
    return _CREDENTIALS.sub(r"\1***@", value)


def mask(value: str) -> str:
    """How a secret prints."""
    return "***" if value else ""
