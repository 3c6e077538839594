"""Job ids: ULIDs, which sort by the time they were made."""

from __future__ import annotations

import re

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_LEAST_BEGINNING, _LEAST_END = 8, 3  # all of a year begin with the same 3 letters, of a second with the same 8


def ulid(now_ms: int, entropy: bytes) -> str:
    """26 characters from milliseconds since 1970 (48 bits) and 10 bytes of randomness."""
    if len(entropy) != 10:
        raise ValueError("a ULID takes 10 bytes of entropy")
    value = ((now_ms & (2**48 - 1)) << 80) | int.from_bytes(entropy, "big")
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def following(job: str, steps: int = 1) -> str:
    """The next one, or so many further: of ids made together, each sorts behind the one before."""
    value = 0
    for letter in job:
        value = value << 5 | _ALPHABET.index(letter)
    return "".join(_ALPHABET[(value + steps >> shift) & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    return _ULID.fullmatch(text) is not None


def is_part(wanted: str, id_: str) -> bool:
    """Whether a person can mean that one by it: enough of its end, which is random, or of its beginning."""
    part = wanted.upper()
    begins = len(part) >= _LEAST_BEGINNING and id_.startswith(part)
    return begins or (len(part) >= _LEAST_END and id_.endswith(part))


def shard(job: str) -> str:
    """The folder of a job among 1024, from its random end (its beginning is the time)."""
    return job[-2:].lower()


def when(job: str) -> float:
    """When it was made: seconds since 1970, by the clock of whoever made it."""
    milliseconds = 0
    for letter in job[:10]:
        milliseconds = milliseconds << 5 | _ALPHABET.index(letter)
    return milliseconds / 1000
